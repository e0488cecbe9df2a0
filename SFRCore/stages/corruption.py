"""Synthetic pseudo-labels: true label maps with the mistakes that a network makes.

Source: ASLseg (ISBI 2024), whose adaptation network is trained on synthetic pseudo-labels; how they are made
is not published. Here a structure may grow or shrink, shift, lose or gain pieces, get holes and a wavy edge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

CHANCE = 0.5
"""Probability of each kind of mistake."""
LARGEST_CHANGE = 3.0
"""How far an edge may move, in voxels of the smallest side, as all lengths here."""
LARGEST_SHIFT = 2.0
LOST = 0.25
THICKEST = 2.0
"""Thicker slices count as this thick, so that the edge moves over one at most."""
WAVE = 3.0
"""Standard deviation over which the wavy edge is smooth."""


def corrupt(
    rng: np.random.Generator, label: np.ndarray, classes: int, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """A label map (X, Y, Z) or (X, Y), uint8, with mistakes; structures that are not there stay away.

    ``spacing`` is that of the voxels (1 along every axis if not given): mistakes reach over fewer slices
    where these are thick. Where the scan ends, a structure does not.
    """
    result = np.zeros(label.shape, np.uint8)
    sides = np.array(spacing if spacing is not None else [1.0] * label.ndim, dtype=float)
    for c in range(1, classes):
        truth = np.asarray(label) == c
        if truth.any():
            result[_mistaken(rng, truth, np.minimum(sides / sides.min(), THICKEST))] = c
    return result


def _mistaken(rng: np.random.Generator, truth: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """The mask with mistakes, made within its bounding box and what lies around it."""
    margin = int(LARGEST_CHANGE + LARGEST_SHIFT) + 4
    (box,) = ndimage.find_objects(truth.astype(np.uint8))
    around = tuple(
        slice(max(0, side.start - margin), min(length, side.stop + margin))
        for side, length in zip(box, truth.shape, strict=True)
    )
    mask = truth[around].copy()
    if rng.random() < CHANCE:
        mask = _without_pieces(rng, mask)
    if rng.random() < CHANCE:
        most = np.minimum(np.rint(LARGEST_SHIFT / sides).astype(int), np.array(mask.shape) - 1)
        shift = [int(rng.integers(-n, n + 1)) for n in most]
        mask = ndimage.shift(mask.astype(np.uint8), shift, order=0, mode="nearest").astype(bool)
    change = np.zeros(mask.shape)
    if rng.random() < CHANCE:
        change += float(rng.uniform(-LARGEST_CHANGE, LARGEST_CHANGE))
    if rng.random() < CHANCE:
        noise = ndimage.gaussian_filter(rng.normal(size=mask.shape), WAVE / sides)
        change += LARGEST_CHANGE * noise / max(float(np.abs(noise).max()), 1e-6)
    mask = _signed_distance(mask, sides) + change.clip(-LARGEST_CHANGE, LARGEST_CHANGE) > 0
    if rng.random() < CHANCE and mask.any():
        mask &= ~_ball(rng, mask, np.argwhere(mask), sides)
    if rng.random() < CHANCE:
        mask |= _ball(rng, mask, np.argwhere(~mask), sides)
    result = np.zeros(truth.shape, bool)
    result[around] = mask
    return result


def _without_pieces(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    marks, count = ndimage.label(mask)
    kept = [index for index in range(1, count + 1) if rng.random() >= LOST]
    return np.isin(marks, kept) if kept else mask


def _signed_distance(mask: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Distance to the edge, positive inside; infinite where the mask has no edge."""
    if mask.all() or not mask.any():
        return np.where(mask, np.inf, -np.inf)
    inside = ndimage.distance_transform_edt(mask, sampling=sides)
    distance: np.ndarray = inside - ndimage.distance_transform_edt(~mask, sampling=sides)
    return distance


def _ball(rng: np.random.Generator, like: np.ndarray, centres: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """A ball with a radius of 1 to 4 around one of the centres (N, axes)."""
    if not len(centres):
        return np.zeros(like.shape, bool)
    centre = centres[int(rng.integers(len(centres)))]
    radius = float(rng.uniform(1, 4))
    grid = np.ogrid[tuple(slice(0, n) for n in like.shape)]
    squares = sum(((axis - place) * side) ** 2 for axis, place, side in zip(grid, centre, sides, strict=True))
    return np.asarray(squares <= radius**2)
