"""The cases of a study as the report shows them: result, numbers, state and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from SFRCore.errors import InputError, SFRError
from SFRCore.report.figures import doubt_picture, outline_picture, slice_size
from SFRCore.report.history import without_paths
from SFRCore.report.slices import choose_view
from SFRCore.runtime.files import read_json
from SFRCore.study import Case, CaseResult, Study
from SFRCore.volumes import read_image

DOUBTFUL = 0.8
SCORE_FILES = {"prediction": "scores.json", "pseudo_label": "scores_pseudo_labels.json"}
SOURCES = {"pseudo_label": "foundation model (pseudo-label)", "prediction": "student (prediction)"}


@dataclass(frozen=True)
class StructureRow:
    """One structure of a case; NaN where a number is not known. ``dice`` is measured on the reference."""

    value: int
    name: str
    color: tuple[int, int, int]
    expected_dice: float
    volume_ml: float
    dice: float


@dataclass(frozen=True)
class CaseRow:
    """A case and its newest result (None if there is none, as for most labeled cases)."""

    case: Case
    result: CaseResult | None
    structures: list[StructureRow]

    @property
    def expected_dice(self) -> float:
        """Smallest expected Dice over the structures; NaN without a result."""
        return self.result.expected_dice if self.result else math.nan

    @property
    def weakest(self) -> StructureRow | None:
        known = [row for row in self.structures if math.isfinite(row.expected_dice)]
        return min(known, key=lambda row: row.expected_dice, default=None)

    @property
    def is_open(self) -> bool:
        """Whether somebody still has to look at the result."""
        return self.result is not None and self.case.role == "unlabeled" and self.case.review == "unseen"

    @property
    def is_doubtful(self) -> bool:
        """Whether a structure was not found or is expected to agree poorly with an expert's outline."""
        return self.expected_dice < DOUBTFUL

    def finding(self) -> str:
        """What makes the case doubtful, in words; empty where nothing is known."""
        missing = [row.name for row in self.structures if row.expected_dice == 0]
        if missing:
            return f"{_and(missing)} {'was' if len(missing) == 1 else 'were'} not found"
        weakest = self.weakest
        if weakest is None:
            return ""
        return f"{weakest.name} is the least certain: expected Dice {weakest.expected_dice:.2f}"


@dataclass(frozen=True)
class CasePictures:
    """Data URIs of a case, ``width`` the pixels across its slice; ``doubt`` is empty without a confidence
    map.

    ``problem`` says why there is no picture at all.
    """

    outline: str = ""
    doubt: str = ""
    plane: str = ""
    number: int = 0
    count: int = 0
    width: int = 0
    has_reference: bool = False
    problem: str = ""


def read_scores(study: Study) -> dict[str, dict[str, Any]]:
    """The tables that evaluation left in the reports folder, by kind of result, predictions first."""
    tables = {}
    for kind, name in SCORE_FILES.items():
        try:
            content = read_json(study.reports_dir / name)
        except InputError:
            continue
        if isinstance(content, dict):
            tables[kind] = content
    return tables


def case_rows(study: Study, scores: Mapping[str, Mapping[str, Any]]) -> list[CaseRow]:
    """Every case, the most doubtful result first, then the cases without a result."""
    rows = []
    for case in study.cases.values():
        try:
            result = study.newest_result(case.id)
        except SFRError:
            result = None
        rows.append(CaseRow(case, result, _structure_rows(study, case, result, scores)))
    return sorted(rows, key=lambda row: (math.isnan(row.expected_dice), row.expected_dice, row.case.id))


def draw_case(
    study: Study, row: CaseRow, *, stack_axis: int | None = None, window: tuple[float, float] | None = None
) -> CasePictures:
    """Draw the most doubtful slice of a case; what cannot be read becomes ``problem``, never an exception."""
    case, result = row.case, row.result
    labeled = case.role == "labeled"
    try:
        image = read_image(study.image_path(case.id))
        label_path = study.label_path(case.id) if labeled or result is None else result.label_path
        label = _read(label_path)
        doubt = None if labeled or result is None else _doubt(result.confidence_path)
        reference = None if labeled else _read(study.reference_path(case.id))
        view = choose_view(
            image,
            label,
            doubt=doubt,
            reference=reference,
            doubtful=None if labeled or result is None else _doubtful(result),
            stack_axis=stack_axis,
            window=window,
        )
    except (SFRError, RuntimeError, OSError) as error:
        reason = error.message if isinstance(error, SFRError) else "a file of this case cannot be read"
        return CasePictures(problem=without_paths(reason, private_names(study, case)))
    colors = {structure.value: structure.color for structure in row.structures}
    return CasePictures(
        outline=outline_picture(view, colors),
        doubt=doubt_picture(view, colors, 1 - 1 / (len(row.structures) + 1)) if doubt is not None else "",
        plane=view.plane,
        number=view.number,
        count=view.count,
        width=slice_size(view)[0],
        has_reference=view.reference is not None,
    )


def private_names(study: Study, case: Case) -> list[str]:
    """The texts that would give away where a case's image lies or what it is called."""
    path = Path(case.image)
    names = [case.image, str(study.root / path), str(study.root)]
    return names + ([path.name] if path.name != case.id else [])


def left_out(study: Study) -> list[tuple[str, str]]:
    """(case id, reason) of every case that was not used."""
    reasons = []
    for case in study.cases.values():
        if case.problem:
            reason = without_paths(case.problem, private_names(study, case))
            reasons.append((case.id, reason[:1].upper() + reason[1:]))
        elif case.role == "ignored":
            reasons.append((case.id, "Set to be ignored."))
        elif case.review == "rejected":
            reasons.append((case.id, "Its segmentation was rejected in review, so it was not trained on."))
    return reasons


def _structure_rows(
    study: Study, case: Case, result: CaseResult | None, scores: Mapping[str, Mapping[str, Any]]
) -> list[StructureRow]:
    by_case = scores.get(result.kind if result else "", {}).get("cases") or {}
    scored = (by_case.get(case.id) or {}).get("structures") or {}
    rows = []
    for structure in study.structures:
        key = str(structure.value)
        expected = (result.expected_dice_by_structure if result else {}).get(key)
        volume = (result.volume_ml if result else {}).get(key)
        dice = (scored.get(structure.name) or {}).get("dice")
        rows.append(
            StructureRow(
                structure.value,
                structure.name,
                structure.color,
                number(expected),
                number(volume),
                number(dice),
            )
        )
    return rows


def number(value: Any) -> float:
    """``value`` as a float, NaN where it is not a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _doubtful(result: CaseResult) -> tuple[int, int] | None:
    """The file's (axis, index) of the most doubtful slice, where the result says across which axis it
    counts.
    """
    axis = result.extra.get("slice_axis")
    return (axis, result.doubtful_slice) if axis in (0, 1, 2) else None


def _read(path: Path | None) -> sitk.Image | None:
    return None if path is None else sitk.ReadImage(str(path))


def _doubt(path: Path) -> sitk.Image | None:
    """1 - confidence, from the stored uint8 (0..255 for 0..1); None where there is no confidence map."""
    if not path.is_file():
        return None
    stored = sitk.ReadImage(str(path))
    doubt = sitk.GetImageFromArray(1.0 - sitk.GetArrayFromImage(stored).astype(np.float32) / 255.0)
    doubt.CopyInformation(stored)
    return doubt


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
