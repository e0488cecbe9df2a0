"""Selective training as a stage: SAM and student in one loop, after the fine-tuning.

Source: SFR+ (IEEE TMI 2025), section III-C; see :mod:`SFRCore.stages.selection`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..foundation.store import load_tuned
from ..students import load_student
from ..volumes import CachedVolume
from .context import StageContext
from .finetuner import FineTuner
from .lineage import (
    Lineage,
    recipe_options,
    shortened,
    student_lineage,
    tuned_foundation,
)
from .retrainer import train_student
from .selection import SelectiveTrainer
from .survey import keep_plan
from .training_set import training_volumes

STAGE = "selective"


def selective(context: StageContext) -> dict[str, Any]:
    """Train student and SAM together, unless that is done; leaves the student in ``models/sfr_plus-METHOD``.

    The foundation in the study stays as its fine-tuning left it: SAM is a teacher here, and gone afterwards.
    Raises InputError where the foundation is not tuned, or with other settings, or no case can be used.
    """
    context.begin(STAGE)
    lineage = student_lineage(context)
    foundation = tuned_foundation(context)
    labeled: dict[str, CachedVolume] = {}
    unlabeled: dict[str, CachedVolume] = {}
    if not lineage.is_done():
        labeled, unlabeled = training_volumes(context, cached=False)
        lineage = lineage.made_of(labeled, unlabeled)
    keep_plan(context.study, context.settings)
    if lineage.is_done():
        context.emit("skipped", message="The student is already trained on these labels.")
        return {"skipped": True}
    return train_student(context, lineage, prepare(context, lineage, foundation, labeled, unlabeled))


def prepare(
    context: StageContext,
    lineage: Lineage,
    foundation: Lineage,
    labeled: Mapping[str, CachedVolume],
    unlabeled: Mapping[str, CachedVolume],
) -> SelectiveTrainer:
    """The selective training of this run, before its first step."""
    total = context.plan.iterations_retrain
    weights = None
    if lineage.parent is not None:
        weights = load_student(lineage.folder)[0].state_dict()
        total = shortened(total)
    model = load_tuned(foundation.folder)
    tuning = str(model.tuning["method"])
    return SelectiveTrainer(
        context,
        labeled,
        unlabeled,
        total=total,
        tuner=FineTuner(context, labeled, model, tuning=tuning, total=total),
        options=recipe_options(context),
        parent_weights=weights,
    )
