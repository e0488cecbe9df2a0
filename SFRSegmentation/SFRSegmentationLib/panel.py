"""The panel: five sections of which one is open, their states in the headers, and one place for errors."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from .cases_step import CasesStep
from .questions import Questions
from .results_step import ResultsStep
from .review_step import ReviewStep
from .session import PROGRESS
from .set_up_step import SetUpStep
from .step import DONE, EMPTY, READY, RUNNING
from .train_step import TrainStep

STEPS = {
    "setUp": SetUpStep,
    "cases": CasesStep,
    "train": TrainStep,
    "review": ReviewStep,
    "results": ResultsStep,
}


class Panel:
    """Holds the steps. ``steps`` by key, in order; ``parameters`` is the scene's parameter node or None."""

    def __init__(self, widget: Any, logic: Any, resourcePath: Any, questions: Any = None) -> None:
        self.logic, self.resourcePath = logic, resourcePath
        self.questions = questions or Questions()
        self.ui = slicer.util.childWidgetVariables(widget)
        self.parameters: Any = None
        self.steps: dict[str, Any] = {}
        self._guiTag: int | None = None
        self._words = {
            EMPTY: _("nothing yet"), READY: _("ready"), RUNNING: _("running"), DONE: _("done"),
        }  # fmt: skip
        self._opening = False
        for key, kind in STEPS.items():
            section = getattr(self.ui, f"{key}Section")
            self.steps[key] = kind(self, section)
            section.connect(
                "contentsCollapsed(bool)", lambda collapsed, key=key: self._toggled(key, collapsed)
            )
        for step in self.steps.values():
            self._clearAtClicks(step)
            step.setup()
        self.ui.dismissButton.connect("clicked()", self.clearError)
        self.clearError()
        logic.session.listen(self.changed)
        self.refresh()
        self.open(self.currentKey())

    def _clearAtClicks(self, step: Any) -> None:
        """A click on a button of the step takes the last message away, before it does what it is for."""
        for widget in vars(step.ui).values():
            if widget.className() == "QPushButton" and not widget.checkable:
                widget.connect("clicked()", self.clearError)

    def changed(self, what: str) -> None:
        """Pass a change of the session on to the steps."""
        for step in self.steps.values():
            step.changed(what)
        if what != PROGRESS:
            self.showHeaders()

    def refresh(self) -> None:
        """Let every step show how things stand."""
        for step in self.steps.values():
            step.refresh()
        self.showHeaders()

    def currentKey(self) -> str:
        """The first step that still has something to do; Results where all is done."""
        return next((key for key, step in self.steps.items() if step.state != DONE), "results")

    @property
    def openKey(self) -> str:
        """The section that is open, "" where none is."""
        return next((key for key, step in self.steps.items() if not step.section.collapsed), "")

    def open(self, key: str) -> None:
        """Open one section and close the others."""
        if self._opening:
            return
        self._opening = True
        try:
            before = self.openKey
            for name, step in self.steps.items():
                if step.section.collapsed != (name != key):
                    step.section.collapsed = name != key
        finally:
            self._opening = False
        if before and before != key:
            self.steps[before].closed()
        self.steps[key].opened()
        self.showHeaders()

    def _toggled(self, key: str, collapsed: bool) -> None:
        if self._opening:
            return
        if collapsed:
            self.steps[key].closed()
            self.showHeaders()
            return
        for name, step in self.steps.items():
            if name != key and not step.section.collapsed:
                self._opening = True
                step.section.collapsed = True
                self._opening = False
                step.closed()
        self.steps[key].opened()
        self.showHeaders()

    def showHeaders(self) -> None:
        """Write the states into the headers, and enable the one primary button: that of the open section."""
        if len(self.steps) < len(STEPS):
            return
        for number, (key, step) in enumerate(self.steps.items(), start=1):
            state = step.note or self._words[step.state]
            step.section.text = f"{number}. {step.title}: {state}"
            step.section.toolTip = _("Step {number} of 5: {title}. {state}.").format(
                number=number, title=step.title, state=state[:1].upper() + state[1:]
            )
            if step.primaryButton:
                elsewhere = "" if self.openKey == key else _("Open this step first.")
                step.allow(getattr(step.ui, step.primaryButton), step.primaryReason or elsewhere)

    def setParameters(self, parameters: Any) -> None:
        """Bind the widgets to a parameter node, or to none."""
        if self._guiTag is not None:
            self.parameters.disconnectGui(self._guiTag)
        self._guiTag = None
        self.parameters = parameters
        if parameters is not None:
            # Slicer's connectGui does not return the tag that disconnectGui needs; this does.
            self._guiTag = parameters.connectParametersToGui(self._boundWidgets())

    def _boundWidgets(self) -> dict[str, Any]:
        """The widgets that a .ui file binds to a parameter, by its name."""
        widgets = [widget for step in self.steps.values() for widget in vars(step.ui).values()]
        names = [widget.property("SlicerParameterName") for widget in widgets]
        return {name: widget for name, widget in zip(names, widgets, strict=True) if name}

    def showError(self, message: str, hint: str = "") -> None:
        """Say in the panel what went wrong and what to do."""
        self.ui.errorLabel.text = f"{message} {hint}".strip()
        self.ui.errorFrame.visible = True

    def clearError(self) -> None:
        """Take the last message away."""
        self.ui.errorLabel.text = ""
        self.ui.errorFrame.visible = False

    def enter(self) -> None:
        """The user came to the module."""
        for step in self.steps.values():
            step.enter()
        self.refresh()

    def exit(self) -> None:
        """The user went to another module."""
        for step in self.steps.values():
            step.exit()

    def sceneClosing(self) -> None:
        """Let go of every node."""
        self.setParameters(None)
        for step in self.steps.values():
            step.sceneClosing()

    def sceneChanged(self) -> None:
        """Another scene is there."""
        for step in self.steps.values():
            step.sceneChanged()
        self.refresh()

    def cleanup(self) -> None:
        """Stop everything and let go of what is held."""
        self.logic.session.forget(self.changed)
        self.setParameters(None)
        for step in self.steps.values():
            step.cleanup()
            # Slicer keeps a reloaded panel's widgets, hidden: they must not follow the scene any more.
            step.widget.setMRMLScene(None)
