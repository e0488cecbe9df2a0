"""Labels: every accepted one is a new file; references are kept apart from them and never train anything."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from SFRCore.errors import InputError
from SFRCore.runtime.files import atomic_path, explained_write_error
from SFRCore.study.case import LABEL_FILE, ORIGINS, ROLES, Case
from SFRCore.study.folder import StudyFolder
from SFRCore.study.images import refuse_tested_twin
from SFRCore.volumes import Geometry, check_label, read_label

_REVIEW_OF = {"expert": "unseen", "accepted": "accepted", "corrected": "corrected"}


@dataclass(frozen=True)
class LabelVersion:
    """One accepted label of a case, as found on the disk. `time` is in seconds since 1970."""

    number: int
    origin: str
    path: Path
    time: float


class Labels(StudyFolder):
    """The part of a study that keeps labels, references and roles."""

    def label_path(self, id: str) -> Path | None:
        """The newest accepted label, in the study's values; None where there is none."""
        label = self.case(id).label
        return None if label is None else self._inside(label)

    def reference_path(self, id: str) -> Path | None:
        """The label that only evaluation and the report may read; None where there is none."""
        reference = self.case(id).reference
        return None if reference is None else self._inside(reference)

    def stray_labels(self) -> list[Path]:
        """Folders of labels that belong to no case: an adding that was cut off, or set aside by a new one."""
        folder = self.root / "labels"
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return [folder / name for name in names if name not in self.cases and any((folder / name).iterdir())]

    def is_blank(self, id: str) -> bool:
        """Whether the newest label of a case has no voxel of any structure; False where it has no label."""
        path = self.label_path(id)
        return path is not None and not sitk.GetArrayFromImage(read_label(path, self.values)).any()

    def history(self, id: str) -> list[LabelVersion]:
        """Every accepted label of a case that is on the disk, oldest first."""
        folder = self._inside(f"labels/{id}")
        found = []
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    match = LABEL_FILE.match(entry.name)
                    if match is None or not entry.is_file(follow_symlinks=False):
                        continue
                    status = entry.stat()
                    if status.st_size:  # an empty one is a name that a killed process had taken
                        version = LabelVersion(int(match[1]), match[2], Path(entry.path), status.st_mtime)
                        found.append(version)
        return sorted(found, key=lambda version: (version.number, version.time))

    def labeled_cases(self) -> list[Case]:
        """The cases that training learns labels from."""
        return [case for case in self.cases.values() if case.role == "labeled" and case.label is not None]

    def unlabeled_cases(self, *, for_training: bool = False) -> list[Case]:
        """The unlabeled cases; with `for_training` without those whose pseudo-label was rejected."""
        return [
            case
            for case in self.cases.values()
            if case.role == "unlabeled" and not (for_training and case.review == "rejected")
        ]

    def test_cases(self) -> list[Case]:
        """The cases that are kept for evaluation."""
        return [case for case in self.cases.values() if case.role == "test"]

    def set_role(self, ids: str | Iterable[str], role: str) -> None:
        """Give cases a role, all or none; an expert's label of a test case becomes its reference too.

        A reference that was made so is made anew of a newer label that an expert drew or corrected; one that
        was given by itself stays.

        Raises `InputError` for labeled where a case has no label, and where an image would both be learned
        from and tested on.
        """
        if role not in ROLES:
            raise InputError(f"'{role}' is not a role.", hint=f"A case can be {', '.join(ROLES)}.")
        wanted = [ids] if isinstance(ids, str) else list(ids)
        with self.transaction("changing roles"):
            found = [self.case(id) for id in wanted]
            for case in found:
                if role == "labeled" and case.label is None:
                    kept = " Its reference is kept for evaluation only." if case.reference else ""
                    raise InputError(
                        f"Case {case.id} has no label, so it cannot be a labeled case.{kept}",
                        hint="Add a label, or accept a pseudo-label or prediction of it.",
                    )
            for case in found:
                case.role = role
            for case in found:
                refuse_tested_twin(case, role, self.cases.values())
            for case in found if role == "test" else ():
                self._label_as_reference(case)

    def flag(self, id: str, problem: str | None) -> None:
        """Note why a case is left out; None takes the note away."""
        if self.case(id).problem != problem:
            with self.transaction("noting a problem"):
                self.case(id).problem = problem

    def set_reference(self, id: str, label: Path | str | sitk.Image, *, resample: bool = False) -> Path:
        """Keep a copy of `label`, in study values, that only evaluation and the report read.

        Raises `InputError` where it does not fit the image or the structures.
        """
        self.check_writable()
        id = self.case(id).id
        staged = self._stage(self._checked_label(label, self._geometry(id), resample))
        try:
            with self.transaction("adding a reference"):
                case = self.case(id)
                case.reference = self._place(staged, f"references/{id}.nrrd")
                case.reference_from = None
        finally:
            staged.unlink(missing_ok=True)
        return self._inside(f"references/{id}.nrrd")

    def accept_label(
        self, id: str, label: Path | str | sitk.Image, origin: str = "expert", *, resample: bool = False
    ) -> Path:
        """Make `label` the newest label of a case and the case labeled; earlier labels stay on the disk.

        The file is on the disk, under a number of its own, before study.json names it: a process killed
        between the two leaves a label that the next `open` takes up.

        Raises `InputError` for a test case and for the image of one, or where the label does not fit the
        image or the structures.
        """
        self.check_writable()
        if origin not in ORIGINS:
            raise InputError(f"'{origin}' is no origin of a label.", hint=f"It can be {', '.join(ORIGINS)}.")
        self._refuse_test(self.case(id))
        id = self.case(id).id
        if not isinstance(label, sitk.Image):
            self._refuse_reference(Path(label))
        staged = self._stage(self._checked_label(label, self._geometry(id), resample))
        try:
            with self.transaction("accepting a label"):
                case = self.case(id)
                self._refuse_test(case)
                refuse_tested_twin(case, "labeled", self.cases.values())
                relative = self._place_label(case, staged, origin)
                case.role = "labeled"
        finally:
            staged.unlink(missing_ok=True)
        return self._inside(relative)

    def _place_label(self, case: Case, staged: Path, origin: str) -> str:
        """Give a staged label the next number of `case` and record it; called under the lock."""
        newest = max((version.number for version in self.history(case.id)), default=0)
        for number in itertools.count(max(newest, case.label_number) + 1):
            relative = f"labels/{case.id}/{number:03d}-{origin}.nrrd"
            target = self._inside(relative)
            if not _take_name(target):
                continue
            try:
                self._place(staged, relative)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
            self._record_label(case, relative, origin)
            break
        return relative

    def _label_as_reference(self, case: Case) -> None:
        drawn = case.label if case.label_origin == "expert" else None
        if case.reference is not None:
            versions = [version for version in self.history(case.id) if version.origin != "accepted"]
            drawn = f"labels/{case.id}/{versions[-1].path.name}" if case.reference_from and versions else None
        if drawn is not None and drawn != case.reference_from and self._inside(drawn).is_file():
            with atomic_path(self._inside(f"references/{case.id}.nrrd")) as temporary:
                shutil.copyfile(self._inside(drawn), temporary)
            case.reference, case.reference_from = f"references/{case.id}.nrrd", drawn

    def _record_label(self, case: Case, relative: str, origin: str) -> None:
        case.label, case.label_origin, case.review = relative, origin, _REVIEW_OF[origin]

    def _unrecorded_labels(self) -> list[tuple[str, LabelVersion]]:
        """Accepted labels that are on the disk but not in study.json: their process was killed in between."""
        folder = self.root / "labels"
        if not folder.is_dir():
            return []
        present = {entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)}
        found = []
        for case in self.cases.values():
            if case.id in present:
                history = self.history(case.id)
                if history and history[-1].number > case.label_number:
                    found.append((case.id, history[-1]))
        return found

    def _take_up_labels(self) -> None:
        for id, version in self._unrecorded_labels():
            case = self.case(id)
            self._record_label(case, f"labels/{id}/{version.path.name}", version.origin)
            if case.role == "unlabeled":
                case.role = "labeled"

    def _checked_label(self, label: Path | str | sitk.Image, grid: Geometry, resample: bool) -> sitk.Image:
        accepted: dict[str, Any] = {
            "like": grid,
            "merged": self.merged_values,
            "other_as_background": self.other_as_background,
            "resample": resample,
        }
        if isinstance(label, sitk.Image):
            return check_label(label, self.values, **accepted)
        return read_label(Path(label).expanduser(), self.values, **accepted)

    def _refuse_reference(self, label: Path) -> None:
        if label.expanduser().resolve().is_relative_to((self.root / "references").resolve()):
            raise InputError(
                f"{label} is a reference, which may only be used to evaluate.",
                hint="To train with it, add the case with its own label file as a label.",
            )

    def _refuse_test(self, case: Case) -> None:
        if case.role == "test":
            raise InputError(
                f"Case {case.id} is a test case: with a label of its own it would be trained on.",
                hint="Make it unlabeled first, or add the label as its reference.",
            )


def _take_name(target: Path) -> bool:
    """Make an empty file, so that no label is overwritten even where a drive's locks do nothing; False where
    the name is taken. Raises DiskFull or InputError as `atomic_path` does.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        if isinstance(error, FileExistsError) and target.parent.is_dir():
            return False
        explained = explained_write_error(error, target, target)
        if explained is not None:
            raise explained from error
        raise
    return True
