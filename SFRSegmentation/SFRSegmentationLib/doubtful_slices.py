"""The slices of a case that deserve a look, the most doubtful first, and the way of the views to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
import slicer
from scipy import ndimage

from SFRCore.study import CaseResult
from SFRCore.volumes import Frame, Geometry

from .doubt import doubt_of
from .node_geometry import index_to_ras

_SHARE = 0.2
_APART = 2
_SPOT = 5


@dataclass(frozen=True)
class DoubtfulSlice:
    """A slice of the image file: voxel index along a file axis, and its summed doubt."""

    axis: int
    index: int
    doubt: float


def doubtful_slices(result: CaseResult, geometry: Geometry) -> list[DoubtfulSlice]:
    """Where the doubt of a result peaks along the stacking axis, the largest first, at least one.

    A peak has a fifth of the largest doubt or more and lies more than two slices from a larger one: the next
    doubtful slice is never just the neighbour.
    """
    axis = int(result.extra.get("slice_axis", Frame.of(geometry, stack_axis=2).native_slice(0)[0]))
    count = geometry.size[axis]
    slices = [(float(row["doubt"]), int(row["index"])) for row in result.slices]
    slices = [(doubt, index) for doubt, index in slices if 0 <= index < count]
    slices.sort(key=lambda found: (-found[0], found[1] != result.doubtful_slice, found[1]))
    chosen: list[DoubtfulSlice] = []
    for doubt, index in slices:
        enough = not chosen or doubt >= _SHARE * chosen[0].doubt > 0
        if enough and all(abs(index - other.index) > _APART for other in chosen):
            chosen.append(DoubtfulSlice(axis, index, doubt))
    if not chosen:
        index = min(max(result.doubtful_slice, 0), count - 1)
        chosen.append(DoubtfulSlice(axis, index, 0.0))
    return chosen


def doubtful_spot(confidence: sitk.Image, label: sitk.Image, place: DoubtfulSlice) -> tuple[int, int, int]:
    """The voxel (i, j, k) of a slice with the most doubt around it, near a structure where there is one."""
    array_axis = 2 - place.axis
    doubt = doubt_of(np.take(sitk.GetArrayViewFromImage(confidence), place.index, axis=array_axis))
    found = np.take(sitk.GetArrayViewFromImage(label), place.index, axis=array_axis) > 0
    if found.any():
        doubt = np.where(ndimage.binary_dilation(found, iterations=_SPOT), doubt, 0)
    smooth = np.where(doubt >= doubt.max() / 2, ndimage.uniform_filter(doubt, _SPOT, mode="constant"), 0)
    spot = list(np.unravel_index(int(smooth.argmax()), smooth.shape))
    spot.insert(array_axis, place.index)
    k, j, i = (int(index) for index in spot)
    return i, j, k


def jump_to(geometry: Geometry, index: Sequence[float]) -> None:
    """Bring a voxel (i, j, k) into all slice views; zoom and place in the view stay as they are."""
    right, anterior, superior, _one = index_to_ras(geometry) @ [*index, 1.0]
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.JumpSliceByOffsetting(right, anterior, superior)
