"""How long a run will take: a few steps of every stage that is not done are measured on the study's own
volumes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..foundation.checkpoints import build_foundation
from ..foundation.choice import foundation_spec
from ..foundation.spec import SPECS
from ..foundation.tuning import apply_tuning, merge
from ..runtime.loop import measure
from ..settings import Settings
from ..ssl.contract import phase_lengths
from ..students import make_student
from ..students.sliding_window import window_starts
from . import adaptation as adaptation_stage
from . import finetune, prompted, retrain
from .aslseg_models import adaptation_lineage, prompted_lineage
from .context import StageContext
from .finetuner import LARGEST_POOL, POOL_PER_CASE
from .inference import Probabilities, network_probabilities, stitched_probabilities, student_windows
from .lineage import (
    Lineage,
    foundation_lineage,
    is_current,
    makes_labels_online,
    recipe_options,
    shortened,
    student_lineage,
    uses_pseudo_labels,
)
from .retrainer import Retrainer, training_name
from .rounds import (
    NOTHING,
    Selection,
    refinement_identity,
    round_student,
    saved_selection,
)
from .training import checkpoints_of
from .training_set import labeled_volumes, training_volumes

STEPS = 3
SHORT = 300
"""Iterations below which measuring would take as long as running, with small networks."""
OF_STUDENTS = {"retrain", "predict"}
"""The stages that do without a foundation."""
LONG_SECONDS = 12 * 3600.0
SHAPES = 8
"""Labeled volumes that are looked at for their shape."""
POOL_STEPS = 4
"""Steps in the measured pool of embeddings when only the decoder is tuned."""


def estimate(context: StageContext, stages: tuple[str, ...]) -> dict[str, Any]:
    """Seconds by stage and in all, and peak memory in bytes, of what is still to be done.

    Networks and data are made as for the real run and thrown away; nothing of the study changes but its
    cache.
    """
    context.begin("estimate")
    per_stage: dict[str, float] = {}
    if "finetune" in stages and not foundation_lineage(context).is_done():
        per_stage["finetune"] = _finetune_seconds(context)
    stale = bool(per_stage.get("finetune"))
    anew = stale and foundation_lineage(context).parent is None
    if "pseudolabel" in stages:
        per_stage["pseudolabel"] = _pseudolabel_seconds(context, stale)
    stale = stale or bool(per_stage.get("pseudolabel"))
    if "refine" in stages:
        per_stage |= _rounds_seconds(context)
        stale = any(per_stage.values())
    elif "retrain" in stages and (stale or not student_lineage(context).is_done()):
        per_stage["retrain"] = _retrain_seconds(context, anew)
        stale = True
    if "selective" in stages and (stale or not student_lineage(context).is_done()):
        per_stage["selective"] = _selective_seconds(context, anew)
        stale = True
    if "predict" in stages and stale:
        per_stage["predict"] = _predict_seconds(context)
    if context.device.torch_device.type == "cuda":
        torch.cuda.empty_cache()
    return {
        "seconds": sum(per_stage.values()),
        "memory_bytes": context.device.peak_memory(),
        "per_stage": {name: round(seconds, 3) for name, seconds in per_stage.items()},
        "device": context.device.name(),
    }


def is_short(settings: Settings, stages: Sequence[str], lengths: Sequence[int | None]) -> bool:
    """Whether a run of so many iterations (None: the preset's) is not worth an estimate. With a full-size SAM
    it always is: on a CPU that takes hours for few as well.
    """
    if not OF_STUDENTS.issuperset(stages) and foundation_spec(settings.foundation).dim >= SPECS["vit_b"].dim:
        return False
    return all(length is not None and length < SHORT for length in lengths)


def refuse_long(context: StageContext, found: dict[str, Any]) -> None:
    """Raise InputError (code "long_run") above 12 hours, unless the user said yes."""
    if found["seconds"] <= LONG_SECONDS or context.settings.yes:
        return
    hours = found["seconds"] / 3600
    raise InputError(
        f"This run would take about {hours:.0f} hours on {found['device']}.",
        hint="Use a computer with a GPU, a smaller foundation or fewer iterations; or start it with --yes.",
        code="long_run",
    )


def _finetune_seconds(context: StageContext) -> float:
    lineage = foundation_lineage(context)
    volumes = labeled_volumes(context)
    lineage = lineage.made_of(volumes)
    if lineage.is_done():
        return 0.0
    tuner = finetune.prepare(context, lineage, volumes)
    total = tuner.total
    left = _steps_left(context, lineage, finetune.STAGE, total)
    try:
        if tuner.tuning == "decoder":
            pool = min(total, LARGEST_POOL, POOL_PER_CASE * len(tuner.source.volumes))
            tuner.total = POOL_STEPS
            begin = time.perf_counter()
            tuner.step(0)
            filled = time.perf_counter() - begin
            return filled / POOL_STEPS * pool + left * measure(tuner, context.device, context, STEPS)
        return left * measure(tuner, context.device, context, STEPS)
    finally:
        tuner.close()


def _retrain_seconds(context: StageContext, anew: bool = False) -> float:
    pace, steps = _retrain_pace(context, anew)
    return pace * steps


def _retrain_pace(context: StageContext, anew: bool) -> tuple[float, int]:
    """Seconds a step of the student's training, and how many steps are left.

    Measured without pseudo-labels, which are not there yet; their loss costs next to nothing beside the
    network. ``anew``: the foundation will be another one, so that the student goes on from no weights.
    """
    alone = context.settings.with_(recipe="baseline", recipe_options={})
    unguided = replace(context, settings=alone)
    if context.settings.ssl == "supervised" and not makes_labels_online(context):
        unguided = context
    lineage, volumes = student_lineage(unguided), training_volumes(unguided)
    trainer = retrain.prepare(unguided, replace(lineage, existing=None), *volumes)
    try:
        seconds = _phases_seconds(trainer, unguided) / trainer.total
    finally:
        trainer.close()
    if uses_pseudo_labels(context) and makes_labels_online(context):
        seconds += 2 * _seconds_of(_sam(context), context, context.plan.patch)
    lineage, total = student_lineage(context), context.plan.iterations_retrain
    if anew:
        return seconds, total
    total = shortened(total) if lineage.parent is not None else total
    return seconds, _steps_left(context, lineage.made_of(*volumes), training_name(context, lineage), total)


def _steps_left(context: StageContext, lineage: Lineage, name: str, total: int) -> int:
    """Of ``total``, those after the newest checkpoint of this training."""
    found = checkpoints_of(context, lineage, name).found()
    return max(1, total - found[0][0]) if found else total


def _phases_seconds(trainer: Retrainer, context: StageContext) -> float:
    """Of a whole training: every phase has batches of its own, so each is measured where it begins. A phase
    that begins with the student's predictions is taken to be as fast, by the crop, as the one before.
    """
    seconds = pace = 0.0
    start = 0
    for phase, length in zip(trainer.phases, phase_lengths(trainer.phases, trainer.total), strict=True):
        crops = phase.labeled + phase.unlabeled
        if phase.pseudo_labels == "student":
            seconds += _predict_seconds(context, len(trainer.unlabeled))
        elif length:
            steps = min(STEPS, length)
            pace = measure(trainer, context.device, context, steps, begin=start) / crops
        seconds += length * crops * pace
        start += length
    return seconds


def _selective_seconds(context: StageContext, anew: bool) -> float:
    """As if every crop were confident once SAM is updated: a backward pass takes twice a forward one."""
    options = recipe_options(context)
    crops = 2 * context.plan.finetune_batch  # labeled and unlabeled, as in nearly every method's batch
    share = (1 - options["warm_up"]) * min(1.0, options["updates"] / options["period"])
    update = share * crops * 3 * _seconds_of(_sam(context), context, context.plan.patch)
    pace, steps = _retrain_pace(context, anew)
    return (pace + update) * steps


def _rounds_seconds(context: StageContext) -> dict[str, float]:
    """Of ASLseg, as far as it is not done: every round as long as the first, every unlabeled case refined."""
    options, volumes = recipe_options(context), labeled_volumes(context)
    prompt_lineage = prompted_lineage(context).made_of(volumes)
    per_stage: dict[str, float] = {}
    tuner = prompted.prepare(context, replace(prompt_lineage, existing=None), volumes)
    asking = _seconds_of(lambda crop: tuner.model.encode(crop), context, (tuner.model.canvas,) * 2)
    stale = not prompt_lineage.is_done()
    try:
        if stale:
            steps = tuner.total * _share(prompt_lineage, tuner.total)
            per_stage["prompt"] = steps * measure(tuner, context.device, context, STEPS)
    finally:
        tuner.close()
    adaptation = adaptation_lineage(context).made_of(volumes)
    if stale or not adaptation.is_done():
        stale = True
        guesses = {f"{case}#0": np.zeros(volume.image.shape, np.uint16) for case, volume in volumes.items()}
        trainer = adaptation_stage.prepare(context, replace(adaptation, existing=None), volumes, guesses)
        try:
            steps = trainer.total * _share(adaptation, trainer.total)
            learning = steps * measure(trainer, context.device, context, STEPS)
        finally:
            trainer.close()
        slices = sum(volume.image.shape[2] for volume in volumes.values())
        per_stage["adapt"] = learning + slices * asking
    trainings, refinements = _rounds_to_do(context, stale, options["rounds"])
    if trainings:
        share = _share(round_student(context, 0, NOTHING), context.plan.iterations_retrain)
        per_stage["retrain"] = trainings * share * _retrain_seconds(context)
    if refinements:
        cases = refinements * len(context.study.unlabeled_cases())
        per_case = 2 * _predict_seconds(context, 1) + _median_shape(context)[2] * asking
        per_stage["refine"] = cases * per_case
    return per_stage


def _share(lineage: Lineage, total: int) -> float:
    """The part of ``total`` iterations that a model takes: less where it goes on from earlier weights."""
    return shortened(total) / total if lineage.parent is not None else 1.0


def _rounds_to_do(context: StageContext, stale: bool, rounds: int) -> tuple[int, int]:
    """Students to train and refinements to make, where other models are ``stale`` or not."""
    selection: Selection | None = NOTHING
    trainings = int(not round_student(context, 0, NOTHING).is_done())
    refinements = 0
    for number in range(1, rounds + 1):
        if stale or trainings or selection is None:
            trainings, refinements = trainings + 1, refinements + 1
            continue
        before = round_student(context, number - 1, selection)
        selection = saved_selection(context, number, refinement_identity(context, before))
        if selection is None:
            trainings, refinements = trainings + 1, refinements + 1
        elif not round_student(context, number, selection).is_done():
            trainings += 1
    return trainings, refinements


def _pseudolabel_seconds(context: StageContext, stale: bool) -> float:
    cases = context.study.unlabeled_cases()
    model_identity = foundation_lineage(context).model_identity()
    waiting = [case for case in cases if stale or not is_current(context, case, model_identity)]
    if not waiting:
        return 0.0
    stride = tuple(max(1, side // 2) for side in context.plan.patch)
    windows = _windows(_median_shape(context), context.plan.patch, stride)
    return windows * len(waiting) * _seconds_of(_sam(context), context, context.plan.patch)


def _predict_seconds(context: StageContext, cases: int | None = None) -> float:
    """Of so many cases, or of all that are not labeled."""
    classes = len(context.plan.preprocessing.values) + 1
    network = make_student(context.student, in_channels=1, classes=classes).eval()
    network = network.to(context.device.torch_device)
    if cases is None:
        cases = len(context.study.unlabeled_cases()) + len(context.study.test_cases())
    plan = context.plan
    shape = _median_shape(context)
    window, stride = student_windows(network, shape, plan.patch, plan.reference_stride, context.settings.fast)
    seconds = _seconds_of(network_probabilities(network, context.device), context, window)
    return _windows(shape, window, stride) * cases * seconds


def _sam(context: StageContext) -> Probabilities:
    plan, settings, layout = context.plan, context.settings, context.layout()
    model = build_foundation(
        settings.foundation,
        classes=len(plan.preprocessing.values) + 1,
        canvas=layout.canvas_size,
        seed=settings.seed,
    )
    model = merge(apply_tuning(model, foundation_lineage(context).tuning))
    return stitched_probabilities(model.to(context.device.torch_device).eval(), layout, context.device)


def _median_shape(context: StageContext) -> Sequence[int]:
    """The median shape (X, Y, Z) of some labeled volumes, after resampling."""
    cases = context.study.labeled_cases()[:SHAPES]
    volumes = context.readable(cases, lambda case: None, "looking at volumes")
    shapes = [volume.frame.shape for volume in volumes.values()] or [context.plan.patch]
    return [int(side) for side in np.median(shapes, axis=0)]


def _windows(shape: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> int:
    """Windows of a volume of ``shape``."""
    axes = zip(shape, window, stride, strict=True)
    return math.prod(len(window_starts(max(size, side), side, step)) for size, side, step in axes)


@torch.inference_mode()
def _seconds_of(probabilities: Probabilities, context: StageContext, window: Sequence[int]) -> float:
    """Seconds for one window, the faster of two."""
    crop = torch.zeros((1, 1, *window), device=context.device.torch_device)
    taken = []
    for _ in range(2):
        context.check()
        begin = time.perf_counter()
        float(probabilities(crop).sum())
        taken.append(time.perf_counter() - begin)
    return min(taken)
