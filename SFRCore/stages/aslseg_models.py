"""The models of ASLseg besides its students: where they lie and what they are made of.

``models/aslseg/prompted`` holds the prompted SAM, ``models/aslseg/adaptation`` the adaptation network; both
serve every semi-supervised method.
"""

from __future__ import annotations

from typing import Any

from ..planning import digest
from ..settings import BATCH
from .context import StageContext
from .lineage import (
    FOUNDATION_INFO,
    STUDENT_INFO,
    Lineage,
    default_tuning,
    existing_model,
    foundation_identity,
    images,
    labels,
    recipe_options,
    rejected_cases,
    seen_by,
    test_cases,
)

OPTIONS: dict[str, Any] = {
    "rounds": 2,
    "prompts": "box+point",
    "corruptions": 4,
    "agreement": 0.7,
    "certainty": 0.9,
}
"""``rounds`` of refined pseudo-labels joining the labels. ``prompts``: what of the student's prediction SAM
is shown. ``corruptions``: synthetic pseudo-labels made of each label. A refined pseudo-label is reliable if
its mean Dice with the student's and with SAM's prediction is at least ``agreement``, and the mean probability
of its foreground at least ``certainty``.
"""
LIMITS: dict[str, tuple[Any, ...]] = {
    "rounds": (1, 100),
    "prompts": ("box", "point", "mask", "box+point", "box+mask", "point+mask", "box+point+mask"),
    "corruptions": (1, 1000),
    "agreement": (0.0, 1.0),
    "certainty": (0.0, 1.0),
}


def prompted_lineage(context: StageContext) -> Lineage:
    """Of the SAM that is asked by prompts."""
    settings, plan = context.settings, context.plan
    folder = context.study.models_dir / "aslseg" / "prompted"
    existing = existing_model(context, folder / FOUNDATION_INFO)
    identity = foundation_identity(settings.foundation)
    tuning = settings.tuning or default_tuning(context, identity, existing)
    recipe = {
        "stage": "prompt",
        "foundation": identity,
        "tuning": tuning,
        "prompts": recipe_options(context)["prompts"],
        "seed": settings.seed,
        "faithful": settings.faithful,
        "canvas": plan.canvas,
        "preprocessing": plan.preprocessing.to_dict(),
        "flip_axes": plan.flip_axes,
        "batch": plan.finetune_batch,
        "iterations": plan.iterations_finetune,
    }
    return Lineage(
        folder=folder,
        recipe=digest(recipe),
        settings=recipe,
        made_from={"labels": labels(context)},
        existing=existing,
        inherited=frozenset(),
        tests=test_cases(context),
        withdrawn=rejected_cases(context),
        images=images(context),
        tuning=tuning,
    )


def adaptation_lineage(context: StageContext) -> Lineage:
    """Of the network that makes pseudo-labels of predictions."""
    settings, plan = context.settings, context.plan
    folder = context.study.models_dir / "aslseg" / "adaptation"
    options = recipe_options(context)
    prompted = prompted_lineage(context)
    recipe = {
        "stage": "adapt",
        "prompted": prompted.recipe,
        "student": context.student,
        "prompts": options["prompts"],
        "corruptions": options["corruptions"],
        "seed": settings.seed,
        "faithful": settings.faithful,
        "patch": plan.patch,
        "preprocessing": plan.preprocessing.to_dict(),
        "flip_axes": plan.flip_axes,
        "schedule": plan.schedule,
        "step_every": plan.step_every,
        "base_rate": plan.base_rate,
        "iterations": plan.iterations_retrain,
    }
    if plan.finetune_batch != BATCH:
        recipe["batch"] = plan.finetune_batch
    return Lineage(
        folder=folder,
        recipe=digest(recipe),
        settings=recipe,
        made_from={"labels": labels(context), "prompted": prompted.model_identity()},
        existing=existing_model(context, folder / STUDENT_INFO),
        inherited=seen_by(prompted.existing or {}),
        tests=test_cases(context),
        withdrawn=rejected_cases(context),
        images=images(context),
    )
