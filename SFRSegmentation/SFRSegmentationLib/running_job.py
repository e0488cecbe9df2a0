"""A background job as the panel sees it: followed through its files, stopped politely and then firmly.

The job is a process of its own that outlives Slicer. Nothing here waits for it: a timer reads what it
wrote, at most ``BLOCK`` bytes a turn, so the event loop is free. What may take seconds (ending a tree of
processes) is done in a thread that touches neither Qt nor MRML.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer

from SFRCore.errors import InputError, SFRError
from SFRCore.runtime.jobs import Job

from .job_progress import JobProgress
from .job_standing import ALIVE, JobStanding

_log = logging.getLogger("SFR")

POLL_MS = 500
"""Milliseconds between two looks at a job."""
CATCH_UP_MS = 20
"""The same while there is more to read than one look takes, as of a job that has run for hours."""
BLOCK = 128 * 1024
"""Bytes of events that one look reads; parsing them takes some 5 ms."""
SECONDS_TO_STOP = 10.0
"""How long a job may take to stop by itself before its processes are ended."""
RESULTS_SECONDS = 2.0


class RunningJob:
    """``state`` is queued, running, finished, cancelled, failed or died; ``progress`` what it said so far;
    ``elsewhere`` the other computer that it runs on, "" for this one; ``trouble`` why it could not be ended.

    ``onChange(job, ended)`` is called from the event loop when there is something new. It comes from
    ``SFRSegmentationLogic.start`` or from opening a study in which a job runs.
    """

    def __init__(self, job: Job, onChange: Callable[[RunningJob, bool], None] | None = None) -> None:
        self.job = job
        self.run = job.run
        self.studyRoot = Path(job.study_root)
        self.progress = JobProgress()
        self._standing = JobStanding(job)
        self.state: str = self._standing.state
        info = job.info
        self.command, host = str(info.get("command") or ""), str(info.get("host") or "")
        self.elsewhere = host if host != socket.gethostname() else ""
        self.trouble = ""
        self._onChange = onChange
        self._follower = job.follower()
        self._asked = 0.0
        self._killing: threading.Thread | None = None
        self._ended = False
        self._told = ("", True)
        self._resultsTold, self._resultsSeen = 0.0, 0
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._tick)
        self._timer.start()

    @property
    def running(self) -> bool:
        """Whether it runs or is about to."""
        return self.state in ALIVE

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop and has not ended yet."""
        return self.running and self._asked > 0

    @property
    def reached(self) -> bool:
        """False while the study's folder cannot be read, so that nobody knows how the job stands."""
        return self._standing.reached

    @property
    def error(self) -> dict[str, Any] | None:
        """Code, message and hint of a job that failed or died; None for every other."""
        return self.job.error()

    @property
    def logFile(self) -> Path:
        """What the worker logged and printed."""
        return self.job.log_file

    def newResults(self) -> list[str]:
        """The cases that it has finished since the last call, at most every two seconds; else none."""
        told, self._resultsTold = self._resultsTold, time.monotonic()
        if self._resultsTold - told < RESULTS_SECONDS:
            self._resultsTold = told
            return []
        fresh, self._resultsSeen = self.progress.cases[self._resultsSeen :], len(self.progress.cases)
        return list(dict.fromkeys(fresh))

    def cancel(self) -> None:
        """Ask it to stop at its next step; asked again, or ten seconds later, its processes are ended. One of
        another computer can only be asked. Raises InputError while the study's folder cannot be read.
        """
        if not self.running:
            return
        if not self.reached:
            raise InputError(
                f"The folder {self.studyRoot} cannot be reached, so the job cannot be asked to stop.",
                hint="Connect its drive again, then cancel.",
            )
        if self._asked:
            self.trouble = ""
            self._kill()
            return
        self.job.cancel()
        self._asked = time.monotonic()
        self._tell(ended=False)

    def wait(self, timeout: float | None = None) -> str:
        """Wait until it has ended, at most ``timeout`` seconds, while the event loop goes on; returns its
        state.

        For scripts and the console: the panel never calls it. Raises SFRError where the job failed or died.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._ended and (deadline is None or time.monotonic() < deadline):
            slicer.app.processEvents()
            if not self._timer.active:
                self.poll()
            time.sleep(0.02)
        failure = self.error if self._ended else None
        if failure is not None:
            raise SFRError(failure["message"], hint=failure["hint"], code=failure["code"])
        return self.state

    def leave(self) -> None:
        """Follow it no more; it goes on."""
        self._timer.stop()
        self._onChange = None

    def poll(self) -> bool:
        """Look once; True where there was something new."""
        before = self.state
        # The state comes first: what a job wrote before it ended is then read below.
        state = self._standing.look()
        if state == "died" and self._killing is not None and self._killing.is_alive():
            state = "running"  # its end is about to be written down
        events = [] if self._standing.doubtful else self._follower.poll(BLOCK)
        news = self.progress.take(events)
        self._timer.setInterval(CATCH_UP_MS if events else POLL_MS)
        if state in ALIVE or not events:
            self.state = state
        if self.stopping and self.reached and time.monotonic() - self._asked > SECONDS_TO_STOP:
            self._kill()
        if (self.trouble, self.reached) != self._told:
            self._told, news = (self.trouble, self.reached), True
        ended = self.state not in ALIVE and not self._ended
        if ended:
            self._ended = True
            self._timer.stop()
        if news or ended or self.state != before:
            self._tell(ended)
        return news or ended

    def _tick(self) -> None:
        try:
            self.poll()
        except Exception:
            _log.exception("A job could not be followed")

    def _tell(self, ended: bool) -> None:
        if self._onChange is not None:
            self._onChange(self, ended)

    def _kill(self) -> None:
        if self.elsewhere or self.trouble or (self._killing is not None and self._killing.is_alive()):
            return
        self._killing = threading.Thread(target=self._end, name="SFR ends a job", daemon=True)
        self._killing.start()

    def _end(self) -> None:
        try:
            self.job.kill()
        except Exception as error:
            _log.warning("A job could not be ended: %s", error)
            self.trouble = error.message if isinstance(error, SFRError) else str(error)
