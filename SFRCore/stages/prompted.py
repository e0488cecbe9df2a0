"""The prompt stage of ASLseg: SAM learns to answer prompts about the study's structures.

Source: ASLseg (ISBI 2024), stage II; the training is not published. Here each step shows slices of labeled
volumes, with prompts about their connected components: boxes enlarged as MedSAM's, points anywhere inside,
masks with the mistakes of a prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError
from ..foundation.prompting import PromptedSAM, Prompts, build_prompted, load_prompted
from ..foundation.store import save_tuned
from ..runtime.optimise import seed_step
from ..ssl.losses import segmentation_loss
from ..volumes import CachedVolume, bezier_intensity
from .aslseg_models import prompted_lineage
from .context import StageContext
from .corruption import corrupt
from .data import CANVAS
from .finetuner import BEZIER_PROBABILITY
from .lineage import Lineage, recipe_options, shortened
from .prompts import as_canvas, components, make_prompts
from .survey import keep_plan
from .training import SAMTrainer, train_stage
from .training_set import labeled_volumes

STAGE = "prompt"
STAGE_SEED = 3
MOST_THINGS = 8
"""Components of a slice that one step asks about."""

Asked = tuple[Tensor, list[Prompts], Tensor]
"""Slices (B, 1, S, S), their prompts, and the true masks (sum of all N, S, S) int64."""


class PromptTuner(SAMTrainer[Asked]):
    """One training of a prompted SAM on slices; see :class:`SFRCore.runtime.loop.Trainer`."""

    model: PromptedSAM

    def __init__(
        self,
        context: StageContext,
        volumes: Mapping[str, CachedVolume],
        model: PromptedSAM,
        *,
        tuning: str,
        total: int,
    ) -> None:
        self.volumes = {case: volume for case, volume in volumes.items() if _has_foreground(volume)}
        self.kinds = str(recipe_options(context)["prompts"])
        super().__init__(context, model, self.asked, tuning=tuning, total=total)

    def asked(self, k: int) -> Asked:
        """Slices, prompts and true masks of step ``k``."""
        device, size = self.context.device, self.context.plan.finetune_batch
        first = (k * device.processes + device.rank) * size
        slices = [self._slice(first + offset) for offset in range(size)]
        return (
            torch.stack([image for image, _, _ in slices]),
            [prompts for _, prompts, _ in slices],
            torch.cat([masks for _, _, masks in slices]),
        )

    def step(self, k: int) -> dict[str, float]:
        seed_step(self.context.settings.seed, STAGE_SEED, k, self.context.device.rank)
        where = self.context.device.torch_device
        images, prompts, masks = self.ahead.get(k)
        with self.context.device.autocast():
            logits = self.optimisation.model(images.to(where), [asked.to(where) for asked in prompts])
        both = torch.stack([torch.zeros_like(logits), logits], 1).float()
        target = masks.to(where)
        loss = segmentation_loss(both, target, torch.ones_like(target, dtype=torch.bool), epsilon=1e-10)
        return self.descend(loss, self.rate_at(k))

    def _slice(self, index: int) -> tuple[Tensor, Prompts, Tensor]:
        """A slice through a random voxel of a structure, with prompts about the pieces of that structure."""
        seed = self.context.settings.seed
        ids = list(self.volumes)
        epoch, position = divmod(index, len(ids))
        order = np.random.default_rng([seed, CANVAS, 5, epoch]).permutation(len(ids))
        volume = self.volumes[ids[order[position]]]
        rng = np.random.default_rng([seed, CANVAS, 6, index])
        label, places = volume.label, volume.foreground
        assert label is not None and places is not None
        x, y, z = (int(n) for n in places[int(rng.integers(len(places)))])
        image = np.array(volume.image[:, :, z : z + 1])
        truth = np.array(label[:, :, z : z + 1]) == label[x, y, z]
        for axis in self.context.plan.flip_axes:
            if axis < 2 and rng.random() < 0.5:
                image, truth = np.flip(image, axis), np.flip(truth, axis)
        image = bezier_intensity(
            rng, image, probability=BEZIER_PROBABILITY, faithful=self.context.settings.faithful
        )
        things = components(truth[:, :, 0].T) or components(truth[:, :, 0].T, least=1)[:1]
        chosen = rng.permutation(len(things))[:MOST_THINGS]
        things = [things[n] for n in chosen]
        shown = None
        if "mask" in self.kinds:
            shown = [corrupt(rng, thing.astype(np.uint8), 2) for thing in things]
        prompts = make_prompts(things, self.model.canvas, self.model.mask_side, self.kinds, rng, shown)
        masks = torch.from_numpy(np.stack(things)).float()[:, None]
        side = (self.model.canvas, self.model.canvas)
        target = F.interpolate(masks, size=side, mode="nearest-exact")[:, 0].long()
        return as_canvas(image[:, :, 0].T, self.model.canvas), prompts, target


def _has_foreground(volume: CachedVolume) -> bool:
    return volume.foreground is not None and len(volume.foreground) > 0


def tune_prompted(context: StageContext) -> dict[str, Any]:
    """Tune SAM with prompts on the labeled cases, unless that is done; leaves ``models/aslseg/prompted``."""
    context.begin(STAGE)
    lineage = prompted_lineage(context)
    volumes: dict[str, CachedVolume] = {}
    if not lineage.is_done():
        volumes = labeled_volumes(context)
        lineage = lineage.made_of(volumes)
    keep_plan(context.study, context.settings)
    if lineage.is_done():
        context.emit("skipped", message="SAM has learned to answer prompts about these labels.")
        return {"skipped": True}
    tuner = prepare(context, lineage, volumes)

    def save() -> None:
        save_tuned(tuner.model.base, lineage.folder, lineage.made_by(iterations=tuner.total))

    doing, cases = "tuning SAM with prompts", len(tuner.volumes)
    return train_stage(context, lineage, tuner, name=STAGE, doing=doing, save=save, cases=cases)


def prepare(context: StageContext, lineage: Lineage, volumes: Mapping[str, CachedVolume]) -> PromptTuner:
    """The tuning of this run, before its first step; InputError where no label shows a structure."""
    if not any(_has_foreground(volume) for volume in volumes.values()):
        raise InputError(
            "The labels of all labeled cases are empty, so SAM cannot learn to answer prompts about them.",
            hint="Give a case a label in which a structure is drawn, or choose the recipe 'baseline'.",
        )
    settings, plan = context.settings, context.plan
    total = plan.iterations_finetune
    if lineage.parent is not None:
        model = load_prompted(lineage.folder, tuned_on=True)
        total = shortened(total)
    else:
        model = build_prompted(
            settings.foundation, canvas=plan.canvas, tuning=lineage.tuning, seed=settings.seed
        )
    return PromptTuner(context, volumes, model, tuning=lineage.tuning, total=total)
