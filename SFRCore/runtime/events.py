"""The event file of a run: one JSON object a line, written by the worker, followed by whoever looks on."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from SFRCore.runtime.files import append_bytes, json_text

_KEPT = 200
_HEAD = 256


class EventLog:
    """Appends events to `path`; safe to use from several threads.

    An event is written by a single append. Where the disk is full or away, the last 200 events are kept in
    memory and written when there is room again: reporting progress never ends a job. `stage` is the stage of
    events that name none.
    """

    def __init__(self, path: Path | str, run: str) -> None:
        self.path = Path(path)
        self.run = run
        self.stage = ""
        self._waiting: deque[bytes] = deque(maxlen=_KEPT)
        self._guard = threading.RLock()

    def emit(self, event: str, *, stage: str = "", **fields: Any) -> None:
        """Write one event: time (epoch s), run, stage, event, then `fields` (plain values, scalars)."""
        value: dict[str, Any] = {
            "time": round(time.time(), 3),
            "run": self.run,
            "stage": stage or self.stage,
            "event": event,
        }
        value.update((name, field) for name, field in fields.items() if name not in value)
        line = json_text(value).encode("utf-8") + b"\n"
        with self._guard:
            self._waiting.append(line)
            self._write()

    def flush(self) -> bool:
        """Try to write what is waiting; True when nothing is left."""
        with self._guard:
            self._write()
            return not self._waiting

    def _write(self) -> None:
        try:
            while self._waiting:
                append_bytes(self.path, self._waiting[0])
                self._waiting.popleft()
        except OSError:
            return


def _parse(lines: bytes) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for line in lines.split(b"\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            events.append(value)
    return events


def read_events(path: Path | str) -> list[dict[str, Any]]:
    """All whole events of a file, oldest first; a torn last line and damaged lines are left out."""
    return EventFollower(path).poll()


class EventFollower:
    """Reads on in an event file that is being written, perhaps by a process on another host."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._offset = 0
        self._head = b""

    def poll(self, max_bytes: int | None = None) -> list[dict[str, Any]]:
        """The whole events that were added since the last call; [] when there are none or no file yet.

        A torn last line waits for its end; damaged lines are passed over; a file that was cut short or
        replaced is read from its beginning. With `max_bytes` a long file is read in several calls of about
        that much.
        """
        try:
            with open(self.path, "rb") as stream:
                head = stream.read(_HEAD)
                if not head.startswith(self._head) or stream.seek(0, 2) < self._offset:
                    self._offset = 0
                stream.seek(self._offset)
                block = stream.read(-1 if max_bytes is None else max_bytes)
                if max_bytes is not None and len(block) == max_bytes:
                    block += stream.readline()
        except OSError:
            return []
        end = block.rfind(b"\n") + 1
        self._offset += end
        self._head = head[: self._offset]
        return _parse(block[:end])
