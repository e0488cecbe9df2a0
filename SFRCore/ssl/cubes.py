"""Crops cut into cubes and put together again, and cubes exchanged between the crops of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def grid_of(size: Sequence[int], cube: Sequence[int]) -> tuple[int, int, int]:
    """How many cubes fit along each axis of crops (X, Y, Z); raises ValueError where some do not fit."""
    if any(side % edge for side, edge in zip(size, cube, strict=True)):
        raise ValueError(f"{tuple(size)} voxels cannot be cut into cubes of {tuple(cube)}")
    x, y, z = (side // edge for side, edge in zip(size, cube, strict=True))
    return x, y, z


def partition(crops: Tensor, grid: Sequence[int]) -> Tensor:
    """Crops (B, C, X, Y, Z) as cubes (B, N, C, x, y, z); place (i, j, k) has index i + nx (j + ny k)."""
    batch, channels = crops.shape[:2]
    nx, ny, nz = grid
    x, y, z = (side // count for side, count in zip(crops.shape[2:], grid, strict=True))
    cut = crops.reshape(batch, channels, nx, x, ny, y, nz, z)
    return cut.permute(0, 6, 4, 2, 1, 3, 5, 7).reshape(batch, nx * ny * nz, channels, x, y, z)


def assemble(cubes: Tensor, grid: Sequence[int]) -> Tensor:
    """The inverse of ``partition``: cubes (B, N, C, x, y, z) as crops (B, C, X, Y, Z)."""
    batch, _, channels, x, y, z = cubes.shape
    nx, ny, nz = grid
    apart = cubes.reshape(batch, nz, ny, nx, channels, x, y, z)
    return apart.permute(0, 4, 3, 5, 2, 6, 1, 7).reshape(batch, channels, nx * x, ny * y, nz * z)


def random_order(batch: int, grid: Sequence[int], device: torch.device) -> Tensor:
    """One random permutation of the batch for every place of a cube, int64 (B, nx, ny, nz)."""
    return torch.rand(batch, *grid, device=device).argsort(dim=0)


def exchange(crops: Tensor, order: Tensor) -> Tensor:
    """Crops (B, C, X, Y, Z) whose cube at a place comes from the crop that ``order`` names there.

    ``order.argsort(0)`` undoes it.
    """
    index = order[:, None]
    for axis in (2, 3, 4):
        index = index.repeat_interleave(crops.shape[axis] // order.shape[axis - 1], dim=axis)
    return crops.gather(0, index.expand_as(crops))
