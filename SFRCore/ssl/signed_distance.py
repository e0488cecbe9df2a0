"""Signed distance maps of labels, each scaled to its own crop."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def signed_distance(labels: Tensor, valid: Tensor, classes: int) -> Tensor:
    """Signed distance (B, C - 1, X, Y, Z) of each foreground class of ``labels`` (B, X, Y, Z).

    Distance to the structure outside and to the background inside, in voxels, each divided by its maximum
    over the valid voxels of the crop; inside it is negative, and 0 in the structure's outermost voxels. 0
    everywhere without the structure, -1 without any other voxel. Padded voxels count as background.

    Source: DTC ``utils/util.py``; Xue et al., AAAI 2020.
    """
    maps = []
    for index in range(1, classes):
        inside = (labels == index) & valid
        outer, inner = _distance(~inside), _distance(inside)
        signed = _scaled(outer, valid) - _scaled(inner, valid)
        maps.append(torch.where((inner == 1.0) | ~inside.any((1, 2, 3))[:, None, None, None], 0.0, signed))
    return torch.stack(maps, 1)


def _scaled(distances: Tensor, valid: Tensor) -> Tensor:
    """Distances (B, X, Y, Z) over the largest valid one of each crop; 1 where both are infinite."""
    largest = distances.masked_fill(~valid, 0.0).amax((1, 2, 3), keepdim=True)
    return torch.where(distances == math.inf, 1.0, distances / largest.clamp(min=1.0))


def _distance(inside: Tensor) -> Tensor:
    """Euclidean distance in voxels of each True voxel (B, X, Y, Z) to the nearest False one, exactly.

    0 at False voxels, infinite where a crop has none. Squared distances are minimised along one axis after
    the other, over shifts that can still be nearer.
    """
    squares = torch.where(inside, math.inf, 0.0)
    for axis in (1, 2, 3):
        nearest = squares.clone()
        for shift in range(1, inside.shape[axis]):
            if shift**2 >= nearest.max():
                break
            kept = inside.shape[axis] - shift
            for here, there in ((0, shift), (shift, 0)):
                part = nearest.narrow(axis, here, kept)
                torch.minimum(part, squares.narrow(axis, there, kept) + shift**2, out=part)
        squares = nearest
    return squares.sqrt()
