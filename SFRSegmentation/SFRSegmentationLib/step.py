"""One step of the panel: a collapsible section with its own .ui file and its own Python file.

To write a step, subclass :class:`Step`, say ``uiFile`` (in Resources/UI), ``title`` and the names of the
primary button, and override what is needed of:

==================  ==========================================================================================
``setup()``         once: connect ``self.ui.NAME`` to methods; no study, no scene content is assumed
``enter()``         the user comes to the module: install shortcuts, look at what may have changed
``exit()``          the user leaves it: remove shortcuts, give the views back. Jobs go on
``opened()``        the user opens this section; ``closed()``: opens another one
``sceneClosing()``  drop every reference to nodes; ``sceneChanged()``: the scene was closed or imported
``changed(what)``   something of :mod:`.session` changed; by default ``refresh()`` for all but PROGRESS
``refresh()``       show how things stand: enable and disable, and set the state by ``setState``
``cleanup()``       the panel goes away: stop timers, detach embedded widgets
==================  ==========================================================================================

At hand are ``self.ui`` (widgets of the .ui file by object name), ``self.logic`` (everything that is done),
its ``self.session`` (what is open and running), ``self.questions`` (every dialog), ``self.panel``
(``panel.parameters`` is the parameter node wrapper, or None) and ``self.attempt`` for doing things that
can fail.

``allow(button, reason)`` enables a control where ``reason`` is empty; else it disables it and its tooltip
says what it waits for. The primary button is enabled by the panel only, and only in the open section: a
step says in ``primaryReason`` what it still waits for ("" where nothing).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SFRCore.errors import SFRError

from .session import PROGRESS

EMPTY, READY, RUNNING, DONE = "empty", "ready", "running", "done"

_log = logging.getLogger("SFR")


class Step:
    """A step of the panel; see this module's text for what a subclass overrides."""

    uiFile = ""
    title = ""
    primaryButton = ""

    def __init__(self, panel: Any, section: Any) -> None:
        self.panel, self.section = panel, section
        self.logic = panel.logic
        self.session = panel.logic.session
        self.state, self.note = EMPTY, ""
        self.primaryReason = ""
        self.widget = slicer.util.loadUI(panel.resourcePath(f"UI/{self.uiFile}"))
        section.layout().addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.widget.setMRMLScene(slicer.mrmlScene)
        self._tips: dict[str, str] = {}

    @property
    def questions(self) -> Any:
        """What asks the user; see :mod:`.questions`."""
        return self.panel.questions

    def setup(self) -> None:
        """Connect the controls."""

    def enter(self) -> None:
        """The user came to the module."""

    def exit(self) -> None:
        """The user went to another module."""

    def opened(self) -> None:
        """The section was opened."""

    def closed(self) -> None:
        """Another section was opened."""

    def sceneClosing(self) -> None:
        """The scene is about to be closed."""

    def sceneChanged(self) -> None:
        """The scene was closed or one was imported."""

    def changed(self, what: str) -> None:
        """Something of the session changed."""
        if what != PROGRESS:
            self.refresh()

    def refresh(self) -> None:
        """Show how things stand."""

    def cleanup(self) -> None:
        """The panel goes away."""

    def setState(self, state: str, note: str = "") -> None:
        """Say in the header how the step stands: a state of this module and a few words."""
        self.state, self.note = state, note
        self.panel.showHeaders()

    def allow(self, control: Any, reason: str = "") -> None:
        """Enable a control, or disable it and say in its tooltip what it waits for."""
        name = control.objectName
        own = self._tips.setdefault(name, control.toolTip)
        control.enabled = not reason
        control.toolTip = f"{own}\n{reason}" if reason else own

    def attempt(self, action: Callable[[], Any], wait: bool = False) -> Any:
        """Do ``action``; a failure that is explained is shown in the panel, any other one with its traceback
        in the log. Returns its result, or None where it failed. ``wait`` shows the wait cursor.
        """
        if wait:
            qt.QApplication.setOverrideCursor(qt.QCursor(qt.Qt.WaitCursor))
        try:
            result = action()
        except SFRError as error:
            self.panel.showError(error.message, error.hint)
            return None
        except Exception as error:
            _log.exception("The panel failed")
            self.panel.showError(
                _("This did not work: {error}").format(error=error), _("The details are in the error log.")
            )
            return None
        finally:
            if wait:
                qt.QApplication.restoreOverrideCursor()
        return result
