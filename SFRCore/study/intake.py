"""Taking cases in: read, check and stage without the lock, then give each its place under it."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from SFRCore.errors import InputError
from SFRCore.runtime.files import file_identity
from SFRCore.study.case import ROLES, Case, case_id_from, check_case_id, same_id_key
from SFRCore.study.folder import without_tags
from SFRCore.study.images import refuse_tested_twin, twins
from SFRCore.study.labels import Labels
from SFRCore.study.pairing import OnProblem, image_stem
from SFRCore.volumes import Geometry, VolumeError, read_image

_BATCH_CASES = 50
_BATCH_SECONDS = 5.0
_NUMBERED = re.compile(r"^case_(\d+)$", re.IGNORECASE)


@dataclass
class Prepared:
    """A case that was checked, its files staged; only its place in the study is still to be taken. With
    `again` its image may be that of another case.
    """

    id: str | None
    role: str
    source: Path | None
    image: str | None = None
    identity: dict[str, Any] | None = None
    again: bool = False
    staged: dict[str, Path] = field(default_factory=dict)

    def discard(self) -> None:
        """Remove what was staged and not placed."""
        for path in self.staged.values():
            path.unlink(missing_ok=True)


class Intake(Labels):
    """The part of a study that checks what is added and takes it in."""

    def _prepare(
        self,
        image: Path | str | sitk.Image,
        *,
        label: Path | str | sitk.Image | None = None,
        reference: Path | str | sitk.Image | None = None,
        role: str | None = None,
        id: str | None = None,
        resample: bool = False,
    ) -> Prepared:
        """Read and check everything, and stage what is to be written, without touching study.json."""
        self.check_writable()
        source = None if isinstance(image, sitk.Image) else absolute(image)
        role = role or ("unlabeled" if label is None else "labeled")
        check_role(role)
        if label is not None and role in ("test", "unlabeled"):
            if reference is not None:
                raise InputError(
                    f"A case that is {role} takes one label, as its reference, and two were given.",
                    hint="Leave one out, or add the case as labeled.",
                )
            label, reference = None, label
        if role == "labeled" and label is None:
            what = "The image" if source is None else str(source)
            raise InputError(
                f"{what} was not added, because a labeled case needs a label and it has none.",
                hint="Give its label, or add it as unlabeled.",
            )
        wanted = check_case_id(id) if id is not None else _id_of(source)
        if wanted in self.cases:
            raise _taken(wanted, source)
        if source is not None and id is None:
            self._refuse_twice(source)
        prepared = Prepared(wanted, role, source, again=id is not None)
        try:
            if isinstance(image, sitk.Image):
                prepared.staged["image"] = self._stage_image(image)
                grid = Geometry.of(image)
                prepared.identity = file_identity(prepared.staged["image"])
            else:
                path = absolute(image)
                grid = Geometry.of(read_image(path))
                prepared.image, prepared.identity = self._stored_path(path), file_identity(path)
            if label is not None:
                if not isinstance(label, sitk.Image):
                    self._refuse_reference(Path(label))
                prepared.staged["label"] = self._stage(self._checked_label(label, grid, resample))
            if reference is not None:
                prepared.staged["reference"] = self._stage(self._checked_label(reference, grid, resample))
        except BaseException:
            prepared.discard()
            raise
        return prepared

    def _commit_one(self, prepared: Prepared) -> Case:
        try:
            with self.transaction("adding a case"):
                return self._take_in(prepared, {same_id_key(id) for id in self.cases})
        finally:
            prepared.discard()

    def _take_in(self, prepared: Prepared, taken: set[str]) -> Case:
        """Give a prepared case its place; called under the lock.

        `taken` holds the keys of all ids, and gets the new one. Raises `InputError` where the id is taken, or
        the image is that of another case.
        """
        id = prepared.id or self._next_number()
        if same_id_key(id) in taken:
            raise _taken(id, prepared.source)
        case = Case(id, prepared.image or "", prepared.role, image_identity=prepared.identity)
        refuse_tested_twin(case, case.role, self.cases.values(), source=prepared.source)
        if not prepared.again and (same := twins(case, self.cases.values())):
            raise _twice(prepared.source, same[0])
        self._set_aside(f"labels/{id}")
        if not case.image:
            case.image = self._place(prepared.staged["image"], self._unused(f"images/{id}", ".nrrd"))
        if "label" in prepared.staged:
            self._place_label(case, prepared.staged["label"], "expert")
        if "reference" in prepared.staged:
            case.reference = self._place(prepared.staged["reference"], f"references/{id}.nrrd")
        self.cases[id] = case
        taken.add(same_id_key(id))
        if case.outside:
            self._listed.add(case.image)
        return case

    def _refuse_twice(self, source: Path) -> None:
        stored = self._stored_path(source)
        twin = next((case for case in self.cases.values() if case.image == stored), None)
        if twin is not None:
            raise _twice(source, twin)

    def _next_number(self) -> str:
        numbers = [int(match[1]) for id in self.cases if (match := _NUMBERED.match(id))]
        return f"case_{max(numbers, default=0) + 1:04d}"

    def _stored_path(self, source: Path) -> str:
        """Relative to the study for what lies in it, else absolute; a link there counts as its target."""
        real, root = source.resolve(), self.root.resolve()
        if real.is_relative_to(root):
            return real.relative_to(root).as_posix()
        return str(real if source.is_relative_to(self.root) else source)

    def _unused(self, base: str, suffix: str) -> str:
        """`base` with `suffix`, and a number between where a file has that name: it may be the user's."""
        relative, number = base + suffix, 2
        while os.path.lexists(self.root / relative):
            relative, number = f"{base}-{number}{suffix}", number + 1
        return relative

    def _set_aside(self, relative: str) -> None:
        """Rename a folder that an adding which was cut off has left: its labels are not the new case's."""
        folder = self._inside(relative)
        if folder.is_dir():
            folder.rename(folder.with_name(f".left-{folder.name}-{time.time_ns()}"))

    def _stage_image(self, image: sitk.Image) -> Path:
        staged = self._stage(without_tags(image))
        try:
            read_image(staged)
        except VolumeError as error:
            staged.unlink(missing_ok=True)
            message = error.message.replace(str(staged), "The image in memory")
            raise VolumeError(message, hint=error.hint) from error
        return staged


