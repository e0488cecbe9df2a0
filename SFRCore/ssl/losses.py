"""Losses on volumes, in float32 whatever the precision of the network, counting valid voxels only.

``valid`` is a mask (B, X, Y, Z): False where a crop was padded, or outside the region a method looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec

import torch
from torch import Tensor
from torch.nn import functional

Rest = ParamSpec("Rest")


def _full_precision(
    loss: Callable[Concatenate[Tensor, Rest], Tensor],
) -> Callable[Concatenate[Tensor, Rest], Tensor]:
    @wraps(loss)
    def without_autocast(first: Tensor, *rest: Rest.args, **named: Rest.kwargs) -> Tensor:
        with torch.autocast(device_type=first.device.type, enabled=False):
            return loss(first.float(), *rest, **named)

    return without_autocast


@_full_precision
def dice_loss(
    probabilities: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    epsilon: float = 1e-10,
    squared: bool = True,
    foreground_only: bool = False,
    per_sample: bool = False,
) -> Tensor:
    """Mean over classes of 1 - (2 sum(p y) + epsilon) / (sum(p^2) + sum(y^2) + epsilon).

    ``probabilities`` (B, C, X, Y, Z) or (B, C, H, W), ``target`` the same without C, class indices. Sums
    run over the batch and the voxels jointly, or over the voxels of each sample (``per_sample``);
    ``squared=False`` takes p and y without squares; ``foreground_only`` leaves class 0 out. The released
    variants:

    * SFR, MagicNet: as is; SSL4MIS, AC-MT, CPCL: ``epsilon=1e-5``
    * UA-MT, CauSSL: ``foreground_only=True, epsilon=1e-5``
    * SS-Net: ``foreground_only=True, squared=False, epsilon=1e-8``
    * BCP: ``per_sample=True, squared=False, epsilon=1e-5`` with the pasted region as ``valid``
    """
    classes = torch.arange(int(foreground_only), probabilities.shape[1], device=target.device)
    truth = (target[:, None] == classes.view(1, -1, *[1] * (target.ndim - 1))).to(probabilities.dtype)
    if foreground_only:
        probabilities = probabilities[:, 1:]
    sizes = probabilities.square() + truth if squared else probabilities + truth
    overlap = probabilities * truth
    if valid is not None:
        mask = valid[:, None].to(probabilities.dtype)
        sizes, overlap = sizes * mask, overlap * mask
    space = tuple(range(2, probabilities.ndim))
    axes = space if per_sample else (0, *space)
    scores = (2.0 * overlap.sum(axes) + epsilon) / (sizes.sum(axes) + epsilon)
    return (1.0 - scores).mean()


@_full_precision
def cross_entropy(logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean cross-entropy over the valid voxels; logits (B, C, X, Y, Z), target (B, X, Y, Z) class indices."""
    if valid is None:
        return functional.cross_entropy(logits, target)
    return valid_mean(functional.cross_entropy(logits, target, reduction="none"), valid)


@_full_precision
def segmentation_loss(
    logits: Tensor, target: Tensor, valid: Tensor | None = None, epsilon: float = 1e-10
) -> Tensor:
    """Half of cross-entropy plus Dice over all classes: the supervised term of SFR and SSL4MIS."""
    dice = dice_loss(logits.softmax(1), target, valid=valid, epsilon=epsilon)
    return 0.5 * (cross_entropy(logits, target, valid) + dice)


@_full_precision
def consistency_mse(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over valid voxels and channels of the squared difference of probabilities (B, C, X, Y, Z)."""
    squares = (student - teacher.float()).square().mean(1)
    return squares.mean() if valid is None else valid_mean(squares, valid)


@_full_precision
def entropy(probabilities: Tensor) -> Tensor:
    """-sum_c p ln(p + 1e-6) of every voxel: (B, C, X, Y, Z) to (B, X, Y, Z)."""
    return -(probabilities * (probabilities + 1e-6).log()).sum(1)


def valid_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of values (B, X, Y, Z) where valid; 0, with a gradient of 0, where nothing is."""
    mask = valid.to(values.dtype)
    return (values * mask).sum() / mask.sum().clamp(min=1.0)
