"""ICT: the prediction of a mixture is the mixture of predictions."""

from __future__ import annotations

import torch

from SFRCore.errors import InputError
from SFRCore.ssl.consistency import TaughtMethod
from SFRCore.ssl.contract import Batch, Progress, Step
from SFRCore.ssl.losses import consistency_mse, segmentation_loss


class InterpolationConsistency(TaughtMethod):
    """L = (CE + Dice)/2 of the labeled crops + lambda(k) * mean (p_s(mix x) - mix p_t(x))^2.

    Crop i of the first half of the unlabeled ones is mixed with crop i of the second half:
    mix(a, b) = (1 - mu) a + mu b, with mu from Beta(``alpha``, ``alpha``) drawn for each pair. The teacher
    sees the plain crops without noise, all as one batch as in the paper (SSL4MIS shows it one at a time,
    which only batch norm notices). A mixed voxel is valid where both are. The student sees plain unlabeled
    crops only where pseudo-labels are attached, in a forward pass of their own. Released for 30000 iterations
    with a polynomial learning rate and a weight that rises until the end, in place of which the preset's
    schedule and rise are followed.
    """

    name = "ict"
    description = "ICT: consistency of mixed crops with the mixed predictions of an averaged teacher"
    source = "Verma et al., IJCAI 2019; SSL4MIS train_interpolation_consistency_training_3D.py"
    group = 2
    defaults = {"alpha": 0.2}

    def check(self) -> None:
        super().check()
        if self.options["alpha"] <= 0:
            raise InputError("The method ict needs alpha above 0.")

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled, unlabeled = len(batch.labeled_images), len(batch.unlabeled_images)
        if unlabeled < 2 or unlabeled % 2:
            raise ValueError(f"ICT mixes pairs of unlabeled crops and got {unlabeled}.")
        first, second = batch.unlabeled_images.chunk(2)
        valid = torch.logical_and(*batch.unlabeled_valid.chunk(2))
        shape = torch.full((len(first), 1, 1, 1, 1), self.options["alpha"], dtype=torch.float64)
        share = torch.distributions.Beta(shape, shape).sample().to(first)
        logits = self.student(torch.cat([batch.labeled_images, (1.0 - share) * first + share * second]))
        with torch.no_grad():
            one, other = self.teacher(batch.unlabeled_images).float().softmax(1).chunk(2)
            taught = (1.0 - share) * one + share * other
        plain = [self.student(batch.unlabeled_images)] if self.context.with_pseudo_labels else []
        return self.combine(
            segmentation_loss(logits[:labeled], batch.labels, batch.labeled_valid, 1e-5),
            consistency_mse(logits[labeled:].float().softmax(1), taught, valid),
            progress,
            plain,
        )


METHOD = InterpolationConsistency
