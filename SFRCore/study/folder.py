"""The study's folder: its file, its lock, its paths, and who may write where."""

from __future__ import annotations

import itertools
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import SimpleITK as sitk

from SFRCore.errors import InputError
from SFRCore.runtime.files import atomic_path, left_behind, process_mark, sweep_temporary
from SFRCore.runtime.locks import FileLock
from SFRCore.study.case import Case, check_case_id, is_absolute
from SFRCore.study.document import SCHEMA_VERSION, Document
from SFRCore.study.structures import Structure
from SFRCore.volumes import Geometry, image_info, write_volume

STUDY_FILE = "study.json"
OWN_FOLDERS = (
    "images", "labels", "references", "drafts", "pseudo_labels", "predictions", "confidence", "models",
    "runs", "cache", "reports", "exports", "comparisons",
)  # fmt: skip
FileStamp = tuple[int, int, int]
_STAGED = re.compile(r"(\d+)-([0-9a-f]{6})-\d+-\d+\.nrrd")
_STAGED_AGE = 24 * 3600.0
_staged = itertools.count()


class StudyFolder:
    """What every part of a study shares: the description in study.json, the lock around it, and paths.

    `cases` is a dict in order; its `Case` objects are changed within `transaction()` only, and are made anew
    by each transaction and `reload()`.
    """

    schema_version = SCHEMA_VERSION

    def __init__(self, root: Path, document: Document, *, readonly: bool) -> None:
        self.root = root
        self.readonly = readonly
        self._document = document
        self._guard = threading.RLock()
        self._depth = 0
        self._listed = self._outside_now()

    @property
    def structures(self) -> list[Structure]:
        """The structures in ascending order of value."""
        return self._document.structures

    @property
    def values(self) -> tuple[int, ...]:
        """The structures' values in label files, ascending, without the background."""
        return tuple(structure.value for structure in self.structures)

    @property
    def merged_values(self) -> dict[int, int]:
        """Further values in labels that the study is given, each with that of the structure it belongs to."""
        return {value: structure.value for structure in self.structures for value in structure.also}

    @property
    def preset(self) -> str:
        """The name of the preset that settings start from."""
        return self._document.preset

    @preset.setter
    def preset(self, name: str) -> None:
        with self.transaction("choosing a preset"):
            self._document.preset = name

    @property
    def other_as_background(self) -> bool:
        """Whether values in labels that no structure has are taken as background."""
        return self._document.other_as_background

    @other_as_background.setter
    def other_as_background(self, value: bool) -> None:
        with self.transaction("choosing what is background"):
            self._document.other_as_background = value

    @property
    def cases(self) -> dict[str, Case]:
        """The cases by id, in the order they were added."""
        return self._document.cases

    @property
    def models_dir(self) -> Path:
        """Where trained models are kept."""
        return self.root / "models"

    @property
    def runs_dir(self) -> Path:
        """Where each run keeps its events, log and checkpoints."""
        return self.root / "runs"

    @property
    def cache_dir(self) -> Path:
        """Preprocessed volumes; may be deleted at any time."""
        return self.root / "cache"

    @property
    def reports_dir(self) -> Path:
        """Where reports and scores are written."""
        return self.root / "reports"

    @property
    def exports_dir(self) -> Path:
        """Where exported models and results are written."""
        return self.root / "exports"

    def case(self, id: str) -> Case:
        """The case called `id`; raises `InputError` where there is none."""
        with suppress(InputError):
            found = self.cases.get(id) or self.cases.get(check_case_id(id))
            if found is not None:
                return found
        raise InputError(
            f"The study {self.root} has no case called '{id}'.", hint="Check the list of its cases."
        )

    def outside_files(self) -> list[Path]:
        """What the cases use outside the study, as listed when it was opened or reloaded."""
        return [Path(case.image) for case in self.cases.values() if case.image in self._listed]

    def image_path(self, id: str) -> Path:
        """Where the image of a case is; it need not exist.

        Raises `InputError` for a link that leads out of the study, for a file outside it that was not listed
        when the study was opened, and for a path of another operating system.
        """
        image = self.case(id).image
        if not is_absolute(image):
            return self._inside(image)
        if image not in self._listed:
            raise InputError(
                f"The image {image} of case {id} was put into the study after it was opened here.",
                hint="Open the study again to see which files it uses.",
            )
        if not Path(image).is_absolute():
            raise InputError(
                f"The image {image} of case {id} is on a computer with another operating system.",
                hint="Copy the images over; 'Find moved images' in Slicer, or sfr relink, finds them.",
            )
        return Path(image)

    def reload(self) -> None:
        """Read study.json again; files outside the study that it now names are listed from then on."""
        with self._guard:
            if not self._depth:
                self._document = Document.read(self.root / STUDY_FILE)
                self._listed |= self._outside_now()

    @contextmanager
    def transaction(self, purpose: str = "changing the list of cases") -> Iterator[Self]:
        """Lock, read study.json anew, let the body change it, check it, and write it whole.

        Nothing is changed when the body raises. A transaction within a transaction joins it. The lock is held
        by the whole body, so long work is done before.

        Raises `InputError` on a read-only study, or when another process keeps the lock.
        """
        self.check_writable()
        with self._guard:
            if self._depth:
                yield self
                return
            with FileLock(self._inside(".lock"), purpose=purpose):
                self._document = Document.read(self.root / STUDY_FILE)
                before = self._document.to_dict()
                outdated = self._document.stored_version != SCHEMA_VERSION
                self._depth = 1
                try:
                    yield self
                    if outdated or self._document.to_dict() != before:
                        self._document.write(self.root / STUDY_FILE)
                except BaseException:
                    self._document = Document.from_dict(before)
                    raise
                finally:
                    self._depth = 0

    def check_writable(self) -> None:
        """Raise `InputError` where the study is open for reading only."""
        if self.readonly:
            raise InputError(
                f"The study {self.root} is read-only and cannot be changed.",
                hint="Copy it to a folder of your own, or ask for write access.",
                code="read_only",
            )

    def _outside_now(self) -> set[str]:
        return {case.image for case in self.cases.values() if case.outside}

    def _inside(self, relative: str) -> Path:
        """The path of a file of the study; raises `InputError` where a link leads out of it."""
        path = self.root / relative
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise InputError(
                f"{path} is a link to a place outside the study.",
                hint="Put the file itself in its place, or add it by its own path.",
            )
        return path

    def _geometry(self, id: str) -> Geometry:
        """The voxel grid of a case's image, from its header."""
        return image_info(self.image_path(id)).geometry

    def _stage(self, image: sitk.Image) -> Path:
        """Write a volume where no other process sees it, to be moved into place under the lock."""
        name = f"{process_mark()}-{time.time_ns()}-{next(_staged)}.nrrd"
        return write_volume(image, self._inside(f".staging/{name}"))

    def _place(self, staged: Path, relative: str) -> str:
        """Move a staged file to its place, durably, over what was there."""
        with atomic_path(self._inside(relative)) as temporary:
            os.replace(staged, temporary)
        return relative

    def _sweep(self) -> None:
        """Remove what killed processes had staged or half-written; the cache looks after its own."""
        for left in self.root.glob(".staging/*"):
            made = _STAGED.fullmatch(left.name)
            with suppress(OSError):
                old = time.time() - left.stat().st_mtime > _STAGED_AGE
                if left_behind(left, int(made[1]), made[2]) if made else old:
                    left.unlink()
        sweep_temporary(self.root)
        for name in (".staging", *OWN_FOLDERS):
            folder = self.root / name
            if name != "cache" and not folder.is_symlink():
                sweep_temporary(folder, recursive=True)


def file_stamp(path: Path) -> FileStamp | None:
    """What changes whenever SFR writes a file anew; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def without_tags(image: sitk.Image) -> sitk.Image:
    """A copy without meta-data, which may hold a patient's name."""
    copy = sitk.Image(image)
    copy.MakeUnique()  # SimpleITK erases the tags of all images that share the voxels
    for key in copy.GetMetaDataKeys():
        copy.EraseMetaData(key)
    return copy
