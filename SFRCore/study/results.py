"""Results: what a run left for each case (label map, confidence, numbers), and the tables made of them."""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from SFRCore.errors import InputError
from SFRCore.runtime.files import read_json, write_json, write_text
from SFRCore.study.document import Document
from SFRCore.study.folder import FileStamp, StudyFolder, file_stamp
from SFRCore.volumes import same_geometry, write_volume

FORMAT_VERSION = 1
_FOLDERS = {
    "pseudo_label": ("pseudo_labels", "confidence"),
    "prediction": ("predictions", "predictions/confidence"),
}
_TABLES = {"pseudo_label": "confidence/confidence.csv", "prediction": "predictions/confidence.csv"}
_KNOWN = {
    "format_version", "id", "kind", "mean_confidence", "expected_dice", "expected_dice_by_structure",
    "volume_ml", "slices", "doubtful_slice", "made_by", "time",
}  # fmt: skip
_COLUMNS = ("case", "slice", "mean_confidence", "doubt", "case_mean_confidence", "case_expected_dice")

KINDS = tuple(_FOLDERS)


@dataclass(frozen=True)
class CaseResult:
    """What one model says about one case.

    `label_path` is a label map in study values, `confidence_path` uint8 with 0..255 for 0..1, both in the
    image's own grid. `mean_confidence` is the mean over voxels of the largest probability (SFR, Eq. 8);
    `expected_dice` the smallest over the structures of 2 sum(p y) / (sum(p) + sum(y)), 0 where none is found.
    `slices` holds index, mean_confidence and doubt of each slice, `time` is in seconds since 1970.
    """

    kind: str
    label_path: Path
    confidence_path: Path
    mean_confidence: float
    expected_dice: float
    expected_dice_by_structure: dict[str, float]
    volume_ml: dict[str, float]
    slices: list[dict[str, Any]]
    doubtful_slice: int
    made_by: dict[str, Any]
    time: float
    extra: dict[str, Any] = field(default_factory=dict)


