"""Many small pieces of work on the main thread, one a turn of the event loop: the panel stays alive."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import qt

from SFRCore.errors import SFRError

_log = logging.getLogger("SFR")

Action = Callable[[], Any]


class OneByOne:
    """Runs actions in order. `onNews()` is called after each; `failures` holds what did not work, by name."""

    def __init__(self, onNews: Callable[[], Any], onEnd: Callable[[], Any]) -> None:
        self._onNews, self._onEnd = onNews, onEnd
        self._waiting: list[tuple[str, Action]] = []
        self.total = 0
        self.failures: dict[str, str] = {}
        self._timer = qt.QTimer()
        self._timer.setInterval(0)
        self._timer.connect("timeout()", self._turn)

    @property
    def running(self) -> bool:
        """Whether there is something left to do."""
        return bool(self._timer.active)

    @property
    def done(self) -> int:
        """How many actions were done."""
        return self.total - len(self._waiting)

    def start(self, actions: Sequence[tuple[str, Action]]) -> None:
        """Begin with (name, action) pairs; what was waiting is given up."""
        self._waiting, self.total, self.failures = list(actions), len(actions), {}
        self._timer.start()

    def stop(self) -> None:
        """Give up what waits."""
        self._timer.stop()
        self._waiting = []

    def _turn(self) -> None:
        if self._waiting:
            name, action = self._waiting.pop(0)
            try:
                action()
            except SFRError as error:
                self.failures[name] = f"{error.message} {error.hint}".strip()
            except Exception as error:
                _log.exception("%s failed", name)
                self.failures[name] = f"{name}: {error}"
            self._onNews()
        if not self._waiting:
            self._timer.stop()
            self._onEnd()
