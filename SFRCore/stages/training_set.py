"""The volumes that a training learns from, as far as they can be read."""

from __future__ import annotations

from ..errors import InputError
from ..ssl import get_method
from ..volumes import CachedVolume
from .context import StageContext
from .lineage import (
    foundation_lineage,
    is_current,
    refuse_leak,
    unlabeled_for_training,
    uses_pseudo_labels,
)


def labeled_volumes(context: StageContext) -> dict[str, CachedVolume]:
    """The labeled cases that can be read, by id; InputError where there is none."""
    labeled = context.study.labeled_cases()
    volumes = context.readable(
        labeled, lambda case: context.study.label_path(case.id), "reading labeled volumes"
    )
    if not volumes:
        raise InputError(
            "No labeled case can be used for fine-tuning.", hint="Mark at least one volume as labeled."
        )
    return volumes


def training_volumes(
    context: StageContext, *, cached: bool = True
) -> tuple[dict[str, CachedVolume], dict[str, CachedVolume]]:
    """The labeled and the unlabeled cases that a student can learn from, by id.

    Where the recipe has pseudo-labels, and they are ``cached``, an unlabeled case counts if it has one by the
    present foundation.
    Raises InputError where no labeled case can be used, or no pseudo-label is there for a recipe that needs
    them, or the foundation has seen the label of a test case.
    """
    study = context.study
    guided = uses_pseudo_labels(context)
    cached = cached and guided
    labeled = context.readable(
        study.labeled_cases(), lambda case: study.label_path(case.id), "reading labeled volumes"
    )
    if not labeled:
        raise InputError(
            "No labeled case can be used for training the student.",
            hint="Mark at least one volume as labeled.",
        )
    if not (get_method(context.settings.ssl).uses_unlabeled or guided):
        return labeled, {}
    cases = unlabeled_for_training(context)
    if cached:
        foundation = foundation_lineage(context)
        refuse_leak(foundation)
        ready = {case.id for case in cases if is_current(context, case, foundation.model_identity())}
        if cases and not ready:
            raise InputError(
                "No unlabeled case has a pseudo-label of the present foundation.",
                hint="Run the stages finetune and pseudolabel first.",
            )
        for case in cases:
            if case.id not in ready and not case.problem:  # a problem was said when labelling failed
                context.warn(
                    f"Case {case.id} has no pseudo-label of the present foundation and is left out of "
                    "training.",
                    hint="Run the stage pseudolabel.",
                    case=case.id,
                )
        cases = [case for case in cases if case.id in ready]
    unlabeled = context.readable(
        cases,
        lambda case: study.result_paths(case.id, "pseudo_label")[0] if cached else None,
        "reading unlabeled volumes",
    )
    return labeled, unlabeled
