"""What turns a file into the array that a network sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from SFRCore.volumes.normalisation import Normalisation


@dataclass(frozen=True)
class Preprocessing:
    """How every case of a study is prepared; recorded with each model.

    ``stack_axis`` is an LPS axis, ``spacing`` mm in internal order (None: native), ``values`` the structures'
    values in ascending order: class i + 1 is values[i].
    """

    stack_axis: int
    spacing: tuple[float, float, float] | None
    normalisation: Normalisation
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.values) != sorted(set(self.values)) or any(not 1 <= v <= 65535 for v in self.values):
            raise ValueError(f"values must be ascending, between 1 and 65535: {self.values}")
        if len(self.values) > 255:
            raise ValueError("at most 255 structures fit a label map of class indices")

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "stack_axis": self.stack_axis,
            "spacing": None if self.spacing is None else list(self.spacing),
            "normalisation": self.normalisation.to_dict(),
            "values": list(self.values),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """What to_dict described; raises KeyError, TypeError or ValueError on anything else."""
        spacing = None if data["spacing"] is None else tuple(float(s) for s in data["spacing"])
        if spacing is not None and len(spacing) != 3:
            raise ValueError("spacing needs three numbers")
        return cls(
            int(data["stack_axis"]),
            spacing,  # type: ignore[arg-type]
            Normalisation.from_dict(data["normalisation"]),
            tuple(int(v) for v in data["values"]),
        )

    def digest(self) -> str:
        """A short hash; equal exactly when everything is equal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def to_classes(self, label: np.ndarray) -> np.ndarray:
        """Study values to class indices 0..C-1, uint8; anything undeclared becomes 0."""
        table = np.zeros(65536, dtype=np.uint8)
        table[list(self.values)] = np.arange(1, len(self.values) + 1)
        return table[label.astype(np.uint16, copy=False)]
