"""Locks between processes: held by the operating system, so that they end with the process."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from SFRCore.errors import DiskFull, InputError
from SFRCore.runtime.files import is_disk_full, json_text, read_json

_WAIT = 0.02
_LONGEST_WAIT = 0.2
_UNSUPPORTED = {
    getattr(errno, name) for name in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS") if hasattr(errno, name)
}

if sys.platform == "win32":
    import msvcrt

    # A locked byte cannot be read by others on Windows: lock one far behind the text that says who holds it.
    _LOCKED_BYTE = 1 << 30

    def _try_lock(handle: int, *, shared: bool = False) -> None:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    def _unlock(handle: int) -> None:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
else:
    import fcntl

    def _try_lock(handle: int, *, shared: bool = False) -> None:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)

    def _unlock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_UN)


class FileLock:
    """An exclusive lock on the file `path`, among processes and among threads; not re-entrant.

    The file holds, as JSON, who has the lock: host, pid, since (epoch seconds), purpose. It is never deleted:
    two processes could then hold locks on two files of one name. A killed process leaves no lock behind.

    Entering waits up to `timeout` seconds, then raises `InputError` that says who holds it and since when.
    It also raises `InputError` where the file cannot be written or the drive knows no locks.
    """

    def __init__(self, path: Path | str, *, timeout: float = 10.0, purpose: str = "") -> None:
        self.path = Path(path)
        self.timeout = timeout
        self.purpose = purpose
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._handle is not None

    def acquire(self) -> None:
        """Take the lock. Raises `InputError` after `timeout` seconds, RuntimeError if this object has it."""
        if self._handle is not None:
            raise RuntimeError(f"{self.path} is already locked by this object")
        deadline = time.monotonic() + self.timeout
        wait = _WAIT
        tries = 0
        while True:
            handle = self._try_once()
            tries += 1
            if handle is not None:
                break
            # Somebody else's glance at the lock may collide with a first try, so there are always three.
            if time.monotonic() >= deadline and tries >= 3:
                raise self._busy()
            time.sleep(wait if tries < 3 else min(wait, max(0.001, deadline - time.monotonic())))
            wait = min(2 * wait, _LONGEST_WAIT)
        self._handle = handle
        with _held_guard:
            _held.add(self)
        self._write_holder(handle)

    def release(self) -> None:
        """Give the lock back; without effect where it is not held."""
        handle, self._handle = self._handle, None
        if handle is None:
            return
        with _held_guard:
            _held.discard(self)
        try:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, 0)
            with contextlib.suppress(OSError):
                _unlock(handle)
        finally:
            os.close(handle)

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _try_once(self) -> int | None:
        handle = self._open()
        try:
            _try_lock(handle)
            if _is_file_at(handle, self.path):
                return handle
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                os.close(handle)
                raise _no_locks(self.path) from error
        os.close(handle)
        return None

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull(
                    f"{self.path} could not be made because the disk is full.",
                    hint="Free some space and run again; what was finished is kept.",
                ) from error
            reason = error.strerror or "no reason given"
            raise InputError(
                f"{self.path} cannot be written: {reason}.",
                hint="Check that the folder exists and that you may write in it.",
            ) from error

    def _write_holder(self, handle: int) -> None:
        text = json_text(
            {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time(), "purpose": self.purpose}
        )
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its label is missing
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, text.encode("utf-8"))

    def _busy(self) -> InputError:
        who = _read_holder(self.path)
        if who is None:
            by = "another process"
        else:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(who.get("since", 0.0))))
            what = f"{who['purpose']}, " if who.get("purpose") else ""
            by = f"{what}process {who.get('pid')} on {who.get('host')} since {since}"
        return InputError(
            f"{self.path.parent} is in use by {by}.",
            hint="Wait until it is done, or cancel it, and try again.",
            code="in_use",
        )


def is_held(path: Path | str) -> bool:
    """Whether some process holds the lock now; looks without waiting. False where there is no such file.

    Raises `InputError` where the drive knows no locks.
    """
    for attempt in range(3):
        try:
            handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        except OSError:
            return False
        try:
            _try_lock(handle, shared=True)
            _unlock(handle)
            return False
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise _no_locks(Path(path)) from error
        finally:
            os.close(handle)
        if os.name != "nt":  # only on Windows, where no lock is shared, do two that look disturb each other
            return True
        time.sleep(0.01 * (attempt + 1))
    return True


def holder(path: Path | str) -> dict[str, Any] | None:
    """Who holds the lock: host, pid, since (epoch seconds), purpose. None where nobody does.

    Empty where it is held but the holder could not write its name.
    """
    if not is_held(path):
        return None
    return _read_holder(Path(path)) or {}


def _read_holder(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(InputError):
        value = read_json(path)
        if isinstance(value, dict):
            return value
    return None


def _is_file_at(handle: int, path: Path) -> bool:
    """Whether the file that was locked still has that name: somebody may have deleted it meanwhile."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _no_locks(path: Path) -> InputError:
    return InputError(
        f"The drive that holds {path} does not support locks.",
        hint="Copy the study to a local disk, or ask for locking to be switched on for this network drive.",
    )


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()
_held_guard = threading.Lock()


def _forget_in_child() -> None:
    """A forked child shares the open file, and would keep the lock alive after the death of its parent."""
    global _held_guard
    _held_guard = threading.Lock()
    for lock in list(_held):
        handle, lock._handle = lock._handle, None
        if handle is not None:
            with contextlib.suppress(OSError):
                os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
