"""A folder that several processes use and one may replace: whoever replaces it waits until nobody uses it.

Each user holds a lock on a file of its own beside the folder, since Windows knows no shared locks, and only
then looks whether the folder is being changed; whoever changes it holds the lock of the change, and only then
looks for users. So the two never overlook each other, and a killed process is no user any more.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from SFRCore.errors import InputError, SFRError
from SFRCore.runtime.locks import FileLock, holder, is_held


def change_lock(folder: Path | str) -> Path:
    """The file to be locked by whoever changes the folder."""
    folder = Path(folder)
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def in_use(folder: Path | str, purpose: str) -> Iterator[None]:
    """Keep the folder from being changed meanwhile; ``purpose`` is what others are told.

    Raises `InputError` where it is being changed. Beside a folder where nothing can be written, or on a drive
    without locks, nobody is told.
    """
    folder = Path(folder)
    lease = FileLock(_lease(folder, f"{os.getpid()}-{secrets.token_hex(4)}"), timeout=0.0, purpose=purpose)
    with contextlib.suppress(SFRError):
        lease.acquire()
    try:
        if _held(change_lock(folder)):
            raise InputError(
                f"{folder} is being changed at this moment.", hint="Wait until that is done, and try again."
            )
        yield
    finally:
        if lease.held:
            lease.release()
            with contextlib.suppress(OSError):
                lease.path.unlink()


def refuse_users(folder: Path | str) -> None:
    """Raise `InputError` (code "in_use") where some process uses the folder; removes what killed ones left.

    To be called by the holder of `change_lock` only.
    """
    folder = Path(folder)
    start, end = _lease(folder, "\n").name.split("\n")
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.parent.iterdir()):
            if not (path.name.startswith(start) and path.name.endswith(end)):
                continue
            who = holder(path)
            if who is not None:
                since = time.strftime("%Y-%m-%d %H:%M", time.localtime(float(who.get("since", time.time()))))
                what = f"{who.get('purpose') or 'a process'} on {who.get('host', 'this computer')}"
                raise InputError(
                    f"{folder} is in use by {what} since {since}.",
                    hint="Wait until it is done, or cancel it, and try again.",
                    code="in_use",
                )
            with contextlib.suppress(OSError):
                path.unlink()


def _lease(folder: Path, name: str) -> Path:
    return folder.with_name(f".{folder.name}.use-{name}.lock")


def _held(path: Path) -> bool:
    try:
        return is_held(path)
    except InputError:
        return False
