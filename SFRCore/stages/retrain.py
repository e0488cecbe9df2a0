"""Re-training: a small 3D student learns from labels, pseudo-labels and a semi-supervised method.

Source: SFR (IEEE TMI 2025), section III-B3; see :mod:`SFRCore.stages.retrainer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..students import load_student
from ..volumes import CachedVolume
from .context import StageContext
from .lineage import (
    Lineage,
    shortened,
    student_lineage,
    uses_pseudo_labels,
)
from .retrainer import PseudoLabeler, Retrainer, train_student
from .survey import keep_plan
from .training_set import training_volumes

STAGE = "retrain"


def retrain(context: StageContext, online: Callable[[], PseudoLabeler] | None = None) -> dict[str, Any]:
    """Train the student, unless that is done; leaves ``models/RECIPE-METHOD``.

    Raises InputError where no labeled case can be used, or no pseudo-label is there for a recipe that
    needs them.
    """
    context.begin(STAGE)
    lineage = student_lineage(context)
    labeled: dict[str, CachedVolume] = {}
    unlabeled: dict[str, CachedVolume] = {}
    if not lineage.is_done():
        labeled, unlabeled = training_volumes(context, cached=online is None)
        lineage = lineage.made_of(labeled, unlabeled)
    keep_plan(context.study, context.settings)
    if lineage.is_done():
        context.emit("skipped", message="The student is already trained on these labels.")
        return {"skipped": True}
    trainer = prepare(context, lineage, labeled, unlabeled, online)
    return train_student(context, lineage, trainer)


def prepare(
    context: StageContext,
    lineage: Lineage,
    labeled: Mapping[str, CachedVolume],
    unlabeled: Mapping[str, CachedVolume],
    online: Callable[[], PseudoLabeler] | None = None,
) -> Retrainer:
    """The re-training of this run, before its first step. ``online`` makes its pseudo-labeler."""
    guided = uses_pseudo_labels(context)
    total = context.plan.iterations_retrain
    weights = None
    if lineage.parent is not None:
        parent, _ = load_student(lineage.folder)
        weights = parent.state_dict()
        total = shortened(total)
    return Retrainer(
        context,
        labeled,
        unlabeled,
        total=total,
        guided=guided,
        online=online() if online is not None and guided else None,
        parent_weights=weights,
    )
