"""Where a node lies: its voxel grid in millimetres RAS of the world, and the same as a grid of SFRCore (LPS).

A linear parent transform belongs to the grid: it is applied exactly, no voxel is interpolated.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk

from SFRCore.errors import InputError
from SFRCore.volumes import Geometry

_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_RIGHT_ANGLES = 1e-4


def to_world(node: slicer.vtkMRMLTransformableNode) -> np.ndarray:
    """(4, 4) from the node's own millimetres to those of the world, RAS.

    Raises `InputError` for a non-linear transform: it cannot be written as a grid.
    """
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise InputError(
            f"'{node.GetName()}' is warped by the transform '{transform.GetName()}', which is not linear.",
            hint="In the Transforms module, harden the transform on a copy of it, or remove the transform.",
            code="non_linear",
        )
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def world_matrix(volume: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """(4, 4) from voxel index (i, j, k) to millimetres RAS of the world; raises as `to_world` does."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return to_world(volume) @ slicer.util.arrayFromVTKMatrix(matrix)


def geometry_of(volume: slicer.vtkMRMLVolumeNode) -> Geometry:
    """The voxel grid of a volume in the world, linear parent transforms included.

    Raises `InputError` for an empty volume, a non-linear transform, and axes that are not at right angles.
    """
    data = volume.GetImageData()
    if data is None or not all(data.GetDimensions()):
        raise InputError(
            f"The volume '{volume.GetName()}' is empty.", hint="Load it again, or choose another volume."
        )
    matrix = _RAS_LPS @ world_matrix(volume)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.all(spacing > 0):
        raise InputError(
            f"The volume '{volume.GetName()}' has no extent along one of its axes.",
            hint="Check its spacing in the Volumes module.",
        )
    axes = matrix[:3, :3] / spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() > _RIGHT_ANGLES:
        raise InputError(
            f"The axes of the volume '{volume.GetName()}' are not at right angles.",
            hint="Resample it onto a straight grid, in the module Resample Scalar Volume for one.",
            code="sheared",
        )
    return Geometry(
        size=data.GetDimensions(),
        spacing=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
        origin=(float(matrix[0, 3]), float(matrix[1, 3]), float(matrix[2, 3])),
        direction=tuple(float(value) for value in axes.ravel()),
    )


def index_to_ras(geometry: Geometry) -> np.ndarray:
    """(4, 4) from voxel index, file order, to millimetres RAS."""
    matrix = np.eye(4)
    matrix[:3, :3] = geometry.axes * np.asarray(geometry.spacing)
    matrix[:3, 3] = geometry.origin
    return _RAS_LPS @ matrix


def vtk_matrix(matrix: np.ndarray) -> vtk.vtkMatrix4x4:
    """A (4, 4) array as VTK takes it."""
    return slicer.util.vtkMatrixFromArray(matrix)