class Results(StudyFolder):
    """The part of a study that keeps the foundation model's pseudo-labels and the student's predictions."""

    def __init__(self, root: Path, document: Document, *, readonly: bool) -> None:
        super().__init__(root, document, readonly=readonly)
        self._read_results: dict[tuple[str, str], tuple[FileStamp, CaseResult]] = {}

    def result_paths(self, id: str, kind: str) -> tuple[Path, Path, Path]:
        """Where the label map, the confidence map and the JSON of a result are; they need not exist."""
        if kind not in _FOLDERS:
            raise _no_kind(kind)
        id = self.case(id).id
        labels, confidence = _FOLDERS[kind]
        return (
            self._inside(f"{labels}/{id}.nrrd"),
            self._inside(f"{confidence}/{id}.nrrd"),
            self._inside(f"{labels}/{id}.json"),
        )

    def result(self, id: str, kind: str) -> CaseResult | None:
        """The result of one kind for a case; None where there is none, or where it is not complete.

        A result is read once and again when its file has changed: a table of a thousand cases asks often.
        """
        if kind not in _FOLDERS:
            raise _no_kind(kind)
        id = self.case(id).id
        key = (id, kind)
        try:
            stamp = file_stamp(self.root / _FOLDERS[kind][0] / f"{id}.json")
            if stamp is None:
                return None
            known = self._read_results.get(key)
            if known is None or known[0] != stamp:
                label, confidence, numbers = self.result_paths(id, kind)
                known = stamp, _result_of(kind, label, confidence, read_json(numbers))
                self._read_results[key] = known
            result = known[1]
            present = os.path.isfile(result.label_path) and os.path.isfile(result.confidence_path)
        except (InputError, OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return result if present else None

    def newest_result(self, id: str) -> CaseResult | None:
        """The newer of prediction and pseudo-label; None where there is neither."""
        found = [result for kind in reversed(KINDS) if (result := self.result(id, kind)) is not None]
        return max(found, key=lambda result: result.time, default=None)

    def write_result(
        self, id: str, kind: str, label_map: sitk.Image, confidence: sitk.Image, numbers: Mapping[str, Any]
    ) -> CaseResult:
        """Write a result: the volumes first and the JSON last, each whole or not at all.

        `label_map` holds study values, `confidence` is uint8 on the same grid. `numbers` has the fields of
        `CaseResult` except kind and paths; `time` is now by default, `expected_dice` the smallest over the
        structures. A result cut off by a crash reads as none.

        Raises `InputError` for maps or numbers that do not belong together, `DiskFull`.
        """
        self.check_writable()
        label_path, confidence_path, numbers_path = self.result_paths(id, kind)
        what = f"The {kind.replace('_', '-')} of case {id}"
        if confidence.GetPixelID() != sitk.sitkUInt8 or not same_geometry(label_map, confidence):
            raise InputError(f"{what} and its confidence differ in grid, or the confidence is not 8-bit.")
        present = np.unique(sitk.GetArrayViewFromImage(label_map)).tolist()
        if not set(present) <= {0, *self.values}:
            raise InputError(f"{what} has values that no structure of the study has.")
        about = {"format_version": FORMAT_VERSION, "id": self.case(id).id, "kind": kind}
        data: dict[str, Any] = {"time": time.time(), **numbers, **about}
        by_structure = data.get("expected_dice_by_structure") or {}
        if "expected_dice" not in data and by_structure:
            data["expected_dice"] = min(by_structure.values())
        try:
            result = _result_of(kind, label_path, confidence_path, data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{what} has a number that is missing or not finite ({error}).") from error
        numbers_path.unlink(missing_ok=True)
        write_volume(label_map, label_path)
        write_volume(confidence, confidence_path)
        write_json(numbers_path, data)
        return result

    def remove_result(self, id: str, kind: str) -> None:
        """Remove a result, the JSON first, so that one that is cut off reads as none; labels stay."""
        self.check_writable()
        for path in reversed(self.result_paths(id, kind)):
            path.unlink(missing_ok=True)

    def write_confidence_table(self, kind: str) -> Path:
        """Write confidence.csv, a row for each slice of each case with such a result; returns its path."""
        self.check_writable()
        if kind not in _TABLES:
            raise _no_kind(kind)
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(_COLUMNS)
        for id in self.cases:
            result = self.result(id, kind)
            if result is None:
                continue
            whole = [f"{result.mean_confidence:.6f}", f"{result.expected_dice:.6f}"]
            for row in result.slices:
                numbers = [f"{row['mean_confidence']:.6f}", f"{row['doubt']:.6f}"]
                table.writerow([id, row["index"], *numbers, *whole])
        path = self._inside(_TABLES[kind])
        write_text(path, text.getvalue())
        return path


def _result_of(kind: str, label: Path, confidence: Path, data: Mapping[str, Any]) -> CaseResult:
    """Raises ValueError, TypeError, KeyError or AttributeError for numbers that are missing or not finite."""
    if data.get("kind", kind) != kind or int(data["format_version"]) > FORMAT_VERSION:
        raise ValueError("another kind or a newer format")
    slices = []
    for row in data["slices"]:
        numbers = {"mean_confidence": _finite(row["mean_confidence"]), "doubt": _finite(row["doubt"])}
        slices.append({**row, "index": int(row["index"]), **numbers})
    return CaseResult(
        kind=kind,
        label_path=label,
        confidence_path=confidence,
        mean_confidence=_finite(data["mean_confidence"]),
        expected_dice=_finite(data["expected_dice"]),
        expected_dice_by_structure=_by_structure(data["expected_dice_by_structure"]),
        volume_ml=_by_structure(data["volume_ml"]),
        slices=slices,
        doubtful_slice=int(data["doubtful_slice"]),
        made_by=dict(data["made_by"]),
        time=_finite(data["time"]),
        extra={key: value for key, value in data.items() if key not in _KNOWN},
    )


def _no_kind(kind: str) -> InputError:
    return InputError(f"'{kind}' is not a kind of result.", hint=f"It can be {' or '.join(KINDS)}.")


def _by_structure(numbers: Mapping[Any, Any]) -> dict[str, float]:
    return {str(value): _finite(number) for value, number in numbers.items()}


def _finite(number: Any) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return value
