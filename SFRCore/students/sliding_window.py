"""Prediction of a whole volume from overlapping patches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FAST_VOXELS = 3_000_000
"""A V-Net needs some 400 bytes a voxel to predict: 1.2 GB for this many."""

LEAST_BOTTLENECK = 4


def fast_stride(patch: Sequence[int]) -> tuple[int, int, int]:
    """The stride (X, Y, Z) at which neighbouring patches overlap by one quarter."""
    x, y, z = (max(1, size * 3 // 4) for size in patch)
    return x, y, z


def fast_window(
    shape: Sequence[int], patch: Sequence[int], *, divisor: int = 16, voxels: int = FAST_VOXELS
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Window (X, Y, Z) and stride for predicting a volume of ``shape`` in as few windows as memory allows.

    A fully convolutional network takes windows larger than the patch it was trained on: where the volume,
    rounded up to ``divisor``, has at most ``voxels`` voxels, one window holds it; else axes are split, the
    longest (measured in patches) first, into windows that overlap by a quarter of the patch and are never
    smaller than it. Along an axis where the patch has fewer than 4 bottleneck voxels windows stay as it is:
    the network has hardly seen anything there but the border's zeros.
    """
    parts = [1, 1, 1]

    def length(axis: int) -> int:
        if patch[axis] < LEAST_BOTTLENECK * divisor:
            return patch[axis]
        shared = patch[axis] // 4 * (parts[axis] - 1)
        least = math.ceil((shape[axis] + shared) / parts[axis])
        return max(patch[axis], divisor * math.ceil(least / divisor))

    window = [length(axis) for axis in range(3)]
    while math.prod(window) > voxels and any(size > least for size, least in zip(window, patch, strict=True)):
        longest = max(range(3), key=lambda axis: window[axis] / patch[axis])
        parts[longest] += 1
        window[longest] = length(longest)
    stride = [max(1, size - least // 4) for size, least in zip(window, patch, strict=True)]
    return (window[0], window[1], window[2]), (stride[0], stride[1], stride[2])


def window_starts(size: int, patch: int, stride: int) -> list[int]:
    """First voxels of the patches along an axis of ``size`` >= ``patch``: min(i * stride, size - patch)."""
    count = math.ceil((size - patch) / stride) + 1
    return [min(index * stride, size - patch) for index in range(count)]


def sliding_window(
    probabilities: Callable[[Tensor], Tensor],
    volume: npt.NDArray[np.floating],
    patch: Sequence[int],
    *,
    stride: Sequence[int],
    batch: int = 4,
    device: torch.device | str = "cpu",
    trained_on: Sequence[int] | None = None,
    check: Callable[[], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Averaged class probabilities (C, X, Y, Z), float32, of a volume (X, Y, Z) or (I, X, Y, Z).

    ``probabilities`` maps patches (B, I, *patch) on ``device`` to class probabilities (B, C, *patch). Axes
    smaller than the patch are padded with 0 on both sides, or with their ends where the network was
    ``trained_on`` patches no longer than they are, and cropped again. Overlaps are averaged with
    equal weights. ``check()`` is called before every batch and may raise to stop. Sums are kept in main
    memory: 4 bytes a class and voxel. Raises ValueError for sizes that do not fit.

    Source: SFR ``test_util_singleclass.py`` and UA-MT ``test_util.py``.
    """
    if volume.ndim == 3:
        volume = volume[None]
    if volume.ndim != 4 or len(patch) != 3 or len(stride) != 3:
        raise ValueError(f"A volume of shape {volume.shape} does not fit patch {patch} and stride {stride}.")
    if batch < 1 or any(not 0 < step <= size for step, size in zip(stride, patch, strict=True)):
        raise ValueError(f"The stride {stride} must lie between 1 and the patch {patch}, the batch above 0.")

    inner = volume.shape[1:]
    missing = [max(0, size - dim) for size, dim in zip(patch, inner, strict=True)]
    before = [total // 2 for total in missing]
    for axis, (low, total_missing) in enumerate(zip(before, missing, strict=True)):
        if total_missing:
            margin = [(0, 0)] * 4
            margin[axis + 1] = (low, total_missing - low)
            seen = trained_on is not None and inner[axis] >= trained_on[axis]
            volume = np.pad(volume, margin, mode="edge" if seen else "constant")
    size = volume.shape[1:]

    grid = [window_starts(*axis) for axis in zip(size, patch, stride, strict=True)]
    windows = [
        tuple(slice(start, start + length) for start, length in zip(corner, patch, strict=True))
        for corner in itertools.product(*grid)
    ]

    total: npt.NDArray[np.float32] | None = None
    with torch.inference_mode():
        for first in range(0, len(windows), batch):
            if check is not None:
                check()
            group = windows[first : first + batch]
            patches = np.stack([volume[(slice(None), *window)] for window in group])
            inputs = torch.from_numpy(patches.astype(np.float32, copy=False)).to(device)
            predicted = probabilities(inputs).float().cpu()
            if total is None:
                total = np.zeros((predicted.shape[1], *size), dtype=np.float32)
            for window, values in zip(group, predicted, strict=True):
                total[(slice(None), *window)] += values.numpy()

    assert total is not None
    for axis, (starts, side, length) in enumerate(zip(grid, patch, size, strict=True)):
        # windows form a grid, so how often a voxel is covered is a product of counts along the axes
        covered = np.zeros(length, dtype=np.float32)
        for start in starts:
            covered[start : start + side] += 1
        total /= covered.reshape([-1 if axis == other else 1 for other in range(3)])
    crop = tuple(slice(low, low + dim) for low, dim in zip(before, inner, strict=True))
    return np.ascontiguousarray(total[(slice(None), *crop)])
