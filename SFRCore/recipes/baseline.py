"""The semi-supervised method by itself, without a foundation: what SFR is compared with."""

from __future__ import annotations

from typing import Any

from ..stages.context import StageContext
from ..stages.predict import predict
from ..stages.retrain import retrain
from . import Recipe


def run(context: StageContext) -> dict[str, Any]:
    """Train the student without pseudo-labels of a foundation, and predict with it."""
    return {"retrain": retrain(context), "predict": predict(context)}


RECIPE = Recipe(
    "baseline", "The semi-supervised method alone, without a foundation", ("retrain", "predict"), run
)
