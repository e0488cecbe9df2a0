"""Synthetic pseudo-labels: true label maps with the mistakes that a network makes.

Source: ASLseg (ISBI 2024), whose adaptation network is trained on synthetic pseudo-labels; how they are made
is not published. Here a structure may grow or shrink, shift, lose or gain pieces, get holes and a wavy edge.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

CHANCE = 0.5
"""Probability of each kind of mistake."""
LARGEST_CHANGE = 3
"""Voxels by which an edge may move."""
LARGEST_SHIFT = 2
LOST = 0.25
WAVE = 3.0
"""Standard deviation in voxels over which the wavy edge is smooth."""


def corrupt(rng: np.random.Generator, label: np.ndarray, classes: int) -> np.ndarray:
    """A label map (X, Y, Z), uint8, with mistakes; structures that are not there stay away."""
    result = np.zeros(label.shape, np.uint8)
    for c in range(1, classes):
        truth = np.asarray(label) == c
        if truth.any():
            result[_mistaken(rng, truth)] = c
    return result


def _mistaken(rng: np.random.Generator, truth: np.ndarray) -> np.ndarray:
    """The mask with mistakes, made within its bounding box and what lies around it."""
    margin = LARGEST_CHANGE + LARGEST_SHIFT + 4
    (box,) = ndimage.find_objects(truth.astype(np.uint8))
    around = tuple(
        slice(max(0, side.start - margin), min(length, side.stop + margin))
        for side, length in zip(box, truth.shape, strict=True)
    )
    mask = truth[around].copy()
    if rng.random() < CHANCE:
        mask = _without_pieces(rng, mask)
    if rng.random() < CHANCE:
        mask = ndimage.shift(
            mask.astype(np.uint8),
            [
                int(rng.integers(-min(LARGEST_SHIFT, n - 1), min(LARGEST_SHIFT, n - 1) + 1))
                for n in mask.shape
            ],
            order=0,
        ).astype(bool)
    distance = _signed_distance(mask)
    offset = 0.0
    if rng.random() < CHANCE:
        offset = float(rng.uniform(-LARGEST_CHANGE, LARGEST_CHANGE))
    if rng.random() < CHANCE:
        noise = ndimage.gaussian_filter(rng.normal(size=mask.shape), WAVE)
        distance = distance + LARGEST_CHANGE * noise / max(float(np.abs(noise).max()), 1e-6)
    mask = distance + offset > 0
    if rng.random() < CHANCE and mask.any():
        mask &= ~_ball(rng, mask, np.argwhere(mask))
    if rng.random() < CHANCE:
        mask |= _ball(rng, mask, np.argwhere(~mask))
    result = np.zeros(truth.shape, bool)
    result[around] = mask
    return result


def _without_pieces(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    marks, count = ndimage.label(mask)
    kept = [index for index in range(1, count + 1) if rng.random() >= LOST]
    return np.isin(marks, kept) if kept else mask


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Voxels to the edge, positive inside; far outside everywhere where the mask is empty."""
    if not mask.any():
        return np.full(mask.shape, -np.inf)
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1, 1:-1]
    outside = ndimage.distance_transform_edt(~mask)
    distance: np.ndarray = inside - outside
    return distance


def _ball(rng: np.random.Generator, like: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """A ball of 1 to 4 voxels radius around one of the centres (N, 3)."""
    if not len(centres):
        return np.zeros(like.shape, bool)
    centre = centres[int(rng.integers(len(centres)))]
    radius = float(rng.uniform(1, 4))
    grid = np.ogrid[tuple(slice(0, n) for n in like.shape)]
    squares = sum((axis - place) ** 2 for axis, place in zip(grid, centre, strict=True))
    return np.asarray(squares <= radius**2)
