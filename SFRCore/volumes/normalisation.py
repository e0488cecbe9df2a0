"""Intensities made comparable between cases."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from SFRCore.volumes.geometry import VolumeError

Kind = Literal["zscore", "zscore_nonzero", "ct_window", "ct_percentile", "none"]


@dataclass(frozen=True)
class Normalisation:
    """A rule for intensities.

    - ``zscore``: (x - mean) / standard deviation of the whole volume (UA-MT, SFR on the left atrium).
    - ``zscore_nonzero``: the upper tail cut at the volume's 99.9th percentile, then mean and standard
      deviation of the voxels above 0, applied to all voxels (SSL4MIS on BraTS).
    - ``ct_window``: clipped to [low, high] HU, then z-score per volume (MACT: -125 to 275).
    - ``ct_percentile``: clipped to [low, high], then (x - mean) / std of the training foreground (nnU-Net).
    - ``none``: values as they are.
    """

    kind: Kind = "zscore"
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown normalisation {self.kind!r}")
        if self.kind.startswith("ct_") and (self.low is None or self.high is None or self.low >= self.high):
            raise ValueError(f"{self.kind} needs low < high")
        if self.kind == "ct_percentile" and (self.mean is None or not self.std or self.std <= 0):
            raise ValueError("ct_percentile needs the mean and a positive std")

    @classmethod
    def fit_ct(cls, foreground_samples: np.ndarray) -> Normalisation:
        """``ct_percentile`` from training-foreground intensities: 0.5 and 99.5 percentiles, mean, std.

        Raises VolumeError when there are none, or all are equal.
        """
        samples = np.asarray(foreground_samples, dtype=np.float64).ravel()
        if samples.size == 0 or samples.min() == samples.max():
            raise VolumeError(
                "The labeled cases have too little foreground to measure intensities in.",
                hint="Check that the labels are drawn on the right images.",
            )
        low, high = np.percentile(samples, [0.5, 99.5])
        if low == high:
            low, high = samples.min(), samples.max()
        return cls("ct_percentile", float(low), float(high), float(samples.mean()), float(samples.std()))

    def apply(self, array: np.ndarray) -> np.ndarray:
        """The volume (X, Y, Z) normalised, float32; the input is left as it is."""
        values = np.array(array, dtype=np.float32)
        if self.kind == "none":
            return values
        if self.kind.startswith("ct_"):
            np.clip(values, self.low, self.high, out=values)
        if self.kind == "ct_percentile":
            return _standardised(values, float(self.mean or 0.0), float(self.std or 1.0))
        measured = values
        if self.kind == "zscore_nonzero":
            np.minimum(values, np.percentile(values, 99.9), out=values)
            measured = values[values > 0] if bool((values > 0).any()) else values
        mean, std = float(measured.mean(dtype=np.float64)), float(measured.std(dtype=np.float64))
        return _standardised(values, mean, std)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Normalisation:
        """The rule that to_dict described; raises ValueError on an impossible one."""
        return cls(data["kind"], data.get("low"), data.get("high"), data.get("mean"), data.get("std"))


def _standardised(values: np.ndarray, mean: float, std: float) -> np.ndarray:
    values -= np.float32(mean)
    values /= np.float32(std if std > 1e-8 else 1.0)
    return values
