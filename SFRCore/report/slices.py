"""Which slice of a case is shown, and how it lies on the page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from SFRCore.volumes.frame import Frame, choose_stack_axis

MARGIN_VOXELS = 3
MARGIN_MM = 12.0
SOFT_TISSUE = (-160.0, 240.0)
PLANES = ("sagittal", "coronal", "axial")
EDGES = (("A", "P", "S", "I"), ("R", "L", "S", "I"), ("R", "L", "A", "P"))

Array = NDArray[np.generic]


@dataclass(frozen=True)
class SliceView:
    """One slice as a viewer shows it: radiological, patient's right on the left, anterior or superior on top.

    ``image``, ``label``, ``doubt`` and ``reference`` are (rows, columns); ``spacing`` is mm between rows and
    between columns; ``edges`` are the letters at left, right, top and bottom; ``number`` counts the ``count``
    slices of the file from 1; ``window`` is the values shown as (black, white).
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
    stack_axis: int | None = None,
    window: tuple[float, float] | None = None,
) -> SliceView:
    """The most doubtful slice of a case, cropped around what is drawn in it.

    ``label`` and ``reference`` hold a value a structure, ``doubt`` is 1 - confidence. ``stack_axis`` is the LPS
    axis across the slices (None: that of the coarsest spacing). Raises VolumeError where one of them does not
    lie on the voxels of ``image``.
    """
    axis = choose_stack_axis([image]) if stack_axis is None else stack_axis
    frame = Frame.of(image, stack_axis=axis)
    pixels = frame.to_internal(image)
    label_map = None if label is None else frame.to_internal(label, label=True)
    doubt_map = None if doubt is None else frame.to_internal(doubt)
    reference_map = None if reference is None else frame.to_internal(reference, label=True)
    drawn = label_map if label_map is not None else reference_map
    z = pixels.shape[2] // 2 if drawn is None else shown_slice(drawn, doubt_map)

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


def shown_slice(label: Array, doubt: Array | None) -> int:
    """Z of the slice with the most doubt in the foreground and a margin around it.

    ``label`` and ``doubt`` are (X, Y, Z). Without doubt: the slice with most foreground. Without foreground: the
    slice with most doubt, or the middle one.
    """
    foreground = label != 0
    if not foreground.any():
        total = np.zeros(label.shape[2]) if doubt is None else doubt.sum(axis=(0, 1), dtype=float)
        return int(total.argmax()) if total.any() else label.shape[2] // 2
    if doubt is not None:
        cube = ndimage.find_objects(foreground.view(np.uint8))[0]
        grown = tuple(
            slice(max(s.start - MARGIN_VOXELS, 0), min(s.stop + MARGIN_VOXELS, n))
            for s, n in zip(cube, label.shape, strict=True)
        )
        near = ndimage.binary_dilation(foreground[grown], iterations=MARGIN_VOXELS)
        total = (np.asarray(doubt[grown], float) * near).sum(axis=(0, 1))
        if total.any():
            return int(total.argmax()) + grown[2].start
    return int(foreground.sum(axis=(0, 1)).argmax())


def _box_around(
    masks: list[Array], shape: tuple[int, ...], spacing: tuple[float, float]
) -> tuple[slice, slice]:
    """A square of the plane (in mm) around all that is drawn; the whole slice where that is not much larger."""
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
