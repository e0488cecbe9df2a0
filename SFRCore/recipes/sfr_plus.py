"""The paper's extension, SFR+: confident crops tune the foundation further, the others train the student."""

from __future__ import annotations

from typing import Any

from ..stages.context import StageContext
from ..stages.finetune import finetune
from ..stages.predict import predict
from ..stages.selection import LIMITS, OPTIONS
from ..stages.selective import selective
from . import Recipe


def run(context: StageContext) -> dict[str, Any]:
    """Run the three stages; each skips what is done and continues what was cut off."""
    return {"finetune": finetune(context), "selective": selective(context), "predict": predict(context)}


RECIPE = Recipe(
    "sfr_plus",
    "Fine-tune the foundation, then train it and the student in alternation, each on the crops that suit it "
    "(SFR+)",
    ("finetune", "selective", "predict"),
    run,
    OPTIONS,
    LIMITS,
)
