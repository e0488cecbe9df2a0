"""Whether a segmentation may be the label of an image: drawn on that image, and not empty."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import SimpleITK as sitk
import slicer

from SFRCore.errors import InputError
from SFRCore.volumes import Geometry

from .node_geometry import geometry_of


def check_drawn_on(
    node: slicer.vtkMRMLNode, name: str, is_image: Callable[[slicer.vtkMRMLVolumeNode], bool]
) -> None:
    """Raise `InputError` (code "other_volume") where a segmentation was drawn on a volume for which
    ``is_image`` says no; where it does not tell what it was drawn on, it may be. ``name`` is the image's.
    """
    if not node.IsA("vtkMRMLSegmentationNode"):
        return
    source = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    if source is None or not source.IsA("vtkMRMLVolumeNode") or is_image(source):
        return
    raise InputError(
        f"'{node.GetName()}' was drawn on '{source.GetName()}', not on '{name}'.",
        hint="Choose the segmentation that was drawn on this image.",
        code="other_volume",
    )


def check_not_empty(label: sitk.Image, node: slicer.vtkMRMLNode) -> None:
    """Raise `InputError` (code "empty_label") for a label without a voxel of any structure."""
    if not sitk.GetArrayViewFromImage(label).any():
        raise InputError(
            f"'{node.GetName()}' is empty: no structure of the study has a voxel in it.",
            hint="Draw the structures first, or choose another segmentation.",
            code="empty_label",
        )


def shows(volume: slicer.vtkMRMLVolumeNode, image: sitk.Image) -> bool:
    """Whether a volume has just the voxels of an image, on its grid."""
    try:
        if geometry_of(volume).difference(Geometry.of(image)):
            return False
    except InputError:
        return False
    return bool(np.array_equal(slicer.util.arrayFromVolume(volume), sitk.GetArrayViewFromImage(image)))
