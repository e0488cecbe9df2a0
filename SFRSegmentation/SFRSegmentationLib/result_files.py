"""The predictions of a study as tables and files for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import slicer

from SFRCore.errors import InputError, SFRError
from SFRCore.runtime.files import atomic_path, read_json, write_text
from SFRCore.study import CaseResult, Study
from SFRCore.volumes import read_label, write_volume

from . import study_nodes
from .segmentation_nodes import show_label

KIND = "prediction"


@dataclass(frozen=True)
class ResultRow:
    """One predicted case. `dice` by structure name, 0..1, only where it was scored after it was predicted."""

    id: str
    role: str
    result: CaseResult
    dice: dict[str, float]
    has_reference: bool

    @property
    def mean_dice(self) -> float | None:
        """The mean over the structures, None where it was not scored."""
        return sum(self.dice.values()) / len(self.dice) if self.dice else None


def result_rows(study: Study, ids: Collection[str] | None = None) -> list[ResultRow]:
    """The cases that have a prediction, in the order of the study; only those of ``ids`` where given."""
    path = study.reports_dir / "scores.json"
    scored, when = _scores(path), path.stat().st_mtime if path.is_file() else 0.0
    rows = []
    for case in study.cases.values():
        result = study.result(case.id, KIND) if ids is None or case.id in ids else None
        if result is not None:
            dice = scored.get(case.id, {}) if when >= result.time else {}
            rows.append(ResultRow(case.id, case.role, result, dice, case.reference is not None))
    return rows


def table_text(study: Study) -> str:
    """CSV with a row for each structure of each predicted case: volume in ml, expected Dice, Dice."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "role", "structure", "value", "volume_ml", "expected_dice", "dice"])
    for row in result_rows(study):
        for structure in study.structures:
            value = str(structure.value)
            volume = row.result.volume_ml.get(value)
            expected = row.result.expected_dice_by_structure.get(value)
            numbers = [_number(volume, 3), _number(expected, 4), _number(row.dice.get(structure.name), 4)]
            table.writerow([row.id, row.role, structure.name, value, *numbers])
    return text.getvalue()


def write_table(study: Study, path: Path) -> Path:
    """Write `table_text`; raises `DiskFull`, `InputError` where it cannot be written."""
    write_text(path, table_text(study))
    return path


def nifti_path(id: str, folder: Path) -> Path:
    """Where `write_nifti` writes a case."""
    return folder / f"{id}_seg.nii.gz"


def write_nifti(study: Study, id: str, folder: Path) -> Path:
    """Write a prediction as CASE_seg.nii.gz in the study's values, on the voxels of its image; a file that is
    there is replaced.
    """
    return write_volume(read_label(_result(study, id).label_path, study.values), nifti_path(id, folder))


def segmentation_path(id: str, folder: Path) -> Path:
    """Where `write_segmentation` writes a case."""
    return folder / f"{id}.seg.nrrd"


def write_segmentation(study: Study, id: str, folder: Path) -> Path:
    """Write a prediction as CASE.seg.nrrd with names, colours and terminology, through a node that is removed
    again; a file that is there is replaced.
    """
    label = read_label(_result(study, id).label_path, study.values)
    target = segmentation_path(id, folder)
    folder.mkdir(parents=True, exist_ok=True)
    node = show_label(label, study.structures, id)
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    try:
        with atomic_path(target) as temporary:
            storage.SetFileName(str(temporary))
            if not storage.WriteData(node):
                raise InputError(f"{target} could not be written.", hint="Choose a folder you may write in.")
    finally:
        study_nodes.remove(node)
        study_nodes.remove(storage)
    return target


def _result(study: Study, id: str) -> CaseResult:
    result = study.result(id, KIND)
    if result is None:
        raise InputError(f"Case {id} has no prediction yet.", hint="Run the study in step 3 first.")
    return result


def _scores(path: Path) -> dict[str, dict[str, float]]:
    """Dice by structure name of every case in scores.json; nothing where it is missing or damaged."""
    try:
        cases = read_json(path)["cases"]
        return {id: _dice(case["structures"]) for id, case in cases.items()}
    except (SFRError, KeyError, TypeError, AttributeError):
        return {}


def _dice(structures: dict[str, Any]) -> dict[str, float]:
    return {name: float(row["dice"]) for name, row in structures.items() if row.get("dice") is not None}


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}"
