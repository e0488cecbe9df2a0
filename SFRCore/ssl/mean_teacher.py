"""Mean Teacher: the student agrees with its own average over time, seen through noise."""

from __future__ import annotations

import torch

from SFRCore.ssl.consistency import TaughtMethod
from SFRCore.ssl.contract import Batch, MethodContext, Progress, Step
from SFRCore.ssl.ema import perturb
from SFRCore.ssl.losses import consistency_mse, segmentation_loss


class MeanTeacher(TaughtMethod):
    """L = (CE + Dice)/2 of the labeled crops + lambda(k) * mean (p_student - p_teacher)^2.

    ``consistency_on``: ``unlabeled`` crops (SSL4MIS, Dice epsilon 1e-5) or ``all`` (SFR, epsilon 1e-10); by
    default all where pseudo-labels are used. The teacher sees the same crops plus noise, with dropout on
    and batch statistics, as the student does.
    """

    name = "mean_teacher"
    description = "Mean Teacher: consistency with an averaged teacher under input noise"
    source = "Tarvainen and Valpola, NeurIPS 2017; SSL4MIS train_mean_teacher_3D.py, SFR train_retraining.py"
    defaults = {"consistency_on": None}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        if self.options["consistency_on"] is None:
            self.options["consistency_on"] = "all" if context.with_pseudo_labels else "unlabeled"

    def check(self) -> None:
        super().check()
        self.check_choice("consistency_on", ("all", "unlabeled"))

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labeled_images)
        images, valid = batch.images, batch.valid
        compared = 0 if self.options["consistency_on"] == "all" else labeled
        logits = self.student(images)
        with torch.no_grad():
            taught = self.teacher(perturb(images[compared:]))
        epsilon = 1e-10 if self.context.with_pseudo_labels else 1e-5
        supervised = segmentation_loss(logits[:labeled], batch.labels, batch.labeled_valid, epsilon)
        consistency = consistency_mse(
            logits[compared:].float().softmax(1), taught.float().softmax(1), valid[compared:]
        )
        return self.combine(supervised, consistency, progress, [logits[labeled:]])


METHOD = MeanTeacher
