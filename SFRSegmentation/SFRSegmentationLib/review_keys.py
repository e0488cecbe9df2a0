"""The keys of the review, Ctrl+Shift+letter: there while it is open, resting while an effect draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import qt
import slicer

KEYS = {
    "accept": "Ctrl+Shift+A",
    "acceptCorrected": "Ctrl+Shift+E",
    "reject": "Ctrl+Shift+X",
    "nextCase": "Ctrl+Shift+N",
    "previousCase": "Ctrl+Shift+P",
    "jump": "Ctrl+Shift+J",
    "overlay": "Ctrl+Shift+O",
}


class ReviewKeys:
    """`actions` are called by name of KEYS, each after `begin`."""

    def __init__(
        self, widget: Any, actions: Mapping[str, Callable[[], Any]], begin: Callable[[], Any]
    ) -> None:
        self._widget, self._actions, self._begin = widget, actions, begin
        self.shortcuts: dict[str, Any] = {}

    def install(self) -> None:
        """Listen to the keys in the main window, or in the panel's own where there is none."""
        if self.shortcuts:
            return
        window = slicer.util.mainWindow() or self._widget
        for name, key in KEYS.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), window)
            shortcut.connect("activated()", self._begin)
            shortcut.connect("activated()", self._actions[name])
            self.shortcuts[name] = shortcut

    def rest(self, resting: bool) -> None:
        """Leave the keys to others, or listen again."""
        for shortcut in self.shortcuts.values():
            shortcut.enabled = not resting

    def remove(self) -> None:
        """Listen no more."""
        for shortcut in self.shortcuts.values():
            shortcut.setParent(None)
            shortcut.deleteLater()
        self.shortcuts = {}
