"""Overlap and surface distances between two label maps, per structure.

Definitions and numbers are those of ``medpy.metric.binary`` (``dc``, ``jc``, ``asd``, ``hd95``), which the
reference implementations of SFR, UA-MT and MagicNet call with (prediction, reference).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from SFRCore.errors import InputError

METRICS = ("dice", "jaccard", "asd", "hd95")

Mode = Literal["strict", "official"]
Scores = dict[str, float]
BoolArray = NDArray[np.bool_]


def case_scores(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    classes: int | Iterable[int],
    *,
    spacing: tuple[float, ...] | None = None,
    mode: Mode = "strict",
) -> dict[int, Scores]:
    """Score one case, each structure against everything else.

    ``prediction`` and ``reference`` are label maps of the same shape (X, Y, Z). ``classes`` names the values
    to score: a number of classes C (background included) scores 1..C-1, anything else is taken as the values
    themselves. Returns ``{value: {"dice", "jaccard", "asd", "hd95"}}``. Distances are in voxels, or in
    millimetres when ``spacing`` (mm along each array axis) is given. ``asd`` runs one way, from the surface
    of the prediction to that of the reference; ``hd95`` is the 95th percentile of the distances of both
    directions pooled.

    Where the prediction or the reference holds no voxel of a structure no distance exists. ``strict``:
    distances are NaN, Dice and Jaccard 0, or 1 if both are empty. ``official``: all four are 0, as the
    released test scripts score such a case (it flatters the mean of the distances).

    Raises InputError if the shapes differ, ``mode`` is unknown or ``spacing`` does not fit.
    """
    prediction, reference = np.asarray(prediction), np.asarray(reference)
    if prediction.shape != reference.shape:
        raise InputError(
            f"The prediction has {_size(prediction)} voxels and the reference {_size(reference)}: "
            "they cannot be compared.",
            hint="Give a reference that was drawn on the same image.",
        )
    refuse_mode(mode)
    if spacing is not None and (len(spacing) != prediction.ndim or not all(s > 0 for s in spacing)):
        raise InputError(f"A spacing of {spacing} does not fit an image with {prediction.ndim} axes.")
    values = range(1, classes) if isinstance(classes, int) else [int(value) for value in classes]
    return {
        value: _structure_scores(prediction == value, reference == value, spacing, mode) for value in values
    }


def surface(mask: BoolArray) -> BoolArray:
    """Voxels of ``mask`` (X, Y, Z) with a face neighbour outside of it or outside of the array."""
    eroded = ndimage.binary_erosion(mask, structure=ndimage.generate_binary_structure(mask.ndim, 1))
    return np.asarray(mask ^ eroded, dtype=bool)


def refuse_mode(mode: str) -> None:
    """Raise InputError unless ``mode`` is a way of scoring."""
    if mode not in ("strict", "official"):
        raise InputError(f"There is no way of scoring called '{mode}'.", hint="Choose strict or official.")


def _structure_scores(
    prediction: BoolArray, reference: BoolArray, spacing: tuple[float, ...] | None, mode: Mode
) -> Scores:
    found, wanted = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if not found or not wanted:
        if mode == "official":
            return dict.fromkeys(METRICS, 0.0)
        overlap = 1.0 if found == wanted else 0.0
        return {"dice": overlap, "jaccard": overlap, "asd": math.nan, "hd95": math.nan}
    # Outside of the box both masks are empty, so cropping to it changes neither surface nor distance.
    box = ndimage.find_objects((prediction | reference).view(np.uint8))[0]
    prediction, reference = prediction[box], reference[box]
    shared = int(np.count_nonzero(prediction & reference))
    prediction_surface, reference_surface = surface(prediction), surface(reference)
    to_reference = _distances(prediction_surface, reference_surface, spacing)
    to_prediction = _distances(reference_surface, prediction_surface, spacing)
    return {
        "dice": 2.0 * shared / (found + wanted),
        "jaccard": shared / (found + wanted - shared),
        "asd": float(to_reference.mean()),
        "hd95": float(np.percentile(np.concatenate([to_reference, to_prediction]), 95)),
    }


def _distances(start: BoolArray, goal: BoolArray, spacing: tuple[float, ...] | None) -> NDArray[np.float64]:
    field: NDArray[np.float64] = ndimage.distance_transform_edt(~goal, sampling=spacing)
    return field[start]


def _size(array: NDArray[np.integer]) -> str:
    return " x ".join(str(length) for length in array.shape)
