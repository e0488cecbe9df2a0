"""SS-Net: predictions smooth against adversarial noise, and structures apart in feature space."""

from __future__ import annotations

import torch
from torch import Tensor

from SFRCore.ssl.consistency import ConsistencyMethod
from SFRCore.ssl.contract import Batch, MethodContext, Progress, Step
from SFRCore.ssl.losses import dice_loss
from SFRCore.ssl.separation import ClassSeparation
from SFRCore.ssl.tracing import feature_shapes
from SFRCore.students.student import statistics_untouched

PROBE = 10.0


class SSNet(ConsistencyMethod):
    """L = Dice of the labeled crops + lambda(k) [smoothness + 0.1 (separation labeled + unlabeled)].

    Dice over foreground classes, without squares, epsilon 1e-8. *Smoothness*, of all crops: the Dice loss,
    over all classes jointly, of probabilities with and without adversarial noise. Its direction is the
    gradient of that loss at a random one of length 10, its length ``magnitude``; batch norm keeps its
    running statistics meanwhile. *Separation*: ``ClassSeparation`` on the student's last features, of
    labeled voxels by their label and of unlabeled ones by the most probable class. Released for 15000
    iterations with a tenth of the learning rate after each 2500, in place of which the preset's schedule is
    followed; lambda rises as released and is at its largest, 1, after 6000 of 15000.

    Every voxel of the batch goes through the perceptrons, which takes memory. The noise stays out of padding.
    """

    name = "ss_net"
    description = "SS-Net: smooth against adversarial noise, structures apart in feature space"
    source = "Wu et al., MICCAI 2022; SS-Net train_ss_3d.py"
    keeps = frozenset({"consistency", "ramp"})
    defaults = {"consistency": 1.0, "ramp": (40, 150, 15000), "magnitude": 10.0, "separation": 0.1}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        channels = feature_shapes(self.student, context.patch)[1][-1][0]
        self.separation = self.seeded("separation", lambda: ClassSeparation(channels, context.classes))

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labels)
        images, valid = batch.images, batch.valid
        features = self.student.decode(self.student.encode(images))[-1]
        logits = self.student.head(features)
        found = logits[:labeled].float().softmax(1)
        separation = self._separation(features, logits.argmax(1), batch)
        supervised = dice_loss(
            found,
            batch.labels,
            valid=batch.labeled_valid,
            epsilon=1e-8,
            squared=False,
            foreground_only=True,
        )
        smoothness = self._smoothness(images, valid)
        return self.combine(
            supervised,
            smoothness + self.options["separation"] * separation,
            progress,
            [logits[labeled:]],
            smoothness=smoothness,
            separation=separation,
        )

    def _separation(self, features: Tensor, predicted: Tensor, batch: Batch) -> Tensor:
        """Both separation losses, after the features of rightly predicted labeled voxels were remembered."""
        labeled, inside = len(batch.labels), batch.labeled_valid
        voxels = features.movedim(1, -1)
        right = inside & (predicted[:labeled] == batch.labels) & (batch.labels > 0)
        self.separation.remember(voxels[:labeled][right], batch.labels[right])
        by_label: Tensor = self.separation(voxels[:labeled][inside], batch.labels[inside])
        inside = batch.unlabeled_valid
        by_prediction: Tensor = self.separation(voxels[labeled:][inside], predicted[labeled:][inside])
        return by_label + by_prediction

    def _smoothness(self, images: Tensor, valid: Tensor) -> Tensor:
        """How much probabilities change under the noise that changes them most."""
        with torch.no_grad():
            plain = self.student(images).float().softmax(1)
        inside = valid[:, None]
        direction = _unit((torch.rand_like(images) - 0.5) * inside).requires_grad_(True)
        with statistics_untouched(self.student):
            moved = self.student(images + PROBE * direction).float().softmax(1)
            distance = overlap_loss(moved, plain, valid) * valid.sum()  # the factor: no underflow in float16
            (gradient,) = torch.autograd.grad(distance, direction)
            noise = self.options["magnitude"] * _unit(gradient.float() * inside)
            return overlap_loss(self.student(images + noise).float().softmax(1), plain, valid)


def overlap_loss(one: Tensor, other: Tensor, valid: Tensor) -> Tensor:
    """1 - (2 sum(p q) + e) / (sum(p) + sum(q) + e) of probabilities (B, C, X, Y, Z), over all jointly."""
    with torch.autocast(device_type=one.device.type, enabled=False):
        mask = valid[:, None].float()
        sizes = ((one + other) * mask).sum()
        return 1.0 - (2.0 * (one * other * mask).sum() + 1e-8) / (sizes + 1e-8)


def _unit(noise: Tensor) -> Tensor:
    """Noise (B, ...) of length 1 in every crop."""
    return noise / (noise.flatten(1).norm(dim=1) + 1e-8).view(-1, *[1] * (noise.ndim - 1))


METHOD = SSNet
