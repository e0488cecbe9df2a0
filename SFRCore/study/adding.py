"""Adding cases: every image is read once, so that what cannot be used is refused now and not in the night."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import SimpleITK as sitk

from SFRCore.errors import DiskFull, InputError, SFRError
from SFRCore.study.case import Case
from SFRCore.study.intake import Batch, Intake, absolute, check_role
from SFRCore.study.pairing import IMAGE_SUFFIXES, OnImage, OnProblem, Pair, pair_files
from SFRCore.volumes import list_series, read_image

_log = logging.getLogger("SFRCore")


class Adding(Intake):
    """The part of a study that takes in images, with their labels and references."""

    def add(
        self,
        image: Path | str | sitk.Image,
        *,
        label: Path | str | sitk.Image | None = None,
        reference: Path | str | sitk.Image | None = None,
        role: str | None = None,
        id: str | None = None,
        resample: bool = False,
    ) -> Case:
        """Add one image: a file, a DICOM folder, or an image in memory (which is written to images/).

        A label makes the case labeled, unless `role` is test or unlabeled: it is then kept as the reference.
        The id is the file's stem, or case_0001 and so on for DICOM and images in memory. `resample` brings a
        label on another grid to the image's by nearest neighbour.

        Raises `InputError` where the image, the label or the id cannot be used; the study is then unchanged.
        """
        prepared = self._prepare(image, label=label, reference=reference, role=role, id=id, resample=resample)
        return self._commit_one(prepared)

    def add_dicom(
        self,
        folder: Path | str,
        *,
        series: int | str | None = None,
        label: Path | str | sitk.Image | None = None,
        reference: Path | str | sitk.Image | None = None,
        role: str | None = None,
        id: str | None = None,
        resample: bool = False,
    ) -> Case:
        """Add one DICOM series; nothing from its tags is kept, and its id is case_0001 and so on.

        A folder of one series is referred to; of several, the one picked by `series` (its number or UID) is
        copied to images/. Raises `InputError` as `add` does, and for several series with none picked.
        """
        place = absolute(folder)
        image: Path | sitk.Image = place
        if series is not None and len(list_series(place)) > 1:
            image = read_image(place, series=series)
        return self.add(image, label=label, reference=reference, role=role, id=id, resample=resample)

    def add_folder(
        self,
        folder: Path | str,
        *,
        labels: Path | str | None = None,
        role: str = "unlabeled",
        label_use: str = "label",
        on_problem: OnProblem | None = None,
        on_image: OnImage | None = None,
        resample: bool = False,
    ) -> list[Case]:
        """Add the images of a folder, and each folder of DICOM slices in it, in order of name.

        Labels are found by name in the folder `labels`, or beside the images. As `label` they make a case
        labeled where `role` is unlabeled or labeled; as `reference`, or for test cases, only evaluation reads
        them. `role` is that of the other cases. A file that cannot be used is reported through
        `on_problem(path, error)`, by default to the log, and left out. Images that the study has already are
        passed over. `on_image(path)` is called before each image is read: what it raises ends the adding, and
        the cases before it are in the study.

        Raises `InputError` where the folder cannot be read or holds no image, `DiskFull`.
        """
        self.check_writable()
        if label_use not in ("label", "reference"):
            raise InputError(f"'{label_use}' is not a use of labels.", hint="It can be label or reference.")
        check_role(role)
        report = on_problem or _log_problem
        place = absolute(folder)
        series = [found for found in _dicom_folders(place) if found.resolve() != self.root.resolve()]
        pairs = pair_files(place, None if labels is None else absolute(labels), report, folders=series)
        if not pairs:
            raise InputError(
                f"{place} holds no images.",
                hint="Give a folder of NRRD, NIfTI or MHA files, or of DICOM folders.",
            )
        present = {case.image: case for case in self.cases.values()}
        added: list[Case] = []
        with closing(Batch(self, added, report)) as batch:
            for pair in pairs:
                if on_image is not None:
                    on_image(pair.image)
                if self._passed_over(pair, present, report):
                    continue
                as_reference = label_use == "reference" or role == "test"
                own = "labeled" if pair.label is not None and not as_reference and role != "ignored" else role
                label, reference = (None, pair.label) if as_reference else (pair.label, None)
                try:
                    prepared = self._prepare(
                        pair.image, label=label, reference=reference, role=own, resample=resample
                    )
                except (DiskFull, MemoryError):
                    raise
                except Exception as error:
                    report(pair.image, error)
                    continue
                batch.append(prepared)
        return added

    def _passed_over(self, pair: Pair, present: dict[str, Case], report: OnProblem) -> bool:
        """Whether the image is in the study already; says so where its label is new."""
        case = present.get(self._stored_path(pair.image))
        if case is not None:
            if pair.label is not None and case.label is None and case.reference is None:
                message = f"{pair.label} was not added, because its image is case {case.id} already."
                hint = "Accept it as a label of that case, or set it as its reference."
                report(pair.label, InputError(message, hint=hint))
            return True
        return False


def _dicom_folders(folder: Path) -> list[Path]:
    """The folders in `folder` that hold DICOM slices; `folder` itself where the slices lie loose in it."""
    try:
        inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError:
        return []
    if _has_dicom(p for p in inside if p.is_file()):
        return [folder]
    return [p for p in inside if p.is_dir() and _has_dicom(f for f in p.rglob("*") if f.is_file())]


def _has_dicom(files: Iterable[Path]) -> bool:
    return any(_is_dicom(path) for path in files)


def _is_dicom(path: Path) -> bool:
    if path.name.lower().endswith(IMAGE_SUFFIXES):
        return False
    try:
        with open(path, "rb") as stream:
            return stream.read(132)[128:] == b"DICM" or path.suffix.lower() == ".dcm"
    except OSError:
        return False


def _log_problem(path: Path, error: Exception) -> None:
    _log.warning("%s", error if isinstance(error, SFRError) else f"{path} could not be added: {error}")
