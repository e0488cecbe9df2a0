"""The recipe of the paper: stitch and fine-tune, pseudo-label, re-train, predict."""

from __future__ import annotations

from typing import Any

from ..stages.context import StageContext
from ..stages.finetune import finetune
from ..stages.predict import predict
from ..stages.pseudolabel import foundation_labels, pseudolabel
from ..stages.retrain import retrain
from . import Recipe


def run(context: StageContext) -> dict[str, Any]:
    """Run the four stages; each skips what is done and continues what was cut off."""
    done = {"finetune": finetune(context), "pseudolabel": pseudolabel(context)}
    online = (lambda: foundation_labels(context)) if context.settings.pseudo_labels == "online" else None
    done["retrain"] = retrain(context, online)
    done["predict"] = predict(context)
    return done


RECIPE = Recipe(
    "sfr",
    "Fine-tune the foundation on stitched slices, pseudo-label the rest, train the student on both (SFR)",
    ("finetune", "pseudolabel", "retrain", "predict"),
    run,
)
