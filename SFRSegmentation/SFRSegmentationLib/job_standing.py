"""How a job stands, where one look at its folder may fail: a network drive that is away for a moment shows a
job that runs as one that failed or died.

An end that the job wrote down is believed at once, and so is the death of its process on this computer. Any
other end is doubted until the study's folder has shown it for ``SECONDS_IN_DOUBT``.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import NamedTuple

from SFRCore.errors import SFRError
from SFRCore.runtime.jobs import Job
from SFRCore.runtime.processes import process_alive
from SFRCore.study.folder import STUDY_FILE

ALIVE = ("queued", "running")
SECONDS_IN_DOUBT = 30.0
"""How long a job that is no longer seen counts as running while the study's folder can be read."""


class _Look(NamedTuple):
    """What one look found; ``sure`` where it cannot be wrong, ``reached`` where the study is there."""

    state: str
    sure: bool
    reached: bool


class JobStanding:
    """``state`` is the last that is believed; ``reached`` False while the study's folder cannot be read.

    The first look that raises doubt is the last one on the caller's thread until the doubt is over: a drive
    that is away may keep whoever asks for many seconds.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self.state: str = job.state
        self.reached = True
        self._doubted: float | None = None
        self._found: _Look | None = None
        self._looking: threading.Thread | None = None

    @property
    def doubtful(self) -> bool:
        """Whether what was seen last is not believed."""
        return self._doubted is not None

    def look(self) -> str:
        """Look once more, never waiting for a drive that is away; returns the state that is believed."""
        if not self.doubtful:
            self._judge(self._look())
        elif self._looking is None or not self._looking.is_alive():
            found, self._found = self._found, None
            if found is not None:
                self._judge(found)
            if self.doubtful:
                self._looking = threading.Thread(target=self._keep, name="SFR looks for a job", daemon=True)
                self._looking.start()
        return self.state

    def _judge(self, found: _Look) -> None:
        now = time.monotonic()
        self.reached = found.reached
        if self._doubted is None or not found.reached:
            self._doubted = now
        if found.sure or self.state not in ALIVE or now - self._doubted > SECONDS_IN_DOUBT:
            self.state, self._doubted = found.state, None

    def _keep(self) -> None:
        self._found = self._look()

    def _look(self) -> _Look:
        """Read what is in the study's folder; touches neither Qt nor MRML."""
        try:
            state = self._job.state
            if state in ALIVE:
                return _Look(state, True, True)
            info = self._job.info
            end = self._job.folder.end(info)
            if end is not None:
                return _Look(str(end["state"]), True, True)
            here, pid = info.get("host") == socket.gethostname(), int(info.get("pid") or 0)
            if here and pid and not process_alive(pid):
                return _Look(state, True, True)
            os.stat(self._job.folder.study_root / STUDY_FILE)
        except (SFRError, OSError):
            return _Look(self.state, False, False)
        return _Look(state, False, True)
