"""Step 4: the doubtful cases first, to accept, correct or reject; nothing that was drawn is ever lost."""

from __future__ import annotations

import logging
from typing import Any

import qt
from slicer.i18n import tr as _

from SFRCore.study import ReviewItem

from .case_view import CaseView
from .doubt import set_threshold
from .editor_host import EditorHost
from .review_display import ReviewDisplay, rejected_cases
from .review_keys import KEYS, ReviewKeys
from .session import CASES, JOB, PROGRESS, RESULTS
from .slice_layers import SliceLayers, set_overlay_opacity
from .table_rows import TableRows

_log = logging.getLogger("SFR")

AUTOSAVE_MS = 30_000
"""Milliseconds after an edit until it is in the study, whatever happens to Slicer."""
_ROW_HEIGHT = 24
_BUTTONS = {
    "acceptButton": "accept",
    "acceptCorrectedButton": "acceptCorrected",
    "rejectButton": "reject",
    "nextCaseButton": "nextCase",
    "previousCaseButton": "previousCase",
    "nextSliceButton": "jump",
    "showDoubtCheckBox": "overlay",
}


class ReviewStep(ReviewDisplay):
    """``view`` is the case under review, None where none is shown."""

    uiFile = "Review.ui"
    title = _("Review")
    primaryButton = "retrainButton"

    def setup(self) -> None:
        self.view: CaseView | None = None
        self.queue: list[ReviewItem] = []
        self.layers = SliceLayers()
        self.editor = EditorHost(self.ui.editorFrame.layout(), self._onEffect)
        actions = {
            "accept": self.onAccept,
            "acceptCorrected": self.onAcceptCorrected,
            "reject": self.onReject,
            "nextCase": lambda: self.onOtherCase(1),
            "previousCase": lambda: self.onOtherCase(-1),
            "jump": lambda: self.onSlice(1),
            "overlay": self.ui.showDoubtCheckBox.toggle,
        }
        self.keys = ReviewKeys(self.widget, actions, self.panel.clearError)
        for name, action in _BUTTONS.items():
            button = getattr(self.ui, name)
            button.toolTip = f"{button.toolTip} ({KEYS[action]})"
            if name != "showDoubtCheckBox":
                button.connect("clicked()", actions[action])
        self.ui.previousSliceButton.connect("clicked()", lambda: self.onSlice(-1))
        self.ui.mostDoubtfulButton.connect("clicked()", lambda: self.onSlice(None))
        self.ui.correctButton.connect("toggled(bool)", self.onCorrect)
        self.ui.startOverButton.connect("clicked()", self.onStartOver)
        self.ui.bringBackButton.connect("clicked()", self.onBringBack)
        self.ui.retrainButton.connect("clicked()", self.onRetrain)
        self.ui.showDoubtCheckBox.connect("toggled(bool)", lambda on: self._show(fit=False))
        self.ui.opacitySlider.connect("valueChanged(double)", self.onOpacity)
        self.ui.thresholdSlider.connect("valueChanged(double)", self.onThreshold)
        self._model = qt.QStandardItemModel(0, 4)
        heads = {
            _("Case"): "",
            _("Expected Dice"): _("How well the model expects to have done, 0 to 1; the smallest structure"),
            _("Drawn by"): _("pseudo-label: the foundation model; prediction: the trained student"),
            _("Corrections"): _("Whether you have begun to correct the case"),
        }
        self._model.setHorizontalHeaderLabels(list(heads))
        for column, tip in enumerate(heads.values()):
            self._model.setHeaderData(column, qt.Qt.Horizontal, tip, qt.Qt.ToolTipRole)
        self._rows = TableRows(self._model)
        self.ui.queueView.setModel(self._model)
        self.ui.queueView.verticalHeader().setVisible(False)
        self.ui.queueView.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        self.ui.queueView.horizontalHeader().setStretchLastSection(True)
        self.ui.queueView.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        self.ui.queueView.connect("clicked(QModelIndex)", self.onChosen)
        self.ui.queueView.connect("activated(QModelIndex)", self.onChosen)
        self._autosave = qt.QTimer()
        self._autosave.setSingleShot(True)
        self._autosave.setInterval(AUTOSAVE_MS)
        self._autosave.connect("timeout()", self.keepEdits)
        self.ui.editorFrame.visible = False

    # The life of the section

    def enter(self) -> None:
        if not self.section.collapsed:
            self.opened()

    def exit(self) -> None:
        self.closed()

    def opened(self) -> None:
        self.keys.install()
        self.keys.rest(self.editor.active)
        self.refresh()
        if self.view is not None:
            given_back = not self.layers.remembered
            self._show(fit=given_back)
            if given_back:
                self.view.jump(self.view.place)

    def closed(self) -> None:
        self.keys.remove()
        self.keepEdits()
        self.ui.correctButton.checked = False
        self.layers.restore()

    def sceneClosing(self) -> None:
        """The scene takes the nodes with it: what is not in the study yet is saved now."""
        view, self.view = self.view, None
        self.layers.forget()
        if view is None:
            return
        self.editor.clear()
        self._keepAnywhere(view)
        view.let_go()

    def sceneChanged(self) -> None:
        """A scene that was saved amid a correction brings an effect at work along."""
        self.ui.correctButton.checked = False
        self.editor.rest()

    def cleanup(self) -> None:
        """The scene may go next, so edits that the study does not take are rescued."""
        self.keys.remove()
        if self.view is not None:
            self._keepAnywhere(self.view)
        self.leaveCase()
        self._autosave.stop()
        self.editor.cleanup()
        self.layers.restore()

    def changed(self, what: str) -> None:
        """While a job runs only the cases that it has finished are looked at again."""
        study = self.session.study
        if what == RESULTS and study is not None:
            fresh = set(self.session.fresh)
            queue = [item for item in self.queue if item.id not in fresh] + study.review_queue(fresh)
            self.queue = sorted(queue, key=lambda item: item.expected_dice)
            self._fillQueue(study)
            self._refreshSummary(study)
            self._refreshCase()
        elif what == JOB:
            self._refreshSummary(study)
            self._refreshCase()
        elif what != PROGRESS:
            self.refresh()

    def refresh(self) -> None:
        study = self.session.study
        if self.view is not None and self.view.study is not study:
            self.leaveCase()
        self.queue = [] if study is None else study.review_queue()
        self._fillQueue(study)
        self._refreshSummary(study)
        self._refreshCase()

    # What the user does

    def onChosen(self, index: Any) -> None:
        """A row of the queue was clicked."""
        self.panel.clearError()
        self.showCase(self.queue[index.row()].id)

    def onOtherCase(self, step: int) -> None:
        """The next case of the queue, or the one before; after the last comes the first."""
        ids = [item.id for item in self.queue]
        if not ids:
            return
        here = self.view.id if self.view is not None else None
        if here in ids:
            self.showCase(ids[(ids.index(here) + step) % len(ids)])
        else:
            self.showCase(ids[0 if step > 0 else -1])

    def showCase(self, id: str) -> None:
        """Show a case, anew where one of its nodes is gone; edits of the one before are kept in the study."""
        study, view = self.session.study, self.view
        if study is None:
            return
        if view is None or view.id != id or view.segmentation is None or view.image is None:
            self.leaveCase()
            self.view = self.attempt(lambda: CaseView(study, id, self._onView), wait=True)
            if self.view is not None:
                self.layers.remember()
                self._show(fit=True)
                self.view.jump(0)
        self._selectRow()
        self._refreshCase()

    def leaveCase(self) -> None:
        """Keep the edits and take the case out of the scene; edits that cannot be saved stay in it."""
        view = self.view
        if view is None:
            return
        self.ui.correctButton.checked = False
        self.editor.clear()
        kept = self.keepEdits()
        self.view = None
        view.close()
        if not kept:
            self.panel.showError(
                self.panel.ui.errorLabel.text,
                _("Your corrections stay in the scene as '{id} corrections (not saved)'.").format(id=view.id),
            )
        self._refreshCase()

    def keepEdits(self) -> bool:
        """Save unsaved edits as a draft in the study; False where that failed, which is then said, and tried
        again after a while unless the study is read-only.
        """
        self._autosave.stop()
        view = self.view
        if view is None or not view.unsaved:
            return True
        self.attempt(lambda: self._noteAside(view.keep()))
        if not view.unsaved:
            self._fillQueue(self.session.study)
        elif view.segmentation is not None and not view.study.readonly:
            self._autosave.start()
        return not view.unsaved

    def onSlice(self, step: int | None) -> None:
        """Another doubtful slice: the next, the one before, or (None) the most doubtful."""
        if self.view is not None:
            self.view.jump(0 if step is None else self.view.place + step)
            self._refreshCase()

    def onOpacity(self, opacity: float) -> None:
        """How much the doubt covers the image."""
        if self.view is not None and self.view.overlay is not None:
            set_overlay_opacity(self.view.overlay, opacity)

    def onThreshold(self, threshold: float) -> None:
        """Which doubt is shown."""
        if self.view is not None and self.view.overlay is not None:
            set_threshold(self.view.overlay, threshold)

    def onCorrect(self, on: bool) -> None:
        """The drawing tools are opened or put away."""
        view = self.view
        usable = view is not None and view.segmentation is not None and view.image is not None
        self.ui.editorFrame.visible = bool(on and usable)
        if on and usable:
            self.editor.show(view.segmentation, view.image)
            self.editor.start(view.least_certain())
        else:
            self.editor.rest()
            self.ui.correctButton.checked = False

    def onAccept(self) -> None:
        """The segmentation becomes a label as the model drew it."""
        view = self.view
        if view is None or self._refuse(self.ui.acceptButton):
            return
        if view.newer_result():
            self.panel.showError(
                _("A model has segmented case {id} again since you opened it.").format(id=view.id),
                _("Go to another case and back to see the new segmentation, then decide."),
            )
            return
        self._decide(lambda: view.study.accept(view.id, view.result.kind))

    def onAcceptCorrected(self) -> None:
        """The segmentation becomes a label as it was corrected."""
        view = self.view
        if view is not None and not self._refuse(self.ui.acceptCorrectedButton):
            self._decide(view.accept_corrected)

    def onReject(self) -> None:
        """What the model says of this case stays out of training."""
        view = self.view
        if view is None or self._refuse(self.ui.rejectButton):
            return
        question = _("You corrected case {id}. Reject it all the same? Your corrections are kept as a draft.")
        if view.edited and not self.questions.confirm(question.format(id=view.id), _("Reject")):
            return
        self._decide(lambda: view.study.reject(view.id))

    def onStartOver(self) -> None:
        """The corrections are thrown away."""
        view = self.view
        if view is None:
            return
        question = _("Throw your corrections of case {id} away?").format(id=view.id)
        if self.questions.confirm(question, _("Discard corrections")):
            self.ui.correctButton.checked = False
            self.editor.clear()
            self.attempt(view.start_over, wait=True)
            self.refresh()

    def onBringBack(self) -> None:
        """The rejected cases come back into the queue."""
        study = self.session.study
        if study is not None:
            self.attempt(lambda: [study.unreject(id) for id in rejected_cases(study)])
            self.session.changed(CASES)

    def onRetrain(self) -> None:
        """Train again with the corrections."""
        train = self.panel.steps["train"]
        if self.keepEdits() and self.attempt(lambda: (train.start("run"), True), wait=True) is not None:
            self.panel.open("train")

    # How things stand

    def _decide(self, action: Any) -> None:
        """Do what the user decided and go on to the next case; where it fails all stays as it is."""
        ids = [item.id for item in self.queue]
        view = self.view
        kept = self.keepEdits() if view.edited else True
        if self.attempt(lambda: (action(), True)[1], wait=True) is None:
            self._refreshCase()
            return
        if not kept and not view.unsaved:
            self.panel.clearError()
        following = [id for id in ids[ids.index(view.id) + 1 :] if id != view.id] if view.id in ids else ids
        self.leaveCase()
        self.session.changed(CASES)
        waiting = [item.id for item in self.queue]
        following = [id for id in following if id in waiting] or waiting
        if following:
            self.showCase(following[0])
        else:
            self.layers.restore()

    def _refuse(self, button: Any) -> bool:
        """Whether a key was pressed whose button waits for something; the reason is then said."""
        if button.enabled:
            return False
        self.panel.showError(button.toolTip.partition("\n")[2])
        return True

    def _show(self, fit: bool) -> None:
        if self.view is None or self.section.collapsed:
            return
        self.layers.remember()
        if fit:  # later the user may show one beside it
            self.layers.alone(self.view.segmentation)
        self.view.show(
            with_doubt=self.ui.showDoubtCheckBox.checked,
            opacity=self.ui.opacitySlider.value,
            threshold=self.ui.thresholdSlider.value,
            fit=fit,
        )

    def _onEffect(self, active: bool) -> None:
        self.keys.rest(active)

    def _onView(self) -> None:
        """The first edit since the last saving, or a node of the case has gone."""
        view = self.view
        if view is None:
            return
        if view.failure is not None:
            self.panel.showError(str(view.failure), view.note)
            view.failure = None
        if view.segmentation is None or view.image is None:
            self.editor.clear()
            self.ui.correctButton.checked = False
        elif view.unsaved:
            self._autosave.start()
        self._refreshCase()

    def _noteAside(self, aside: Any) -> None:
        if aside is not None:
            self.panel.showError(
                _("Somebody else corrected this case at the same time."),
                _("Their corrections are kept as {path}.").format(path=aside),
            )

    def _keepAnywhere(self, view: CaseView) -> None:
        """Save unsaved edits in the study, or else outside it."""
        try:
            self._noteAside(view.keep())
        except Exception as error:
            self._rescue(view, error)

    def _rescue(self, view: CaseView, error: Exception) -> None:
        try:
            path = view.rescue()
        except Exception:
            _log.exception("Corrections of case %s could not be saved anywhere", view.id)
            self.panel.showError(str(error), _("Your corrections of case {id} are lost.").format(id=view.id))
            return
        _log.warning("%s The corrections of case %s were saved as %s", error, view.id, path)
        self.panel.showError(
            str(error),
            _("Your corrections of case {id} were saved as {path}.").format(id=view.id, path=path),
        )
