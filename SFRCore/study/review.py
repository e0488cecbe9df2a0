"""Review: what to look at first, drafts of corrections, and what a person decides on each case."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SFRCore.errors import InputError
from SFRCore.study.folder import file_stamp, without_tags
from SFRCore.study.labels import Labels
from SFRCore.study.results import KINDS, CaseResult, Results
from SFRCore.volumes import read_label, write_volume


@dataclass(frozen=True)
class ReviewItem:
    """One case of the queue; `doubtful_slice` is the slice with the most doubt, as its result counts them."""

    id: str
    expected_dice: float
    kind: str
    doubtful_slice: int
    review: str


class Review(Labels, Results):
    """The part of a study in which a person accepts, corrects or rejects."""

    def review_queue(self, ids: Collection[str] | None = None) -> list[ReviewItem]:
        """Unlabeled cases that have a result and were not rejected, the smallest expected Dice first; only
        those of ``ids`` where they are given.
        """
        queue = []
        for case in self.unlabeled_cases(for_training=True):
            if ids is not None and case.id not in ids:
                continue
            result = self.newest_result(case.id)
            if result is not None:
                item = ReviewItem(
                    case.id, result.expected_dice, result.kind, result.doubtful_slice, case.review
                )
                queue.append(item)
        return sorted(queue, key=lambda item: item.expected_dice)

    def accept(self, id: str, source: str | None = None) -> Path:
        """Make the pseudo-label or the prediction (by default the newest of them) a label of the case.

        Where that very result was accepted already, its label is returned and none is made.

        Raises `InputError` where there is none, or as `accept_label` does.
        """
        if source is not None and source not in KINDS:
            raise InputError(f"'{source}' cannot be accepted.", hint=f"Accept a {' or a '.join(KINDS)}.")
        result = self.newest_result(id) if source is None else self.result(id, source)
        if result is None:
            what = "result" if source is None else source.replace("_", "-")
            raise InputError(f"Case {id} has no {what} to accept.", hint="Run the study, or draw a label.")
        accepted = self._accepted_before(id, result)
        return accepted or self.accept_label(id, result.label_path, "accepted")

    def _accepted_before(self, id: str, result: CaseResult) -> Path | None:
        """The newest label where it is this result, accepted as it is."""
        case, path = self.case(id), self.label_path(id)
        if case.role != "labeled" or case.label_origin != "accepted" or path is None or not path.is_file():
            return None
        before, now = (
            sitk.GetArrayFromImage(read_label(file, self.values)) for file in (path, result.label_path)
        )
        return path if np.array_equal(before, now) else None

    def accept_corrected(self, id: str, label: Path | str | sitk.Image | None = None) -> Path:
        """Make `label`, by default the draft, a label of origin corrected; the draft is then discarded.

        Where `label` is a file of its own the draft stays: it may hold other edits.

        Raises `InputError` where neither is there, or as `accept_label` does; the draft then stays.
        """
        draft = self.draft(id)
        own = isinstance(label, str | Path) and (draft is None or not _same(Path(label), draft))
        before = file_stamp(draft) if draft is not None else None
        source = draft if label is None else label
        if source is None:
            raise InputError(
                f"Case {id} has no corrections to accept.", hint="Correct its segmentation first."
            )
        accepted = self.accept_label(id, source, "corrected")
        if (
            draft is not None and not own and file_stamp(draft) == before
        ):  # else edited meanwhile: not yet accepted
            self.discard_draft(id)
        return accepted

    def reject(self, id: str) -> None:
        """Keep what the models say of a case out of training; a label that was only accepted is taken back.

        The label file stays in the history. Raises `InputError` where the label is by a person's hand, or the
        case is not up for review.
        """
        with self.transaction("rejecting a result"):
            case = self.case(id)
            if case.role == "labeled" and case.label_origin != "accepted":
                raise InputError(
                    f"Case {id} has a label drawn or corrected by hand, which cannot be rejected.",
                    hint="Give the case another role if it should not be trained on.",
                )
            if case.role not in ("labeled", "unlabeled"):
                raise InputError(f"Case {id} is {case.role}, so it is not up for review.")
            case.role, case.review = "unlabeled", "rejected"

    def unreject(self, id: str) -> None:
        """Put a rejected case back into the queue; without effect on others."""
        with self.transaction("taking back a rejection"):
            case = self.case(id)
            if case.review == "rejected":
                case.review = "unseen"

    def save_draft(self, id: str, label: sitk.Image) -> Path:
        """Keep edits that are not accepted yet; they are not checked, so that nothing drawn is ever lost."""
        self.check_writable()
        return write_volume(without_tags(label), self._draft_path(id))

    def draft(self, id: str) -> Path | None:
        """The edits of a case that are not accepted yet; None where there are none."""
        path = self._draft_path(id)
        return path if path.is_file() else None

    def discard_draft(self, id: str) -> None:
        """Remove the edits of a case that are not accepted."""
        self.check_writable()
        self._draft_path(id).unlink(missing_ok=True)

    def _draft_path(self, id: str) -> Path:
        return self._inside(f"drafts/{self.case(id).id}/draft.nrrd")


def _same(one: Path, other: Path) -> bool:
    return one.expanduser().resolve() == other.resolve()
