"""Label maps of a file: the study's own values, checked against its structures and their image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import SimpleITK as sitk

from SFRCore.volumes.geometry import Geometry, VolumeError


def check_label(
    image: sitk.Image,
    values: Sequence[int],
    *,
    name: str = "The label map",
    like: sitk.Image | Geometry | None = None,
    merged: Mapping[int, int] | None = None,
    other_as_background: bool = False,
    resample: bool = False,
    allow_empty: bool = True,
) -> sitk.Image:
    """Check a label map in memory; returned as uint16 in the study's values, on exactly the grid of ``like``.

    Whole numbers stored as float are accepted, as is 0/255 where the study's only structure has the value 1.
    ``merged`` gives further values with the study's own that each becomes.
    Voxels of an undeclared value become 0 with ``other_as_background``; a label on another grid is brought to
    ``like`` by nearest neighbour with ``resample``. ``name`` is what messages call it.

    Raises VolumeError: undeclared values (listed), fractions, another grid, no voxel of any structure where
    ``allow_empty`` is False.
    """
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise VolumeError(
            f"{name} is not a label map with one number a voxel.",
            hint="Export the segmentation as a single label map, without overlapping layers.",
        )
    if like is not None:
        image = _on_grid(image, like if isinstance(like, Geometry) else Geometry.of(like), name, resample)
    stored = sitk.GetArrayViewFromImage(image)
    present = np.unique(stored)
    if not np.isfinite(present).all() or np.any(present != np.round(present)):
        raise VolumeError(
            f"{name} contains values that are not whole numbers, so it is not a label map.",
            hint="Check that a label map was chosen and not an image or a probability map.",
        )
    found = [int(v) for v in present if v != 0]
    if found == [255] and list(values) == [1]:
        label = (stored == 255).astype(np.uint16)
    else:
        merged = merged or {}
        known = [*values, *merged]
        undeclared = [v for v in found if v not in set(known)]
        if undeclared and not other_as_background:
            shown = ", ".join(map(str, undeclared[:10])) + (", ..." if len(undeclared) > 10 else "")
            raise VolumeError(
                f"{name} contains the value{'s' if len(undeclared) > 1 else ''} {shown}, "
                f"but the study's structures are {', '.join(map(str, known))}.",
                hint="Add these structures to the study, or have other values taken as background "
                "(sfr init --other-as-background).",
            )
        label = np.where(np.isin(stored, list(values)), stored, 0).astype(np.uint16)
        for other, value in merged.items():
            label[stored == other] = value
    if not allow_empty and not label.any():
        raise VolumeError(
            f"{name} is empty: no voxel belongs to a structure.", hint="Draw the structures, then try again."
        )
    checked = sitk.GetImageFromArray(label)
    return Geometry.of(image).apply(checked)


def _on_grid(image: sitk.Image, grid: Geometry, name: str, resample: bool) -> sitk.Image:
    difference = Geometry.of(image).difference(grid)
    if difference and not resample:
        raise VolumeError(
            f"{name} does not lie on its image's voxels: {difference}.",
            hint="Check that it belongs to this image, or let it be resampled.",
        )
    if difference:
        return sitk.Resample(
            image, grid.size, sitk.Transform(3, sitk.sitkIdentity), sitk.sitkNearestNeighbor, grid.origin,
            grid.spacing, grid.direction, 0.0, image.GetPixelID(),
        )  # fmt: skip
    return grid.apply(sitk.Image(image))
