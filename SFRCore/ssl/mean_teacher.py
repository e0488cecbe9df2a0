"""Mean Teacher: the student agrees with its own average over time, seen through noise."""

from __future__ import annotations

import torch

from SFRCore.errors import InputError
from SFRCore.ssl.contract import Batch, Method, MethodContext, Progress, Step
from SFRCore.ssl.ema import make_teacher, perturb, update_ema
from SFRCore.ssl.losses import consistency_mse, segmentation_loss
from SFRCore.ssl.schedules import Ramp


class MeanTeacher(Method):
    """L = (CE + Dice)/2 of the labeled crops + lambda(k) * mean (p_student - p_teacher)^2.

    ``consistency_on``: ``unlabeled`` crops (SSL4MIS, Dice epsilon 1e-5) or ``all`` (SFR, epsilon 1e-10); by
    default all where pseudo-labels are used. The teacher sees the same crops plus noise, with dropout on
    and batch statistics, as the student does. ``consistency`` is the largest weight; ``ramp`` is (T, q, K) of
    its rise, for a training of K iterations.
    """

    name = "mean_teacher"
    description = "Mean Teacher: consistency with an averaged teacher under input noise"
    source = "Tarvainen and Valpola, NeurIPS 2017; SSL4MIS train_mean_teacher_3D.py, SFR train_retraining.py"
    defaults = {"consistency_on": None, "consistency": 0.1, "ramp": (40, 150, 6000), "ema_decay": 0.99}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        if self.options["consistency_on"] is None:
            self.options["consistency_on"] = "all" if context.with_pseudo_labels else "unlabeled"
        self.ramp = Ramp(self.options["consistency"], *self.options["ramp"])
        self.student = self.new_student("student")
        self.teacher = make_teacher(self.student)

    def check(self) -> None:
        super().check()
        self.check_choice("consistency_on", ("all", "unlabeled"))
        if min(self.options["ramp"][1:]) <= 0:
            raise InputError(f"The method {self.name} needs the last two numbers of ramp above 0.")

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
        weight = self.ramp(progress.step_in_phase, progress.phase_total)
        return Step(
            loss=supervised + weight * consistency,
            parts={
                "supervised": supervised.detach(),
                "consistency": consistency.detach(),
                "consistency_weight": consistency.new_tensor(weight),
            },
            unlabeled_logits=[logits[labeled:]],
        )

    def after_step(self, progress: Progress) -> None:
        update_ema(self.teacher, self.student, progress.step_in_phase, self.options["ema_decay"])


METHOD = MeanTeacher
