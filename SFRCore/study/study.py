"""A study: everything about a cohort in one folder, shared by Slicer, the command line and a server."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from SFRCore.errors import DiskFull, InputError
from SFRCore.runtime.files import is_disk_full
from SFRCore.runtime.locks import FileLock
from SFRCore.study.adding import Adding
from SFRCore.study.document import Document
from SFRCore.study.folder import STUDY_FILE
from SFRCore.study.intake import absolute
from SFRCore.study.making import refuse_existing, refuse_half_made
from SFRCore.study.review import Review
from SFRCore.study.structures import Structure, as_structures
from SFRCore.study.transfer import Transfer


class Study(Adding, Review, Transfer):
    """A folder with study.json in it.

    >>> study = Study.create("~/la", structures={1: "Left atrium"})      # doctest: +SKIP
    >>> study.add("scan01.nrrd", label="scan01_la.nrrd")                  # doctest: +SKIP
    >>> study.add_folder("~/scans")                                       # doctest: +SKIP
    """

    @classmethod
    def create(
        cls,
        path: Path | str,
        *,
        structures: Mapping[int, str] | Iterable[Structure],
        preset: str = "auto",
        other_as_background: bool = False,
    ) -> Study:
        """Make a study in a new folder, or in one where nothing is called like a study's own folders.

        Raises `InputError` where there is a study already, or where the structures cannot be used, and
        `DiskFull`.
        """
        root = absolute(path)
        document = Document(as_structures(structures), preset=preset, other_as_background=other_as_background)
        if root.exists() and not root.is_dir():
            raise InputError(f"{root} is a file.", hint="Choose a new folder for the study.")
        refuse_existing(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_disk_full(error):
                raise DiskFull(
                    f"The folder {root} could not be made because the disk is full.",
                    hint="Free some space and try again.",
                ) from error
            reason = error.strerror or "no reason given"
            raise InputError(
                f"The folder {root} cannot be made: {reason}.", hint="Choose a folder that you may write in."
            ) from error
        with FileLock(root / ".lock", purpose="making the study"):
            refuse_existing(root)
            document.write(root / STUDY_FILE)
        return cls(root, document, readonly=False)

    @classmethod
    def open(cls, path: Path | str, *, readonly: bool = False) -> Study:
        """Open a study by its folder or its study.json, `readonly` where nothing can be written anyway.

        No file outside the study is touched: `outside_files()` lists those it uses. An accepted label whose
        process was killed before study.json named it is taken up.

        Raises `InputError` where there is no study, it is only half made, or its study.json is damaged,
        hostile or of a newer SFR.
        """
        root = absolute(path)
        if root.name == STUDY_FILE and root.is_file():
            root = root.parent
        if not root.is_dir():
            raise InputError(f"{root} does not exist.", hint="Check the name, or make a study with sfr init.")
        refuse_half_made(root)
        if not os.path.lexists(root / STUDY_FILE):
            raise InputError(
                f"{root} is not a study: it has no {STUDY_FILE}.",
                hint="Choose a study, or make one with sfr init.",
            )
        readonly = readonly or not os.access(root, os.W_OK)
        study = cls(root, Document.read(root / STUDY_FILE), readonly=readonly)
        study._recover()
        return study

    def _recover(self) -> None:
        if not self.readonly:
            self._sweep()
        if not self._unrecorded_labels():
            return
        if not self.readonly:
            try:
                with self.transaction("taking up accepted labels"):
                    self._take_up_labels()
                return
            except InputError as error:
                if error.code != "in_use":
                    raise
        self._take_up_labels()
