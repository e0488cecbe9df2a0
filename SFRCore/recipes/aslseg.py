"""ASLseg: the student prompts SAM, a third network refines both, and reliable results become labels."""

from __future__ import annotations

from typing import Any

from ..stages.adaptation import adapt
from ..stages.aslseg_models import LIMITS, OPTIONS
from ..stages.context import StageContext
from ..stages.lineage import recipe_options
from ..stages.predict import predict
from ..stages.prompted import tune_prompted
from ..stages.refine import refine
from ..stages.rounds import NOTHING, Selection, is_trained, publish, round_student, train_round
from . import Recipe


def run(context: StageContext) -> dict[str, Any]:
    """Run all rounds; each stage of each skips what is done and continues what was cut off."""
    done = {
        "retrain": train_round(context, 0, NOTHING),
        "prompt": tune_prompted(context),
        "adapt": adapt(context),
    }
    selection = NOTHING
    for number in range(1, recipe_options(context)["rounds"] + 1):
        student = round_student(context, number - 1, selection)

        def needed(known: Selection, number: int = number) -> bool:
            return not is_trained(context, number, known)

        selection, done[f"refine {number}"] = refine(context, number, student, needed=needed)
        done[f"retrain {number}"] = train_round(context, number, selection)
    publish(context, round_student(context, recipe_options(context)["rounds"], selection))
    done["predict"] = predict(context)
    return done


RECIPE = Recipe(
    "aslseg",
    "The student prompts SAM, an adaptation network refines both, and what is reliable joins the labels of "
    "the next round (ASLseg)",
    ("retrain", "prompt", "adapt", "refine", "predict"),
    run,
    OPTIONS,
    LIMITS,
)
