"""The worker's log in the panel: read on from where the last look ended, the end of a long one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BLOCK = 64 * 1024
LINES = 2000


class LogTail:
    """Appends to a QPlainTextEdit what was added to a file."""

    def __init__(self, view: Any) -> None:
        self._view = view
        self._path: Path | None = None
        self._offset = 0
        view.setMaximumBlockCount(LINES)

    def follow(self, path: Path | None) -> None:
        """Show this file from now on, from its last 64 KiB; None shows nothing."""
        if path != self._path:
            self._path, self._offset = path, 0
            self._view.clear()

    def read(self) -> None:
        """Show what is new; a file that is not there yet is none."""
        if self._path is None:
            return
        try:
            with open(self._path, "rb") as stream:
                size = stream.seek(0, 2)
                self._offset = max(self._offset if self._offset <= size else 0, size - BLOCK)
                stream.seek(self._offset)
                block = stream.read(BLOCK)
        except OSError:
            return
        end = block.rfind(b"\n") + 1
        if end:
            self._offset += end
            self._view.appendPlainText(block[:end].decode("utf-8", "replace").rstrip("\n"))
