"""Which slice of a case is shown, and how it lies on the page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from SFRCore.volumes.frame import Frame, choose_stack_axis

MARGIN_MM = 12.0
SOFT_TISSUE = (-160.0, 240.0)
PLANES = ("sagittal", "coronal", "axial")
EDGES = (("A", "P", "S", "I"), ("R", "L", "S", "I"), ("R", "L", "A", "P"))

Array = NDArray[np.generic]


@dataclass(frozen=True)
class SliceView:
    """One slice as a viewer shows it: radiological, patient's right on the left, anterior or superior on
    top.

    ``image``, ``label``, ``doubt`` and ``reference`` are (rows, columns); ``spacing`` is mm between rows
    and between columns; ``edges`` are the letters at left, right, top and bottom; ``number`` counts the
    ``count`` slices of the file from 1; ``window`` is the values shown as (black, white).
    """

    image: NDArray[np.float32]
    label: Array | None
    doubt: NDArray[np.float32] | None
    reference: Array | None
    spacing: tuple[float, float]
    plane: str
    edges: tuple[str, str, str, str]
    number: int
    count: int
    window: tuple[float, float]


def choose_view(
    image: sitk.Image,
    label: sitk.Image | None,
    *,
    doubt: sitk.Image | None = None,
    reference: sitk.Image | None = None,
    doubtful: tuple[int, int] | None = None,
    stack_axis: int | None = None,
    window: tuple[float, float] | None = None,
) -> SliceView:
    """The slice of a case that is shown, cropped around what is drawn in it.

    ``label`` and ``reference`` hold a value a structure, ``doubt`` is 1 - confidence. ``doubtful`` is the
    file's (axis, index) of the most doubtful slice, which is shown; else the slice with most foreground
    across ``stack_axis`` (LPS; None: the coarsest spacing) is, or the middle one. Raises VolumeError where
    one of the volumes does not lie on the voxels of ``image``.
    """
    axis = choose_stack_axis([image]) if stack_axis is None else stack_axis
    frame = Frame.of(image, stack_axis=axis)
    if doubtful is not None:
        frame = next(f for a in range(3) if (f := Frame.of(image, stack_axis=a)).axes[2] == doubtful[0])
        axis = frame.stack_axis
    pixels = frame.to_internal(image)
    label_map = None if label is None else frame.to_internal(label, label=True)
    doubt_map = None if doubt is None else frame.to_internal(doubt)
    reference_map = None if reference is None else frame.to_internal(reference, label=True)
    z = _fullest(label_map if label_map is not None else reference_map, pixels.shape[2])
    if doubtful is not None and 0 <= doubtful[1] < pixels.shape[2]:
        z = pixels.shape[2] - 1 - doubtful[1] if frame.flips[2] else doubtful[1]

    def page(volume: Array) -> Array:
        plane = volume[:, :, z].T
        return plane if axis == 2 else plane[::-1]

    masks = [page(m) for m in (label_map, reference_map) if m is not None]
    in_plane = (frame.spacing[1], frame.spacing[0])
    shown = np.asarray(page(pixels), np.float32)
    box = _box_around(masks, shown.shape, in_plane)
    return SliceView(
        image=shown[box],
        label=None if label_map is None else page(label_map)[box],
        doubt=None if doubt_map is None else np.asarray(page(doubt_map), np.float32)[box],
        reference=None if reference_map is None else page(reference_map)[box],
        spacing=in_plane,
        plane=PLANES[axis],
        edges=EDGES[axis],
        number=frame.slice_to_original(z)[1] + 1,
        count=pixels.shape[2],
        window=window or _window(shown[box], float(pixels.min())),
    )


def _fullest(label: Array | None, slices: int) -> int:
    """Z of the slice with most foreground, the middle one where there is none."""
    if label is None or not label.any():
        return slices // 2
    return int(np.count_nonzero(label, axis=(0, 1)).argmax())


def _box_around(
    masks: list[Array], shape: tuple[int, ...], spacing: tuple[float, float]
) -> tuple[slice, slice]:
    """A square of the plane (in mm) around all that is drawn; the whole slice where that is not much
    larger.
    """
    found = np.argwhere(np.any([mask != 0 for mask in masks], axis=0)) if masks else np.empty((0, 2))
    whole = (slice(0, shape[0]), slice(0, shape[1]))
    if not len(found):
        return whole
    low, high = found.min(axis=0), found.max(axis=0) + 1
    half = max((high - low) * spacing) * 0.75 + MARGIN_MM
    centre = (low + high) / 2
    sides = []
    for axis in range(2):
        reach = half / spacing[axis]
        start, stop = round(centre[axis] - reach), round(centre[axis] + reach)
        if stop - start >= 0.8 * shape[axis]:
            start, stop = 0, shape[axis]
        sides.append(slice(max(start, 0), min(stop, shape[axis])))
    return sides[0], sides[1]


def _window(pixels: NDArray[np.float32], lowest: float) -> tuple[float, float]:
    if lowest <= -500.0:  # air in Hounsfield units: percentiles would spend the grey scale on it
        return SOFT_TISSUE
    low, high = np.percentile(pixels, (1.0, 99.5))
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)
