"""What the review says: the queue, how far it is, the case at hand, and what each button waits for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from slicer.i18n import tr as _

from SFRCore.errors import SFRError
from SFRCore.runtime.files import read_json
from SFRCore.study import ReviewItem, Study

from .case_view import CaseView
from .drafts import drafted
from .scene import KIND_NAMES
from .step import DONE, EMPTY, READY, Step
from .table_rows import TableRows


class ReviewDisplay(Step):
    """The part of the review step that only shows; `queue` and `view` are what it shows."""

    view: CaseView | None
    queue: list[ReviewItem]
    _rows: TableRows

    def _fillQueue(self, study: Study | None) -> None:
        """List the queue; nothing is done where it looks as before, or where nobody sees it."""
        if self.section.collapsed:
            return
        drafts = set() if study is None else drafted(study)
        begun = _("begun, not accepted")
        rows = [
            [item.id, f"{item.expected_dice:.2f}", KIND_NAMES[item.kind], begun if item.id in drafts else ""]
            for item in self.queue
        ]
        self._rows.show(rows)
        self._selectRow()

    def _selectRow(self) -> None:
        ids = [item.id for item in self.queue]
        if self.view is not None and self.view.id in ids:
            self.ui.queueView.selectRow(ids.index(self.view.id))
        else:
            self.ui.queueView.clearSelection()

    def _refreshSummary(self, study: Study | None) -> None:
        cases = [] if study is None else list(study.cases.values())
        rejected = len(rejected_cases(study)) if study is not None else 0
        done = sum(case.review in ("accepted", "corrected") for case in cases)
        counts = _("{done} accepted, {rejected} rejected.").format(done=done, rejected=rejected)
        if study is None:
            text = _("Open a study in step 2, then run it in step 3.")
            self.setState(EMPTY)
        elif self.queue:
            text = _("{count} cases to look at, the least certain first. {counts}")
            text = text.format(count=len(self.queue), counts=counts)
            self.setState(READY, _("{count} to look at").format(count=len(self.queue)))
        elif done or rejected:
            text = _("All cases are reviewed. {counts}").format(counts=counts)
            self.setState(DONE, _("all reviewed"))
        else:
            text = _(
                "Nothing to review yet: run the study in step 3, then its doubtful cases are listed here."
            )
            self.setState(EMPTY)
        self.ui.summaryLabel.text = text
        self.ui.bringBackButton.visible = rejected > 0
        self.ui.bringBackButton.text = _("Bring {count} rejected back").format(count=rejected)
        self._refreshRetrain(study)

    def _refreshRetrain(self, study: Study | None) -> None:
        new = 0 if study is None else _new_labels(study)
        reason = ""
        if study is None:
            reason = _("Waits for a study.")
        elif study.readonly:
            reason = _("The study is read-only.")
        elif self.session.busy:
            reason = _("Waits for the job that runs.")
        elif not new:
            reason = _("Waits for a case that you accept or correct.")
        self.primaryReason = reason
        since = _("{count} accepted or corrected since the last training.").format(count=new)
        self.ui.retrainLabel.text = since if new else reason
        self.panel.showHeaders()

    def _refreshCase(self) -> None:
        view = self.view
        self.ui.caseFrame.visible = view is not None
        some = "" if self.queue else _("Waits for a case to review.")
        self.allow(self.ui.nextCaseButton, some)
        self.allow(self.ui.previousCaseButton, some)
        if view is None:
            return
        expected = view.result.expected_dice_by_structure
        parts = [f"{s.name} {expected.get(str(s.value), 0.0):.2f}" for s in view.study.structures]
        self.ui.caseLabel.text = _("{id}: {kind}, expected Dice {parts}").format(
            id=view.id, kind=KIND_NAMES[view.result.kind], parts=", ".join(parts)
        )
        self.ui.noteLabel.text = self._note(view)
        self.ui.noteLabel.visible = bool(self.ui.noteLabel.text)
        here = view.places[view.place]
        self.ui.sliceLabel.text = _("Doubtful slice {number} of {count} (slice {index})").format(
            number=view.place + 1, count=len(view.places), index=here.index + 1
        )
        one = _("This case has one doubtful slice.") if len(view.places) == 1 else ""
        self.allow(self.ui.nextSliceButton, one)
        self.allow(self.ui.previousSliceButton, one)
        gone = "" if view.segmentation is not None and view.image is not None else _("Choose the case again.")
        readonly = _("The study is read-only.") if view.study.readonly else ""
        corrected = _("You corrected this case: use Accept corrected, or discard your corrections.")
        self.allow(self.ui.correctButton, gone)
        self.allow(self.ui.acceptButton, gone or readonly or (corrected if view.edited else ""))
        untouched = "" if view.edited else _("Nothing was corrected yet.")
        self.allow(self.ui.acceptCorrectedButton, gone or readonly or untouched)
        self.allow(self.ui.rejectButton, readonly)
        self.allow(self.ui.startOverButton, gone or readonly or untouched)

    def _note(self, view: CaseView) -> str:
        case = view.study.cases.get(view.id)
        if view.segmentation is None:
            gone = _(
                "Its segmentation was removed from the scene; corrections are kept. Choose the case again."
            )
            return view.note or gone
        if view.image is None:
            return _("Its image was removed from the scene. Choose the case again.")
        if case is None or case.role != "unlabeled":
            return _("Somebody has decided on this case meanwhile; what you accept becomes its newest label.")
        if view.note:
            return view.note
        if view.edited:
            kept = _("You see your corrections.")
            return kept if view.unsaved else _("You see your corrections, kept in the study.")
        return ""


def rejected_cases(study: Study) -> list[str]:
    return [
        case.id for case in study.cases.values() if case.role == "unlabeled" and case.review == "rejected"
    ]


def _new_labels(study: Study) -> int:
    """How many accepted or corrected labels the newest model has not learned from: those it has not seen, as
    what was accepted while it was trained, and those that are younger than it.
    """
    models = [path for path in study.models_dir.glob("*/*.json") if path.is_file()]
    newest = max(models, key=lambda path: path.stat().st_mtime, default=None)
    made, seen = (0.0, ()) if newest is None else (newest.stat().st_mtime, _seen_by(newest))
    count = 0
    for case in study.labeled_cases():
        if case.label_origin in ("accepted", "corrected"):
            path = study.label_path(case.id)
            known = case.id in seen and path is not None and path.is_file()
            count += not known or path.stat().st_mtime > made
    return count


def _seen_by(model: Path) -> Collection[str]:
    """The cases whose labels a model has learned from; none where its file says nothing of it."""
    try:
        seen = read_json(model)["made_by"]["seen"]
    except (SFRError, OSError, KeyError, TypeError, ValueError):
        return ()
    return seen if isinstance(seen, list) else ()
