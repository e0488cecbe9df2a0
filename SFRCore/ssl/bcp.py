"""Bidirectional copy-paste: labeled and unlabeled crops pasted into each other, both ways."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from SFRCore.errors import InputError
from SFRCore.ssl.contract import Batch, Method, MethodContext, Phase, Progress, Step
from SFRCore.ssl.ema import make_teacher, update_ema
from SFRCore.ssl.losses import cross_entropy, dice_loss
from SFRCore.ssl.pasting import largest_pieces, random_box

PRETRAINING = "pretraining"


class BCP(Method):
    """Two phases, of 2000 and 15000 iterations in the released code, both with four labeled crops a batch.

    Pretraining: pairs a, b of labeled crops, a outside a random box and b inside it, as are their labels;
    L = (CE + Dice)/2 at a constant learning rate. Self-training: student and averaged teacher begin with
    these weights, four unlabeled crops c, d join. Two mixtures, a outside c and d outside b, each with the
    loss of both regions, (CE + Dice)/2 over a region, times 1 where it is labeled and ``unlabeled_weight``
    (0.5) where it has the teacher's label: its most probable class, of each structure the largest
    connected piece. Dice per crop and class, without squares, epsilon 1e-5.

    The box has ``box`` (2/3) of every side. The teacher keeps a constant share ``ema_decay``; neither network
    sees noise. With pseudo-labels of the foundation model the student sees the plain unlabeled crops once
    more, for their loss alone. The released code takes a tenth of the learning rate after each 2500
    iterations of self-training, in place of which the preset's schedule is followed, and keeps the weights
    that were best on test cases; here the last of a phase are kept.
    """

    name = "bcp"
    description = "BCP: bidirectional copy-paste between labeled and unlabeled crops"
    source = "Bai et al., CVPR 2023; BCP LA_BCP_train.py"
    group = 2
    defaults = {"box": 2 / 3, "unlabeled_weight": 0.5, "pretraining": 2000 / 17000, "ema_decay": 0.99}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.student = self.new_student("student")
        self.teacher = make_teacher(self.student)

    def check(self) -> None:
        super().check()
        for option in ("box", "pretraining"):
            if not 0 < self.options[option] < 1:
                raise InputError(f"The method {self.name} needs {option} between 0 and 1.")
        self.check_shares("ema_decay")
        if min(self.context.patch) * self.options["box"] < 1:
            raise InputError(f"The method {self.name} cannot paste a box of less than one voxel.")

    def plan(self, total: int) -> list[Phase]:
        share = self.options["pretraining"]
        first = {"unlabeled": 0, "schedule": "constant", "pseudo_labels": "none"}
        return [
            self.phase(PRETRAINING, share, labeled=4, **first),
            self.phase("self-training", 1.0 - share, labeled=4, unlabeled=4),
        ]

    def begin(self, phase: Phase) -> None:
        if phase.name != PRETRAINING:
            self.teacher.load_state_dict(self.student.state_dict())

    def step(self, batch: Batch, progress: Progress) -> Step:
        outside = random_box(batch.labels.shape[1:], self.options["box"], batch.labels.device)
        if progress.phase.name == PRETRAINING:
            return self._pretraining_step(batch, outside)
        half = len(batch.labels) // 2
        images, labels, valid = batch.labeled_images, batch.labels, batch.labeled_valid
        taught, taught_valid = self._taught(batch), batch.unlabeled_valid
        unlabeled = batch.unlabeled_images
        pasted = 0.5 * self.options["unlabeled_weight"]
        inward = self.student(torch.where(outside, images[:half], unlabeled[:half]))
        outward = self.student(torch.where(outside, unlabeled[half:], images[half:]))
        labeled_term = _region_loss(inward, labels[:half], valid[:half] & outside) + _region_loss(
            outward, labels[half:], valid[half:] & ~outside
        )
        unlabeled_term = _region_loss(inward, taught[:half], taught_valid[:half] & ~outside) + _region_loss(
            outward, taught[half:], taught_valid[half:] & outside
        )
        step = Step(
            loss=0.5 * labeled_term + pasted * unlabeled_term,
            parts={"supervised": labeled_term.detach(), "pasted": unlabeled_term.detach()},
        )
        if progress.phase.pseudo_labels != "none":
            step.unlabeled_logits = [self.student(unlabeled)]
        return step

    def after_step(self, progress: Progress) -> None:
        if progress.phase.name != PRETRAINING:
            update_ema(self.teacher, self.student, math.inf, self.options["ema_decay"])

    def _pretraining_step(self, batch: Batch, outside: Tensor) -> Step:
        half = len(batch.labels) // 2
        images, labels, valid = (
            torch.where(outside, values[:half], values[half:])
            for values in (batch.labeled_images, batch.labels, batch.labeled_valid)
        )
        loss = 0.5 * _region_loss(self.student(images), labels, valid)
        return Step(loss=loss, parts={"supervised": loss.detach()})

    @torch.no_grad()
    def _taught(self, batch: Batch) -> Tensor:
        """The teacher's labels (B, X, Y, Z) of the unlabeled crops; the two halves are seen apart."""
        halves = batch.unlabeled_images.chunk(2)
        labels = torch.cat([self.teacher(half).argmax(1) for half in halves])
        return largest_pieces(labels * batch.unlabeled_valid, self.context.classes)


def _region_loss(logits: Tensor, labels: Tensor, region: Tensor) -> Tensor:
    """Cross-entropy + Dice over the voxels of a region (B, X, Y, Z)."""
    dice = dice_loss(
        logits.float().softmax(1), labels, valid=region, epsilon=1e-5, squared=False, per_sample=True
    )
    return cross_entropy(logits, labels, region) + dice


METHOD = BCP
