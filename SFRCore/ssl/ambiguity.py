"""What the four variants of ACMT share: consistency where a voxel is ambiguous."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from SFRCore.ssl.consistency import TaughtMethod
from SFRCore.ssl.contract import Batch, Progress, Step
from SFRCore.ssl.ema import perturb
from SFRCore.ssl.losses import consistency_mse, segmentation_loss, valid_mean

PAPER = "Xu et al., Medical Image Analysis 2023 (AC-MT)"


class AmbiguityConsensus(TaughtMethod):
    """L = (CE + Dice)/2 of the labeled crops + lambda(k) * sum M (p_s - p_t)^2 / sum M of the unlabeled.

    p_t is the teacher's prediction under input noise, M marks the ambiguous voxels, and both carry no
    gradient. M counts every channel of a voxel, so that the term is a mean over voxels and channels. Released
    for 8000 iterations with a polynomial learning rate, in place of which the preset's schedule is followed.
    """

    @abstractmethod
    def ambiguous(self, probabilities: Tensor, batch: Batch, progress: Progress) -> Tensor:
        """Which voxels (B, X, Y, Z) of the unlabeled crops are ambiguous, from the student's probabilities
        (B, C, X, Y, Z) there. Called without gradients; padded voxels are taken out by the caller.
        """

    def consistency(self, student: Tensor, teacher: Tensor, ambiguous: Tensor, valid: Tensor) -> Tensor:
        """The unweighted unsupervised term of probabilities (B, C, X, Y, Z)."""
        return consistency_mse(student, teacher, ambiguous)

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labeled_images)
        valid = batch.unlabeled_valid
        logits = self.student(batch.images)
        probabilities = logits[labeled:].float().softmax(1)
        with torch.no_grad():
            taught = self.teacher(perturb(batch.unlabeled_images)).float().softmax(1)
            ambiguous = valid & self.ambiguous(probabilities.detach(), batch, progress)
        return self.combine(
            segmentation_loss(logits[:labeled], batch.labels, batch.labeled_valid, 1e-5),
            self.consistency(probabilities, taught, ambiguous, valid),
            progress,
            [logits[labeled:]],
            ambiguous=valid_mean(ambiguous.float(), valid),
        )
