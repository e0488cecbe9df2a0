"""Files and folders that are whole or not there: temporary name, fsync, rename; and who ran out of room."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from SFRCore.errors import DiskFull, InputError, SFRError
from SFRCore.runtime.processes import process_alive

_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
_FULL_WINDOWS = {39, 112}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL_WORDS = ("no space left", "disk quota exceeded", "not enough space on the disk")
_TINY = 1 << 20
_PROBE = 1 << 14
_DOUBLE_SUFFIXES = (".nii.gz", ".seg.nrrd", ".img.gz", ".tar.gz")
_TEMPORARY = re.compile(r"^\..*\.sfr-tmp-(\d+)-([0-9a-f]{6})n\d+(\..*)?$", re.DOTALL)
_FOREIGN_AGE = 24 * 3600.0
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
_counter = itertools.count()
_in_use: set[str] = set()


def full_suffix(path: Path) -> str:
    """The ending that tells a writer the format: ``.nii.gz`` for ``scan.nii.gz``, else the last suffix."""
    lower = path.name.lower()
    for double in _DOUBLE_SUFFIXES:
        if lower.endswith(double) and len(lower) > len(double):
            return path.name[-len(double) :]
    return path.suffix


def free_space(path: Path | str) -> int:
    """Free bytes on the disk that holds `path`, which need not exist yet."""
    place = Path(path).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception, or one that it came from, says that no space or quota was left."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, DiskFull):
            return True
        if isinstance(current, OSError) and (
            current.errno in _FULL or getattr(current, "winerror", None) in _FULL_WINDOWS
        ):
            return True
        if any(words in str(current).lower() for words in _FULL_WORDS):
            return True
        current = current.__cause__ or current.__context__
    return False


def explained_write_error(error: Exception, target: Path, temporary: Path) -> SFRError | None:
    """The error a user reads for a failed write of `target`; None where the failure is another one."""
    if isinstance(error, SFRError):
        return None
    full = DiskFull(
        f"{target} could not be written because the disk is full.",
        hint=f"Free some space on the disk of {target.parent} and run again; what was finished is kept.",
    )
    if is_disk_full(error):
        return full
    if isinstance(error, OSError):
        named = {os.fspath(n) for n in (error.filename, error.filename2) if isinstance(n, (str, os.PathLike))}
        ours = not named or named & {str(temporary), str(target), str(target.parent)}
        if error.errno in _REFUSED and ours:
            return InputError(
                f"{target} cannot be written: the folder is read-only or belongs to somebody else.",
                hint="Ask for write access, or copy the study to a folder of your own.",
            )
        if error.errno == errno.ENAMETOOLONG and ours:
            return InputError(f"{target} cannot be written: the name is too long.", hint="Shorten it.")
        return None
    with contextlib.suppress(OSError):
        if isinstance(error, RuntimeError) and free_space(target) < _TINY:
            return full
    return None


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    """Bring a file, or a folder with all it holds, to the disk."""
    if path.is_dir() and not path.is_symlink():
        for child in path.iterdir():
            _fsync(child)
        _fsync_folder(path)
        return
    with open(path, "r+b" if os.name == "nt" else "rb") as stream:
        os.fsync(stream.fileno())


def _fsync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network drives cannot do it for a folder
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(source: Path, target: Path) -> None:
    for wait in (0.02, 0.05, 0.1, 0.2, 0.4):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if os.name != "nt":  # on Windows a reader or a virus scanner may hold the old file for a moment
                raise
            time.sleep(wait)
    os.replace(source, target)


def _temporary_name(target: Path) -> str:
    suffix = full_suffix(target)
    stem = target.name[: len(target.name) - len(suffix)][:24]
    return f".{stem}.sfr-tmp-{process_mark()}n{next(_counter)}{suffix}"


@contextlib.contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `target`; what the body writes there becomes `target`, whole or not.

    The temporary name keeps the format's suffix, so that image writers recognise it. The body may also make
    a folder there, as long as `target` is not yet a folder with something in it. Missing parent folders are
    made.

    Raises `DiskFull` where space or quota ran out, also where the writer did not notice; `InputError` where
    `target` may not be written; anything else that the body raises passes through. In every case the
    temporary file is gone afterwards.
    """
    with checked_atomic_path(Path(target)) as temporary:
        yield temporary
        _require_room(temporary)


@contextlib.contextmanager
def checked_atomic_path(target: Path) -> Iterator[Path]:
    """As `atomic_path`, for a body whose every write raises when it is cut short."""
    temporary = target.parent / _temporary_name(target)
    _in_use.add(temporary.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        _replace(temporary, target)
        _fsync_folder(target.parent)
    except Exception as error:
        explained = explained_write_error(error, target, temporary)
        if explained is not None:
            raise explained from error
        raise
    finally:
        _remove(temporary)
        _in_use.discard(temporary.name)


def _require_room(written: Path) -> None:
    """Raise OSError (ENOSPC, EDQUOT) where no room is left beside a file that was just written.

    ITK's NRRD and NIfTI writers report success for a file that a full disk has cut short.
    """
    if free_space(written.parent) < _TINY:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    probe = written.parent / _temporary_name(Path("room"))
    _in_use.add(probe.name)
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        try:
            data = os.urandom(_PROBE)
            if os.write(handle, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        finally:
            os.close(handle)
    finally:
        _remove(probe)
        _in_use.discard(probe.name)


def sweep_temporary(folder: Path | str, *, recursive: bool = False) -> list[Path]:
    """Remove what killed processes left half-written in `folder`; returns the paths that were removed.

    Files of living processes stay, and those of another host until they are a day old.
    """
    removed: list[Path] = []
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(place) / name
            if _TEMPORARY.match(name) and _abandoned(path):
                _remove(path)
                removed.append(path)
        folders[:] = [f for f in folders if recursive and not _TEMPORARY.match(f)]
    return removed


def process_mark() -> str:
    """A name for this process, for files that ``left_behind`` is to know by it: its id and its host."""
    return f"{os.getpid()}-{_HOST}"


def left_behind(path: Path, pid: int, host: str) -> bool:
    """Whether the process that made the file ``path`` is gone; one of another host is after a day."""
    if host == _HOST:
        return not process_alive(pid)
    try:
        return time.time() - path.lstat().st_mtime > _FOREIGN_AGE
    except OSError:
        return False


def _abandoned(path: Path) -> bool:
    match = _TEMPORARY.match(path.name)
    if match is None or path.name in _in_use:
        return False
    pid, host = int(match[1]), match[2]
    return (host == _HOST and pid == os.getpid()) or left_behind(path, pid, host)
