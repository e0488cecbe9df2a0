"""Arrays brought to another number of voxels over the same field of view."""

from __future__ import annotations

from typing import Literal

import numpy as np
import SimpleITK as sitk

_ANISOTROPY = 3.0


def resample_array(
    array: np.ndarray,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    *,
    kind: Literal["image", "linear", "label"],
) -> np.ndarray:
    """(X, Y, Z) array at ``spacing`` mm to ``shape``, keeping its type and the edges of its field of view.

    ``image``: cubic B-spline, and nearest neighbour along an axis more than 3 times coarser than the finest
    (as nnU-Net does, to leave thick slices unmixed). ``linear`` suits probabilities, ``label`` takes the
    nearest voxel.
    """
    if array.shape == shape:
        return array
    if kind == "label":
        return _resample(array, shape, sitk.sitkNearestNeighbor)
    if kind == "linear":
        return _resample(array, shape, sitk.sitkLinear)
    coarsest = int(np.argmax(spacing))
    if spacing[coarsest] <= _ANISOTROPY * min(spacing) or array.shape[coarsest] == shape[coarsest]:
        return _resample(array, shape, sitk.sitkBSpline)
    in_plane = tuple(array.shape[a] if a == coarsest else shape[a] for a in range(3))
    return _resample(_resample(array, in_plane, sitk.sitkBSpline), shape, sitk.sitkNearestNeighbor)


def _resample(array: np.ndarray, shape: tuple[int, ...], interpolator: int) -> np.ndarray:
    if array.shape == shape:
        return array
    floating = array.dtype.kind == "f"
    worked = array.astype(np.float32) if floating and array.dtype.itemsize < 4 else array
    if interpolator == sitk.sitkBSpline and min(array.shape) < 4:
        interpolator = sitk.sitkLinear
    image = sitk.GetImageFromArray(np.ascontiguousarray(worked.transpose()))
    scale = [n / m for n, m in zip(array.shape, shape, strict=True)]
    resampled = sitk.Resample(
        image,
        shape,
        sitk.Transform(3, sitk.sitkIdentity),
        interpolator,
        [(s - 1) / 2 for s in scale],
        scale,
        (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
        0.0,
        image.GetPixelID(),
        True,
    )
    result = np.ascontiguousarray(sitk.GetArrayViewFromImage(resampled).transpose())
    return result.astype(array.dtype, copy=False)
