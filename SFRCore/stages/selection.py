"""Selective training: SAM and student teach each other, crop by crop.

Source: SFR+ (IEEE TMI 2025), section III-C. A crop's confidence is the mean over its voxels of the largest
probability (Eq. 8). Crops above the threshold update the fine-tuning module, the others get its pseudo-labels
in the re-training module. No code is released; what the paper leaves open are options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..ssl.contract import Batch, Progress
from ..volumes import CachedVolume
from .context import StageContext
from .data import CANVAS
from .finetuner import IGNORE, FineTuner
from .inference import stitched_probabilities
from .retrainer import Retrainer

REFERENCE_WARM_UP = 1000 / 6000
OPTIONS: dict[str, Any] = {
    "threshold": 0.985,
    "judge": "student",
    "region": "all",
    "warm_up": REFERENCE_WARM_UP,
    "period": 1,
    "updates": 1,
    "foundation_rate": 1e-4,
    "keep_confident": False,
}
"""``threshold`` of the confidence (the paper's). ``judge``: whose probabilities are looked at ("student",
"teacher", "foundation"). ``region``: "all" voxels, or those in and around the "foreground". ``warm_up``:
share of the iterations before SAM is updated for the first time. Of every ``period`` iterations the last
``updates`` update SAM. ``foundation_rate``: its constant learning rate. ``keep_confident``: confident crops
get SAM's pseudo-labels as well.
"""
LIMITS: dict[str, tuple[Any, ...]] = {
    "threshold": (0.0, 1.0),
    "judge": ("student", "teacher", "foundation"),
    "region": ("all", "foreground"),
    "warm_up": (0.0, 1.0),
    "period": (1, 1_000_000),
    "updates": (1, 1_000_000),
    "foundation_rate": (1e-8, 1.0),
}
AROUND = 2
"""Voxels around the foreground that belong to its region."""
POINTS = 200
"""Metric events of the confident fraction in a whole training."""
INACTIVE = 500
"""Iterations in a row without a choice after which the threshold is said to do nothing."""


class SelectiveTrainer(Retrainer):
    """One training of student and foundation together; see :class:`SFRCore.runtime.loop.Trainer`.

    ``tuner`` holds the fine-tuned foundation and a fresh optimiser. Only its model, layout, augmentation and
    loss are used: it learns from the crops of the student's batches. A method that has the pseudo-labels in
    a loss of its own sees those of confident crops as well.
    """

    def __init__(
        self,
        context: StageContext,
        labeled: Mapping[str, CachedVolume],
        unlabeled: Mapping[str, CachedVolume],
        *,
        total: int,
        tuner: FineTuner,
        options: Mapping[str, Any],
        parent_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.tuner, self.options = tuner, options
        self.foundation = stitched_probabilities(tuner.model, tuner.layout, context.device)
        super().__init__(
            context,
            labeled,
            unlabeled,
            total=total,
            guided=True,
            online=lambda crops: self.foundation(crops).argmax(1),
            parent_weights=parent_weights,
        )
        if options["judge"] == "teacher" and not isinstance(getattr(self.method, "teacher", None), nn.Module):
            raise InputError(
                f"The method {context.settings.ssl} has no teacher that could judge the crops.",
                hint="Choose another method, or --recipe-option judge=student.",
            )
        self.confident: Tensor | None = None
        self.pending = False
        self.seen = self.chosen = 0
        self.without = {True: 0, False: 0}
        self.foundation_loss = 0.0

    def step(self, k: int) -> dict[str, float]:
        self.confident, self.pending = None, False
        numbers = super().step(k)
        if self.pending:
            numbers["foundation_loss"] = self.foundation_loss
            if math.isfinite(self.foundation_loss):
                self.tuner.optimisation.set_rate(self.options["foundation_rate"])
                self.tuner.optimisation.step()
            else:
                # The loop counts such steps and gives up; the largest of SAM's NaN would be background.
                numbers["loss"] = self.foundation_loss
        if self.confident is not None and len(self.confident):
            numbers["confident_rate"] = float(self.confident.float().mean())
            self._tell(k)
        return numbers

    def prepared(self, batch: Batch, progress: Progress) -> Batch:
        """The batch with SAM's pseudo-labels; once warm, its crops are judged and SAM's gradient computed.

        SAM rests in phases that learn from other pseudo-labels than its own. Its step waits until the
        student's gradient is there as well, so that a step which ran out of memory can be done again.
        """
        batch = super().prepared(batch, progress)
        asked = progress.phase.pseudo_labels == "foundation" and len(batch.unlabeled_images)
        if not asked or progress.step < self.options["warm_up"] * self.total:
            return batch
        with torch.no_grad():
            confidence, labels = self._judged(batch)
        self.confident = confidence >= self.options["threshold"]
        due = progress.step % self.options["period"] >= self.options["period"] - self.options["updates"]
        if due and self.context.total_of(int(self.confident.sum())):
            self._foundation_gradient(progress.step, batch, labels)
            self.pending = True
        return batch

    def guiding(self, batch: Batch, progress: Progress) -> Batch:
        """The batch without its confident crops, which SAM's pseudo-labels do not reach."""
        if self.confident is None or self.options["keep_confident"]:
            return batch
        uncertain = ~self.confident[:, None, None, None]
        return replace(batch, unlabeled_valid=batch.unlabeled_valid & uncertain)

    def state(self) -> dict[str, Any]:
        sides = [self.without[False], self.without[True]]
        return {"student": super().state(), "foundation": self.tuner.state(), "one_sided": sides}

    def restore(self, state: dict[str, Any], step: int) -> None:
        self.tuner.restore(state["foundation"], step)
        super().restore(state["student"], step)
        self.without = dict(zip((False, True), state.get("one_sided", (0, 0)), strict=True))

    def save_memory(self) -> bool:
        changed = [super().save_memory(), self.tuner.save_memory()]
        return any(changed)

    def close(self) -> None:
        super().close()
        self.tuner.close()

    def _judged(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Confidence (B,) of the unlabeled crops and the student's label indices (B, X, Y, Z) of them."""
        images, valid = batch.unlabeled_images, batch.unlabeled_valid
        student = self._calm(self.method.student, images)
        labels = student.argmax(1)
        judge = self.options["judge"]
        if judge == "teacher":
            judged = self._calm(self.method.teacher, images)
        else:
            judged = student if judge == "student" else self.foundation(images)
        return crop_confidence(judged, valid, self.options["region"]), labels

    def _calm(self, network: Any, images: Tensor) -> Tensor:
        """Probabilities without dropout; batch statistics are those of the crops where none are averaged."""
        modes = [(part, part.training) for part in network.modules()]
        network.train(network is not self.method.student)
        for part in network.modules():
            if isinstance(part, nn.modules.dropout._DropoutNd):
                part.training = False
        with self.context.device.autocast():
            logits = network(images)
        for part, training in modes:
            part.training = training
        probabilities: Tensor = logits.float().softmax(1)
        return probabilities

    def _foundation_gradient(self, step: int, batch: Batch, labels: Tensor) -> None:
        """SAM's gradient on the labeled crops and on the confident ones with the student's labels."""
        assert self.confident is not None
        device = self.context.device
        chosen = self.confident
        images = torch.cat([batch.labeled_images, batch.unlabeled_images[chosen]])[:, 0].cpu().numpy()
        known = torch.cat([batch.labels, labels[chosen]]).cpu().numpy()
        valid = torch.cat([batch.labeled_valid, batch.unlabeled_valid[chosen]]).cpu().numpy()
        rng = np.random.default_rng(
            [self.context.settings.seed, CANVAS, 4, step * device.processes + device.rank]
        )
        made = [self.tuner.canvas(rng, *crop) for crop in zip(images, known, valid, strict=True)]
        canvases = torch.stack([canvas for canvas, _ in made]).flatten(0, 1)
        targets = torch.stack([target for _, target in made]).flatten(0, 1).to(device.torch_device)
        with device.autocast():
            logits = self.tuner.optimisation.model(canvases.unsqueeze(1).to(device.torch_device))
        loss = self.tuner.loss(logits.float(), targets, targets != IGNORE)
        self.tuner.optimisation.gradient(loss)
        self.foundation_loss = float(loss.detach())

    def _tell(self, k: int) -> None:
        """The confident fraction since the last time, and whether the threshold chooses anything."""
        assert self.confident is not None
        count, chosen = len(self.confident), int(self.confident.sum())
        self.seen, self.chosen = self.seen + count, self.chosen + chosen
        for all_chosen, one_kind in ((True, count), (False, 0)):
            self.without[all_chosen] = self.without[all_chosen] + 1 if chosen == one_kind else 0
        if (k + 1) % max(1, self.total // POINTS) == 0 or k + 1 == self.total:
            self.context.emit(
                "metric",
                step=k + 1,
                total=self.total,
                confident_fraction=round(self.chosen / self.seen, 4),
            )
            self.seen = self.chosen = 0
        if INACTIVE in self.without.values():
            which = "every crop is" if chosen else "no crop is"
            self.context.warn(
                f"For {INACTIVE} iterations {which} above the confidence threshold of "
                f"{self.options['threshold']:g}, so nothing is selected.",
                code="threshold",
                hint="Choose another --recipe-option threshold=VALUE, or region=foreground.",
            )


def crop_confidence(probabilities: Tensor, valid: Tensor, region: str = "all") -> Tensor:
    """Mean over voxels of the largest probability (Eq. 8), (B,), of crops (B, C, X, Y, Z).

    Padding, where ``valid`` (B, X, Y, Z) is False, does not count. ``region`` "foreground" looks only at what
    is labeled as a structure and 2 voxels around, at everything where nothing is.
    """
    counted = valid
    if region == "foreground":
        found = ((probabilities.argmax(1) > 0) & valid).float().unsqueeze(1)
        near = F.max_pool3d(found, 2 * AROUND + 1, stride=1, padding=AROUND)[:, 0] > 0
        near = near & valid
        counted = torch.where(near.flatten(1).any(1)[:, None, None, None], near, valid)
    largest = probabilities.amax(1) * counted
    return largest.sum((1, 2, 3)) / counted.sum((1, 2, 3)).clamp_min(1)
