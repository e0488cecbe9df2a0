"""Pseudo-labelling: the fine-tuned SAM segments every unlabeled volume, with its confidence.

Source: SFR (IEEE TMI 2025), Eq. 3. The reference implementation has no script for whole volumes; here
overlapping patches of the training size, at half a patch, are stitched, segmented and averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..foundation.store import load_tuned
from ..foundation.tuning import merge
from .context import DEFECTS, StageContext
from .inference import Probabilities, as_images, describe, predict_volume, stitched_probabilities, summary
from .lineage import image_hash, is_current, tuned_foundation

STAGE = "pseudolabel"
KIND = "pseudo_label"


def foundation_probabilities(context: StageContext) -> Probabilities:
    """Class probabilities of crops by the tuned foundation of this study; InputError where there is none, or
    not one of this run's settings.
    """
    model = merge(load_tuned(tuned_foundation(context).folder)).to(context.device.torch_device).eval()
    return stitched_probabilities(model, context.layout(), context.device)


def pseudolabel(context: StageContext) -> dict[str, Any]:
    """Write label map, confidence and numbers of every unlabeled case that has none by the present
    foundation.

    Raises InputError where the foundation is not tuned, or with other settings, or no unlabeled case can be
    read.
    """
    context.begin(STAGE)
    study, plan = context.study, context.plan
    foundation = tuned_foundation(context)
    model_identity = foundation.model_identity()
    seen = set((foundation.existing or {}).get("seen", ()))
    cases = study.unlabeled_cases()
    if not cases:
        raise InputError(
            "The study has no unlabeled volumes to pseudo-label.", hint="Add volumes without labels."
        )
    waiting, mine = context.share([case for case in cases if not is_current(context, case, model_identity)])
    if not waiting:
        context.emit("skipped", message="Every unlabeled case has a pseudo-label of this foundation.")
        return {"skipped": True, "cases": len(cases)}
    probabilities = foundation_probabilities(context)
    stride = tuple(max(1, side // 2) for side in plan.patch)
    context.emit("started", total=len(waiting))
    done = 0
    for index, case in enumerate(mine):
        context.check_local()
        try:
            volume = context.volume(case)
            found = predict_volume(
                probabilities,
                volume.image,
                volume.frame,
                plan.patch,
                stride,
                context.device,
                batch=1,
                check=context.check_local,
            )
            numbers = describe(found, plan.preprocessing.values, volume.frame, volume.frame.native_spacing)
            numbers["made_by"] = {"model": model_identity, "stage": STAGE, "seen": case.id in seen}
            numbers["made_by"]["image"] = image_hash(case)
            label, confidence = as_images(found, plan.preprocessing.values, volume.frame)
            study.write_result(case.id, KIND, label, confidence, numbers)
        except DEFECTS as error:
            context.leave_out(case, error)
            continue
        done += 1
        context.emit("case", id=case.id, path=f"pseudo_labels/{case.id}.nrrd", **summary(numbers))
        context.emit("progress", step=index + 1, total=len(mine))
    done = context.total_of(done)
    if context.main:
        study.write_confidence_table(KIND)
    if done == 0 and len(waiting) == len(cases):
        raise InputError(
            "No unlabeled volume could be pseudo-labeled.", hint="The warnings say why, case by case."
        )
    context.emit("finished_stage", cases=done)
    return {"skipped": False, "cases": done}


def foundation_labels(context: StageContext) -> Callable[[Tensor], Tensor]:
    """Label indices (B, X, Y, Z) of crops (B, 1, X, Y, Z) by the tuned foundation: pseudo-labels while
    training.
    """
    probabilities = foundation_probabilities(context)
    return lambda crops: probabilities(crops).argmax(1)
