"""SLC-Net: two networks in a row that label the unlabeled crops for each other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from SFRCore.errors import InputError
from SFRCore.ssl.consistency import ConsistencyMethod
from SFRCore.ssl.contract import Batch, MethodContext, Progress, Step
from SFRCore.ssl.ema import perturb
from SFRCore.ssl.losses import cross_entropy, dice_loss, entropy, valid_mean

NOISE, LIMIT = 0.1, 0.05


class SLCNet(ConsistencyMethod):
    """L = sum over two networks of (CE + block Dice)/2 of the labeled crops + lambda(k) * CE of each other.

    The second network sees the image with noise (0.1, clipped at 0.05) and the probabilities of the first,
    through which its loss goes on. Over unlabeled crops each takes the most probable class of the other as
    label; the cross-entropy of the second is weighted with exp(-U), U the entropy of the mean of ``passes``
    noisy passes of the first, with dropout. ``student`` is the first network.

    The released code is for slices; this is its reading for volumes. Block Dice is the mean of the Dice
    losses (all classes, epsilon 1e-5) of ``blocks`` x ``blocks`` parts of the slices, here through all
    slices of the crop; ``blocks=1`` is plain Dice. It runs 30000 iterations with a polynomial learning rate
    and a weight that rises until the end, in place of which the preset's schedule and rise are followed.
    """

    name = "slc_net"
    description = "SLC-Net: two networks in a row that teach each other, with Dice over blocks"
    source = "Liu et al., MICCAI 2022; SLC-Net train_CLB.py"
    defaults = {"blocks": 4, "passes": 8}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.second = self.new_student("second", in_channels=context.in_channels + context.classes)

    def check(self) -> None:
        super().check()
        if not 1 <= self.options["blocks"] <= min(self.context.patch[:2]):
            raise InputError(
                f"The method {self.name} cannot cut slices into {self.options['blocks']} blocks a side.",
                hint=f"Choose from 1 to {min(self.context.patch[:2])} blocks.",
            )
        self.check_pairs_of_passes()

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labels)
        images = batch.images
        first = self.student(images)
        seen = perturb(images, NOISE, LIMIT)
        second = self.second(torch.cat([seen, first.float().softmax(1).to(seen.dtype)], 1))
        certainty = (-self._entropy(batch.unlabeled_images)).exp()
        supervised = self._supervised(first[:labeled], batch) + self._supervised(second[:labeled], batch)
        valid = batch.unlabeled_valid
        crossed = cross_entropy(first[labeled:], second[labeled:].argmax(1), valid)
        weighted = _weighted_entropy(second[labeled:], first[labeled:].argmax(1), certainty, valid)
        return self.combine(
            supervised,
            crossed + weighted,
            progress,
            [first[labeled:], second[labeled:]],
            certainty=certainty[valid].mean(),
        )

    @torch.no_grad()
    def _entropy(self, images: Tensor) -> Tensor:
        """Entropy (B, X, Y, Z) of the first network's mean probability over noisy passes, two at a time."""
        total = torch.zeros((), device=images.device)
        twice = images.repeat(2, 1, 1, 1, 1)
        for _ in range(self.options["passes"] // 2):
            found = self.student(perturb(twice, NOISE, LIMIT)).float().softmax(1)
            total = total + found.unflatten(0, (2, -1)).sum(0)
        return entropy(total / self.options["passes"])

    def _supervised(self, logits: Tensor, batch: Batch) -> Tensor:
        found, blocks = logits.float().softmax(1), self.options["blocks"]
        dice = block_dice_loss(found, batch.labels, batch.labeled_valid, blocks)
        return 0.5 * (cross_entropy(logits, batch.labels, batch.labeled_valid) + dice)


def block_dice_loss(probabilities: Tensor, target: Tensor, valid: Tensor, blocks: int) -> Tensor:
    """Mean Dice loss of the parts of (B, C, X, Y, Z) that cut X and Y into ``blocks`` sides each.

    The last parts are smaller where a side cannot be divided. Parts of padding only are left out.
    """
    losses = []
    x, y = (-(-side // blocks) for side in target.shape[1:3])
    for left in range(0, target.shape[1], x):
        for top in range(0, target.shape[2], y):
            part = (..., slice(left, left + x), slice(top, top + y), slice(None))
            loss = dice_loss(probabilities[part], target[part], valid=valid[part], epsilon=1e-5)
            losses.append((loss, valid[part].any().float()))
    values, counted = (torch.stack(group) for group in zip(*losses, strict=True))
    return (values * counted).sum() / counted.sum().clamp(min=1.0)


def _weighted_entropy(logits: Tensor, labels: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid voxels of the cross-entropy times its weight (B, X, Y, Z)."""
    with torch.autocast(device_type=logits.device.type, enabled=False):
        found = functional.cross_entropy(logits.float(), labels, reduction="none")
        return valid_mean(found * weights, valid)


METHOD = SLCNet
