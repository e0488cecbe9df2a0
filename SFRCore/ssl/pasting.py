"""Boxes to paste between crops, and the largest connected piece of every structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)


def random_box(size: Sequence[int], ratio: float, device: torch.device) -> Tensor:
    """Mask (X, Y, Z), True but for one box of floor(ratio * side) voxels along each axis.

    The box begins anywhere in [0, side - length), so that it never touches the far end. Source: BCP
    ``context_mask``.
    """
    mask = torch.ones(tuple(size), dtype=torch.bool)
    box = []
    for side in size:
        length = int(side * ratio)
        start = int(torch.randint(0, side - length, ()))
        box.append(slice(start, start + length))
    mask[tuple(box)] = False
    return mask.to(device)


def largest_pieces(labels: Tensor, classes: int) -> Tensor:
    """Label maps (B, X, Y, Z) that keep of each structure the largest of its connected pieces in every crop.

    Voxels that touch at a corner are connected. The rest becomes background.
    """
    kept = np.zeros(labels.shape, dtype=np.int64)
    for crop, result in zip(labels.cpu().numpy(), kept, strict=True):
        for value in range(1, classes):
            pieces, count = ndimage.label(crop == value, structure=_NEIGHBOURS)
            if count:
                largest = np.argmax(np.bincount(pieces.reshape(-1))[1:]) + 1
                result[pieces == largest] = value
    return torch.from_numpy(kept).to(labels.device)
