"""Follows one chore from the event loop: a timer looks at what it said, and somebody is told when it ends."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import qt
import slicer

from .chores import Chore

_log = logging.getLogger("SFR")

POLL_MS = 200


class ChoreFollower:
    """Calls ``onNews(chore)`` when it says something and ``onEnd(chore)`` once, both in the event loop.

    After the end ``chore.result`` or ``chore.error`` says how it went. Keep a reference to the follower.
    """

    def __init__(
        self,
        chore: Chore,
        onEnd: Callable[[Chore], Any],
        onNews: Callable[[Chore], Any] | None = None,
    ) -> None:
        self.chore = chore
        self._onEnd, self._onNews = onEnd, onNews
        self._told: Any = None
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self._tick)
        self._timer.start()

    @property
    def running(self) -> bool:
        """Whether its end was not told yet."""
        return bool(self._timer.active)

    def cancel(self) -> None:
        """Ask it to stop; the second time its processes are ended."""
        self.chore.cancel()

    def stop(self) -> None:
        """Follow it no more."""
        self._timer.stop()

    def _tick(self) -> None:
        try:
            lines = self.chore.poll()
            if self.chore.state != "running":
                self._timer.stop()
                self._onEnd(self.chore)
            elif self._onNews is not None and (lines or self.chore.progress != self._told):
                self._told = self.chore.progress
                self._onNews(self.chore)
        except Exception:
            self._timer.stop()
            _log.exception("A background process could not be followed")


def await_chore(chore: Chore) -> Any:
    """Let the event loop turn until a chore has ended; returns its result. For scripts and the console.

    Raises SFRError where it failed or was cancelled.
    """
    while chore.state == "running":
        slicer.app.processEvents()
        chore.poll()
        time.sleep(0.02)
    if chore.error is not None:
        raise chore.error
    return chore.result
