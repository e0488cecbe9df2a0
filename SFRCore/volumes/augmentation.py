"""Augmentation of crops: mirror images, the released rotation with flip, Bezier intensities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from SFRCore.volumes.crops import Crop

_CURVE_POINTS = 2000


def random_flip(rng: np.random.Generator, crop: Crop, axes: Sequence[int]) -> Crop:
    """Mirror the crop along each of ``axes`` with probability 1/2 (none where structures have a side)."""
    chosen = tuple(axis for axis in axes if rng.random() < 0.5)
    if not chosen:
        return crop
    return _mapped(crop, lambda a: np.flip(a, chosen))


def rot_flip_faithful(rng: np.random.Generator, crop: Crop) -> Crop:
    """RandomRotFlip of UA-MT and SFR as released: k x 90 degrees in the (X, Y) plane, then always one flip.

    The result is always a mirror image. Where X and Y differ only k = 0 and 2 are drawn, so the shape stays.
    """
    square = crop.image.shape[0] == crop.image.shape[1]
    turns = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
    axis = int(rng.integers(2))
    return _mapped(crop, lambda a: np.flip(np.rot90(a, turns, axes=(0, 1)), axis))


def bezier_curve(control: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) samples of the cubic Bezier curve through (0, 0), (u1, u2), (u3, u4), (1, 1).

    Both coordinates rise with the curve's parameter for control points in [0, 1], so it is a monotone map.
    """
    u1, u2, u3, u4 = control
    t = np.linspace(0.0, 1.0, _CURVE_POINTS)
    first, second, third = 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    return first * u1 + second * u3 + third, first * u2 + second * u4 + third


def bezier_intensity(
    rng: np.random.Generator,
    image: np.ndarray,
    *,
    per_slice: bool = True,
    probability: float = 0.5,
    faithful: bool = False,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """Bend intensities by random monotone curves (Models Genesis; SFR ``nt=2``, ``nonlinear_rate=0.5``).

    image (X, Y, Z) float32; each slice along Z, or the whole volume, is bent with ``probability`` by a curve
    of its own. The 0.5 to 99.5 percentiles of ``image``, where it is ``valid`` (X, Y, Z), become [0, 1] for
    the curve and are mapped back. With ``faithful`` the curve meets the z-scored values themselves, as
    released: those outside [0, 1] are cut.
    """
    seen = image if valid is None else image[valid]
    low, high = (0.0, 1.0) if faithful or not seen.size else map(float, np.percentile(seen, [0.5, 99.5]))
    result = np.array(image, dtype=np.float32)
    if high <= low:
        return result
    for z in range(image.shape[2]) if per_slice else [slice(None)]:
        if rng.random() >= probability:
            continue
        x, y = bezier_curve(rng.random(4))
        result[:, :, z] = low + (high - low) * np.interp((result[:, :, z] - low) / (high - low), x, y)
    return result


def _mapped(crop: Crop, change: Callable[[np.ndarray], np.ndarray]) -> Crop:
    def apply(array: np.ndarray | None) -> np.ndarray | None:
        return None if array is None else np.ascontiguousarray(change(array))

    return replace(
        crop,
        image=np.ascontiguousarray(change(crop.image)),
        label=apply(crop.label),
        extra=apply(crop.extra),
        valid=np.ascontiguousarray(change(crop.valid)),
    )