class Batch:
    """Prepared cases that are taken in together: one write of study.json for many."""

    def __init__(self, study: Intake, added: list[Case], report: OnProblem) -> None:
        self.study, self.added, self.report = study, added, report
        self.waiting: list[Prepared] = []
        self.since = time.monotonic()

    def append(self, prepared: Prepared) -> None:
        """Add a prepared case; the batch is committed when it is large or old."""
        self.waiting.append(prepared)
        if len(self.waiting) >= _BATCH_CASES or time.monotonic() - self.since > _BATCH_SECONDS:
            self.commit()

    def close(self) -> None:
        """Take in what still waits."""
        self.commit()

    def commit(self) -> None:
        """Take the waiting cases in; one whose id was taken meanwhile is reported and left out."""
        waiting, self.waiting = self.waiting, []
        cases: list[Case] = []
        try:
            if waiting:
                with self.study.transaction("adding cases"):
                    taken = {same_id_key(id) for id in self.study.cases}
                    for prepared in waiting:
                        try:
                            cases.append(self.study._take_in(prepared, taken))
                        except InputError as error:
                            self.report(prepared.source or self.study.root, error)
                self.added.extend(cases)
        finally:
            for prepared in waiting:
                prepared.discard()
            self.since = time.monotonic()


def check_role(role: str) -> None:
    if role not in ROLES:
        raise InputError(f"'{role}' is not a role.", hint=f"A case can be {', '.join(ROLES)}.")


def absolute(path: Path | str) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))


def _id_of(source: Path | None) -> str | None:
    """The id by a file's name; None for images in memory and for DICOM, whose names may be the patient's."""
    if source is None or source.is_dir() or source.suffix.lower() in (".dcm", ".ima", ""):
        return None
    return case_id_from(image_stem(source))


def _twice(source: Path | None, twin: Case) -> InputError:
    what = "The image" if source is None else str(source)
    message = f"{what} was not added, because its image is case {twin.id} of the study already."
    return InputError(
        message, hint="To have it twice, add it by itself with an id of its own.", code="case_exists"
    )


def _taken(id: str, source: Path | None) -> InputError:
    what = "The image" if source is None else str(source)
    message = f"{what} was not added, because the study already has a case called {id}."
    return InputError(message, hint="Give the new one another id.", code="case_exists")
