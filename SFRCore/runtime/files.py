"""Files that are whole or not there: temporary file, fsync, rename; and errors that a user understands."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from SFRCore.errors import DiskFull, InputError, SFRError
from SFRCore.runtime.identity import file_identity, same_file_quick, unreadable
from SFRCore.runtime.processes import process_alive

__all__ = [
    "append_bytes",
    "append_line",
    "atomic_path",
    "file_identity",
    "free_space",
    "full_suffix",
    "is_disk_full",
    "json_text",
    "read_json",
    "same_file_quick",
    "sweep_temporary",
    "write_bytes",
    "write_json",
    "write_text",
]

_FULL = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
_FULL_WINDOWS = {39, 112}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_FULL_WORDS = ("no space left", "disk quota exceeded", "not enough space on the disk")
_TINY = 1 << 20
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


def _explained(error: Exception, target: Path, temporary: Path) -> SFRError | None:
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


@contextlib.contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `target`; what the body writes there becomes `target`, whole or not.

    The temporary name keeps the format's suffix, so that image writers recognise it. The body may also make
    a folder there, as long as `target` is not yet a folder with something in it. Missing parent folders are
    made.

    Raises `DiskFull` where space or quota ran out, `InputError` where `target` may not be written; anything
    else that the body raises passes through. In every case the temporary file is gone afterwards.
    """
    target = Path(target)
    suffix = full_suffix(target)
    stem = target.name[: len(target.name) - len(suffix)][:24]
    name = f".{stem}.sfr-tmp-{os.getpid()}-{_HOST}n{next(_counter)}{suffix}"
    temporary = target.parent / name
    _in_use.add(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        _replace(temporary, target)
        _fsync_folder(target.parent)
    except Exception as error:
        explained = _explained(error, target, temporary)
        if explained is not None:
            raise explained from error
        raise
    finally:
        _remove(temporary)
        _in_use.discard(name)


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


def _abandoned(path: Path) -> bool:
    match = _TEMPORARY.match(path.name)
    if match is None or path.name in _in_use:
        return False
    pid, host = int(match[1]), match[2]
    if host == _HOST:
        return pid == os.getpid() or not process_alive(pid)
    try:
        return time.time() - path.lstat().st_mtime > _FOREIGN_AGE
    except OSError:
        return False


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file atomically. Raises `DiskFull`, `InputError` as `atomic_path` does."""
    with atomic_path(path) as temporary, open(temporary, "xb") as stream:
        stream.write(data)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically, line ends as given."""
    write_bytes(path, text.encode("utf-8"))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON of plain values, paths and NumPy or torch scalars and arrays; safe to encode as UTF-8.

    Raises TypeError for anything else. Non-finite numbers become NaN and Infinity, as Python reads them.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not Unicode
        text = json.dumps(value, indent=indent, ensure_ascii=True, default=_plain)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    for method in ("tolist", "item"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json_text(value, indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file. Raises `InputError` when it is missing, unreadable or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing.", hint="Check the folder you chose.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: it is not complete JSON.", hint="Restore it from a copy, or make it again."
        ) from error


def append_line(path: Path | str, text: str) -> None:
    """Append one line of UTF-8 in a single write; a torn last line from a crash is closed off first.

    Raises ValueError for text with a line break, `DiskFull` or `InputError` as `atomic_path` does.
    """
    if "\n" in text or "\r" in text:
        raise ValueError("append_line takes a single line")
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        append_bytes(target, text.encode("utf-8") + b"\n")
    except OSError as error:
        explained = _explained(error, target, target)
        if explained is not None:
            raise explained from error
        raise


def append_bytes(target: Path, data: bytes) -> None:
    """Append `data` in one write to `target`, on a line of its own. Raises OSError, also when it was cut."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(target, flags, 0o666)
    try:
        if os.fstat(handle).st_size:
            os.lseek(handle, -1, os.SEEK_END)
            if os.read(handle, 1) != b"\n":
                data = b"\n" + data
        if os.write(handle, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    finally:
        os.close(handle)
