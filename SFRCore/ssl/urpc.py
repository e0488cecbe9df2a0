"""URPC: the predictions at several resolutions agree, the less so where they are uncertain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from SFRCore.errors import InputError
from SFRCore.ssl.consistency import ConsistencyMethod
from SFRCore.ssl.contract import Batch, MethodContext, Progress, Step
from SFRCore.ssl.losses import segmentation_loss, valid_mean
from SFRCore.ssl.tracing import feature_shapes

DROPOUT = 0.5
LARGEST_PYRAMID = 4


class PyramidHead(nn.Module):
    """Logits at full size from a coarse decoder stage: dropout of channels, 1 x 1 x 1, trilinear."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.dropout = nn.Dropout3d(DROPOUT)
        self.convolution = nn.Conv3d(channels, classes, 1)

    def forward(self, features: Tensor, size: Sequence[int]) -> Tensor:
        coarse = self.convolution(self.dropout(features))
        return functional.interpolate(coarse, size=tuple(size), mode="trilinear")


class PyramidConsistency(ConsistencyMethod):
    """L = mean over scales of (CE + Dice)/2 of the labeled crops + lambda(k) * consistency of the unlabeled.

    The scales are the student's own head and one more head on each of up to three decoder stages before
    it. With the mean prediction p over the scales s and D_s = KL(p || p_s) at each voxel, the consistency is
    the mean over s of [mean((p - p_s)^2 exp(-D_s)) / mean(exp(-D_s)) + mean(D_s)]; gradients flow through p
    as well. Logarithms come from the logits, so that no probability is too small for them.

    The heads stand behind dropout (0.5) as in the V-Net of SFR, and are upsampled trilinearly as in SSL4MIS.
    Released for 60000 iterations with a polynomial learning rate and a weight that rises until the end, in
    place of which the preset's schedule and rise are followed.
    """

    name = "urpc"
    description = "URPC: consistency between resolutions, weighted by certainty"
    source = (
        "Luo et al., MICCAI 2021; SSL4MIS train_uncertainty_rectified_pyramid_consistency_3D.py, "
        "SFR hierarchical_vnet.py"
    )

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        _, stages = feature_shapes(self.student, context.patch)
        channels = [shape[0] for shape in stages[:-1]][1 - LARGEST_PYRAMID :]
        self.heads = self.seeded(
            "pyramid", lambda: nn.ModuleList(PyramidHead(width, context.classes) for width in channels)
        )

    def check(self) -> None:
        super().check()
        if not self.heads:
            raise InputError(
                f"The method urpc cannot be used with the network {self.student.name}, "
                "whose decoder has a single stage.",
                hint="Choose the network vnet, or another method.",
            )

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labeled_images)
        images = batch.images
        decoded = self.student.decode(self.student.encode(images))
        scales = [self.student.head(decoded[-1])]
        coarse = decoded[-1 - len(self.heads) : -1]
        scales += [
            head(features, images.shape[2:]) for head, features in zip(self.heads, coarse, strict=True)
        ]
        supervised = torch.stack(
            [segmentation_loss(one[:labeled], batch.labels, batch.labeled_valid, 1e-5) for one in scales]
        ).mean()
        consistency = rectified_consistency([one[labeled:] for one in scales], batch.unlabeled_valid)
        return self.combine(supervised, consistency, progress, [scales[0][labeled:]])


def rectified_consistency(scales: Sequence[Tensor], valid: Tensor) -> Tensor:
    """The term of :class:`PyramidConsistency` of logits (B, C, X, Y, Z), one a scale."""
    logarithms = torch.stack([logits.float().log_softmax(1) for logits in scales])
    mean_logarithm = logarithms.logsumexp(0) - math.log(len(scales))
    mean = mean_logarithm.exp()
    terms = []
    for one in logarithms:
        divergence = (mean * (mean_logarithm - one)).sum(1)
        certainty = (-divergence).exp()
        squares = (mean - one.exp()).square().mean(1)
        rectified = valid_mean(squares * certainty, valid) / (valid_mean(certainty, valid) + 1e-8)
        terms.append(rectified + valid_mean(divergence, valid))
    return torch.stack(terms).mean()


METHOD = PyramidConsistency
