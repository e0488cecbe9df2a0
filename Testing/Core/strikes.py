"""Counts what a process writes, and strikes at one of the writes: the disk is full, or the process ends.

A write is what changes which files and folders there are: a file that is renamed into place or made there, or
a folder that is made. Temporary files are none: their rename is.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

KILLED = 9
FAULTS = ("full", "before", "after")
"""The disk is full from a write on; the process dies just before it, or just after it."""
_NAMES = (
    (re.compile(r"\d{8}-\d{6}-[0-9a-f]{7}"), "RUN"),
    (re.compile(r"\.sfr-tmp-\d+-[0-9a-f]{6}n\d+"), ".sfr-tmp"),
    (re.compile(r"\d+-[0-9a-f]{6}-\d+-\d+\.nrrd"), "STAGED.nrrd"),
    (re.compile(r"-[0-9a-f]{16}\b"), "-OF"),
)


def fault_at(number: int) -> str:
    """The kinds of fault in turn; writes that recur in threes, as those of a result do, meet all of them."""
    return FAULTS[(number + number // 3) % 3]


def places(paths: Iterable[str]) -> list[str]:
    """The written ``paths`` as another run of the same command would write them, numbered where it recurs."""
    times: Counter[str] = Counter()
    found = []
    for path in paths:
        for pattern, name in _NAMES:
            path = pattern.sub(name, path)
        times[path] += 1
        found.append(f"{path} {times[path]}")
    return found


class Strikes:
    """Notes every write of this process below ``within`` in ``log``, up to the one that is struck: a line of
    its kind (renamed, made or folder) and its path.

    That is the ``at``-th, counted from 1, or without ``at`` the first that is not among the places
    ``beyond``. Without a ``fault`` none is struck.
    """

    def __init__(self, log: Path, within: Path, fault: str, at: int, beyond: Collection[str]) -> None:
        self.within, self.fault, self.at, self.beyond = f"{within}{os.sep}", fault, at, set(beyond)
        self.paths: list[str] = []
        self.full = False
        self.handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def install(self) -> None:
        """Look at every write from now on."""
        replace, rename, mkdir, open_, builtin = os.replace, os.rename, os.mkdir, os.open, builtins.open

        def opened(path: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            def do() -> Any:
                return builtin(path, mode, *rest, **more)

            return do() if isinstance(path, int) else self._open(path, not set(mode).isdisjoint("wxa"), do)

        os.replace = lambda source, target, **rest: self._write(  # type: ignore[assignment]
            "renamed", target, lambda: replace(source, target, **rest)
        )
        os.rename = lambda source, target, **rest: self._write(  # type: ignore[assignment]
            "renamed", target, lambda: rename(source, target, **rest)
        )
        os.mkdir = lambda path, *rest, **more: self._make("folder", path, lambda: mkdir(path, *rest, **more))  # type: ignore[assignment]
        os.open = lambda path, flags, *rest, **more: self._open(  # type: ignore[assignment]
            path, bool(flags & (os.O_CREAT | os.O_APPEND)), lambda: open_(path, flags, *rest, **more)
        )
        builtins.open = io.open = opened  # type: ignore[assignment]

    def _open(self, path: Any, writes: bool, do: Callable[[], Any]) -> Any:
        if writes and os.path.lexists(path):  # what is added to a file is no place of its own
            self._refuse_where_full(path)
            return do()
        return self._make("made", path, do) if writes else do()

    def _make(self, kind: str, path: Any, do: Callable[[], Any]) -> Any:
        possible = not os.path.lexists(path) and os.path.isdir(os.path.dirname(os.path.abspath(path)))
        return self._write(kind, path, do) if possible else do()

    def _write(self, kind: str, path: Any, do: Callable[[], Any]) -> Any:
        whole = os.path.abspath(os.fspath(path))
        self._refuse_where_full(whole)
        if not whole.startswith(self.within) or ".sfr-tmp-" in os.path.basename(whole):
            return do()
        self.paths.append(whole)
        os.write(self.handle, f"{kind} {whole}\n".encode())
        struck = len(self.paths) == self.at if self.at else places(self.paths)[-1] not in self.beyond
        if not (struck and self.fault):
            return do()
        if self.fault == "full":
            self.full = True
            self._refuse_where_full(whole)
        if self.fault == "after":
            do()
        os._exit(KILLED)

    def _refuse_where_full(self, path: Any) -> None:
        whole = os.path.abspath(os.fspath(path))
        if self.full and whole.startswith(self.within):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), whole)
