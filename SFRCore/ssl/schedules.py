"""Quantities that change during training, as fractions of it: any length behaves as the released one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

from SFRCore.settings import PseudoSchedule

Schedule = Literal["constant", "step", "poly"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)


STEP_FRACTION = Fraction(2500, 6000)


def gaussian_rampup(position: float, length: float) -> float:
    """exp(-5 (1 - t/T)^2) with t clipped to [0, T]; 1 where T is 0. Laine and Aila, arXiv:1610.02242."""
    if length == 0:
        return 1.0
    clipped = min(max(position, 0.0), length)
    return math.exp(-5.0 * (1.0 - clipped / length) ** 2)


@dataclass(frozen=True)
class Ramp:
    """A weight that rises in steps: maximum * r(floor(k / every), length) at the ``reference`` length.

    ``every`` and ``length`` are the numbers of the released code for a training of ``reference``
    iterations; for another total they shrink or grow in proportion.
    """

    maximum: float = 0.1
    length: int = 40
    every: int = 150
    reference: int = 6000

    def __call__(self, step: int, total: int) -> float:
        """The weight at 0-based ``step`` of ``total``."""
        return self.maximum * gaussian_rampup(step * self.reference // (total * self.every), self.length)


def decay(schedule: PseudoSchedule, step: int, total: int) -> float:
    """Factor of the pseudo-label weight at 0-based ``step`` of ``total``: 1, or with ``linear`` 1 - k/K.

    Raises ValueError for another schedule.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - step / total
    raise ValueError(f"Unknown schedule {schedule!r} of the pseudo-label weight.")


def learning_rate(
    schedule: Schedule, step: int, total: int, *, base: float = 0.01, every: Fraction = STEP_FRACTION
) -> float:
    """Learning rate at 0-based ``step`` of ``total``.

    ``step``: a tenth after each fraction ``every`` of the total (2500 of 6000 in UA-MT and SFR; 12000 of
    30000 for MagicNet on MACT). ``poly``: base (1 - k/K)^0.9. Raises ValueError for another schedule.
    """
    if schedule == "constant":
        return base
    if schedule == "step":
        return base * 0.1 ** math.floor(step / (total * every))
    if schedule == "poly":
        return float(base * (1.0 - step / total) ** 0.9)
    raise ValueError(f"Unknown learning-rate schedule {schedule!r}.")
