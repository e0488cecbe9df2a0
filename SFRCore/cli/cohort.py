"""Taking a folder of images into a study: who is labeled, who is a test case, and what has to be left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from SFRCore.cli.display import Display
from SFRCore.cli.options import split_ids
from SFRCore.errors import InputError, SFRError
from SFRCore.runtime.files import atomic_path, sweep_temporary
from SFRCore.study import Case, Structure, Study
from SFRCore.study.case import case_id_from, same_id_key
from SFRCore.study.making import making
from SFRCore.study.pairing import Pair, image_stem, pair_files


class Cohort:
    """Images of a folder, paired with their labels, and the roles that they are to have.

    A file that cannot be used is warned of once, noted in ``problems`` (path: reason) and left out; a name
    that is no image's is warned of and noted in ``unknown``.
    """

    def __init__(self, images: Path, labels: Path | None, display: Display) -> None:
        self.images, self.display = images, display
        self.problems: dict[str, str] = {}
        self.unknown: list[str] = []
        self.pairs: dict[str, Pair] = {}
        for pair in pair_files(images, labels, self.report):
            id = case_id_from(image_stem(pair.image))
            if same_id_key(id) in {same_id_key(other) for other in self.pairs}:
                self.report(
                    pair.image, InputError(f"{pair.image} is a second image called {id}; the first is used.")
                )
            else:
                self.pairs[id] = pair
        self.pairs = dict(sorted(self.pairs.items()))
        self.labeled: list[str] = []
        self.test: list[str] = []
        self.wanted_labeled: int | None = None
        self.wanted_test = 0

    def report(self, path: Path, error: Exception) -> None:
        """Warn of a file that is left out, once."""
        message = error.message if isinstance(error, SFRError) else f"{path} cannot be used: {error}"
        if str(path) not in self.problems:
            self.problems[str(path)] = message
            self.display.warn(f"{message} It is left out.", hint=getattr(error, "hint", ""))

    def assign(self, *, labeled: str | None, num_labeled: int | None, test: str | None) -> None:
        """Choose the roles; raises InputError for a choice that contradicts itself or asks for too many."""
        if labeled is not None and num_labeled is not None:
            raise InputError(
                "--labeled and --num-labeled cannot be given together.", hint="Give one of them."
            )
        if num_labeled is not None and num_labeled < 0:
            raise InputError("--num-labeled cannot be negative.")
        test = (test or "").strip()
        if test.isdecimal():
            self.wanted_test = int(test)
        elif test:
            self.test = self._find(test, "--test")
        if labeled is not None:
            self.labeled = self._find(labeled, "--labeled")
        elif num_labeled is None:
            self.labeled = [id for id, pair in self.pairs.items() if pair.label is not None]
        both = set(self.labeled) & set(self.test)
        if both and labeled is not None:
            raise InputError(f"Case {min(both)} cannot be both labeled and a test case.")
        free = [id for id in self.pairs if labeled is None or id not in self.labeled]
        if self.wanted_test + (num_labeled or 0) > len(free) > 0:
            raise InputError(
                f"{self.wanted_test} test and {num_labeled or 0} labeled cases are more than the {len(free)} "
                f"images in {self.images} that are free for it."
            )
        if self.wanted_test:
            self.test = free[-self.wanted_test :]
        self.labeled = [id for id in self.labeled if id not in self.test]
        self.wanted_labeled = num_labeled

    def make(
        self,
        folder: Path,
        structures: list[Structure],
        *,
        preset: str,
        other_as_background: bool,
        resample: bool,
    ) -> Study:
        """Create the study and add what can be used; raises InputError, leaving no study, if nothing can.

        An init that is cut off can be given again: a new folder appears when the study is complete, and in
        one that was there what is half made is known by a mark.
        """
        create = partial(
            Study.create, structures=structures, preset=preset, other_as_background=other_as_background
        )
        folder = Path(os.path.abspath(folder.expanduser()))
        if os.path.lexists(folder) and not _is_empty_folder(folder):
            with making(folder):
                study = create(folder)
                self._fill(study, resample)
            return study
        sweep_temporary(folder.parent)
        with atomic_path(folder) as building:
            try:
                self._fill(create(building), resample)
            except SFRError as error:
                error.message = error.message.replace(str(building), str(folder))
                error.hint = error.hint.replace(str(building), str(folder))
                raise
        return Study.open(folder)

    def _fill(self, study: Study, resample: bool) -> None:
        if self.pairs:
            self._add_pairs(study, resample)
        else:
            study.add_folder(self.images, on_problem=self.report)
        if not study.cases:
            raise InputError(
                f"None of the images in {self.images} can be used.",
                hint="The warnings say what is wrong with each.",
            )
        if self.labeled and not study.labeled_cases():
            raise InputError(
                "None of the cases chosen as labeled has a label that can be used.",
                hint="The warnings say what is wrong with each.",
            )

    def _add_pairs(self, study: Study, resample: bool) -> None:
        counted = self.wanted_labeled is not None
        learned = 0
        for number, (id, pair) in enumerate(self.pairs.items(), start=1):
            role = "unlabeled"
            if id in self.test:
                role = "test"
            elif id in self.labeled or (
                counted and learned < (self.wanted_labeled or 0) and pair.label is not None
            ):
                role = "labeled"
            try:
                if role == "labeled" and pair.label is None:
                    raise InputError(f"{pair.image} is to be labeled, but no label belongs to it by name.")
                study.add(pair.image, label=pair.label, role=role, resample=resample)
            except InputError as error:
                self.report(pair.image, error)
            else:
                learned += role == "labeled"
            self.display(
                {
                    "event": "progress",
                    "stage": "init",
                    "doing": "checking volumes",
                    "step": number,
                    "total": len(self.pairs),
                }
            )
        if counted and learned < (self.wanted_labeled or 0):
            self.display.warn(
                f"Only {learned} of the {self.wanted_labeled} labeled cases asked for have a usable label."
            )
        missing = self.wanted_test - len(study.test_cases())
        if missing > 0:
            study.set_role([case.id for case in study.unlabeled_cases()][-missing:], "test")

    def _find(self, text: str, option: str) -> list[str]:
        """The cases that a list names, ``a,b`` or a file with one a line; unknown ones are warned of.

        Raises InputError where none is known: a file's name that was mistyped looks like an unknown case.
        """
        path = Path(text).expanduser()
        names = _listed_in(path) if path.is_file() else split_ids(text)
        keys = {same_id_key(id): id for id in self.pairs}
        found: list[str] = []
        unknown: list[str] = []
        for name in names:
            id = keys.get(same_id_key(name)) or keys.get(same_id_key(image_stem(name)))
            if id is None:
                unknown.append(name)
            elif id not in found:
                found.append(id)
        if not found:
            given = f"in {path}" if path.is_file() else f"by {option} {text}"
            no_file = "" if path.is_file() else ", and there is no file of that name"
            raise InputError(
                f"None of the cases named {given} is an image in {self.images}{no_file}.",
                hint="Cases are called like their files, without the ending.",
            )
        for name in unknown:
            self.display.warn(f"{option} names {name}, which is no image in {self.images}.")
        self.unknown += unknown
        return found


def _listed_in(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as a list of cases.", hint="Give a text file with one case a line."
        ) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def warn_of_blank_labels(study: Study, cases: Sequence[Case], display: Display) -> None:
    """Say of which labeled cases the label has no voxel of any structure: that is rare, and may be a slip."""
    for case in cases:
        if case.role == "labeled" and study.is_blank(case.id):
            display.warn(
                f"The label of case {case.id} is empty: no voxel belongs to a structure. It teaches that "
                "nothing is there; give another label if that is wrong."
            )


def add_paths(
    study: Study,
    paths: Sequence[Path],
    display: Display,
    *,
    label: Path | None,
    labels: Path | None,
    role: str | None,
    as_reference: bool,
    id: str | None,
    series: str | None,
    resample: bool,
) -> tuple[list[Case], dict[str, str]]:
    """Add files and folders to a study; returns the new cases and what was left out (path: reason).

    Raises InputError when nothing could be added.
    """
    problems: dict[str, str] = {}
    first: list[SFRError] = []

    def report(path: Path, error: Exception) -> None:
        explained = error if isinstance(error, SFRError) else InputError(f"{path} cannot be used: {error}")
        first.append(explained)
        problems[str(path)] = explained.message
        if len(paths) > 1 or path != paths[0]:
            display.warn(f"{explained.message} It is left out.", hint=explained.hint)

    added: list[Case] = []
    one: dict[str, Any] = {"role": role, "id": id, "resample": resample}
    one["reference" if as_reference else "label"] = label
    for path in paths:
        try:
            if path.is_dir() and (series is not None or label is not None or id is not None):
                picked = (
                    int(series) if series is not None and series.isdecimal() and len(series) < 6 else series
                )
                added.append(study.add_dicom(path, series=picked, **one))
            elif path.is_dir():
                use = "reference" if as_reference else "label"
                kind = "unlabeled" if role in (None, "labeled") else role
                added += study.add_folder(
                    path,
                    labels=labels,
                    role=kind or "unlabeled",
                    label_use=use,
                    on_problem=report,
                    resample=resample,
                )
            else:
                added.append(study.add(path, **one))
        except InputError as error:
            report(path, error)
    if not added and first:
        raise (
            first[0]
            if len(first) == 1
            else InputError(
                f"None of the images could be added to {study.root}.",
                hint="The warnings say what is wrong with each.",
            )
        )
    return added, problems
