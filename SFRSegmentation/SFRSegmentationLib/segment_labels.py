"""A segmentation as a label map in the study's values, on exactly the voxels of an image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from scipy import ndimage
from vtk.util.numpy_support import vtk_to_numpy

from SFRCore.errors import InputError
from SFRCore.study import Structure
from SFRCore.volumes import Geometry

from .node_geometry import index_to_ras, to_world
from .segment_matching import Matching, match_segments

_TOLERANCE = 0.1
_VOXELS = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def label_of(
    node: slicer.vtkMRMLSegmentationNode,
    structures: Sequence[Structure],
    geometry: Geometry,
    *,
    resample: bool = False,
    others_as_background: bool = False,
    marked: bool = False,
) -> sitk.Image:
    """The segments as a label map, uint16 in the structures' values, on exactly `geometry` (world, LPS).

    Segments are matched as `match_segments` says; a structure without one stays empty. Voxels are placed one
    to one, whatever order or direction the axes have; `resample` brings another grid over by nearest
    neighbour and drops what lies outside. `others_as_background` leaves out segments that are no structure.

    Raises `InputError` for segments that are no structure, voxels in two structures, another grid, voxels
    outside the image, a non-linear transform, or segments that are not made of voxels.
    """
    matching = match_segments(node, structures, marked=marked)
    if matching.others and not others_as_background:
        raise _no_structure(node, matching)
    shape = geometry.size[::-1]
    label = np.zeros(shape, np.uint16)
    names = {structure.value: structure.name for structure in structures}
    for value, id in sorted(matching.ids.items()):
        mask = segment_mask(node, id, geometry, resample=resample)
        both = mask & (label > 0)
        if both.any():
            first = names[int(label[both][0])]
            raise InputError(
                f"{int(both.sum())} voxels of '{node.GetName()}' belong to {first} and to {names[value]}.",
                hint="Take them from one of the two: paint over them with 'Allow overlap' off in Masking.",
                code="overlap",
            )
        label[mask] = value
    return geometry.apply(sitk.GetImageFromArray(label))


def segment_mask(
    node: slicer.vtkMRMLSegmentationNode, id: str, geometry: Geometry, *, resample: bool = False
) -> np.ndarray:
    """(Z, Y, X) bool: the voxels of a grid that belong to one segment; raises `InputError` as `label_of`."""
    segment = node.GetSegmentation().GetSegment(id)
    image = segment.GetRepresentation(_VOXELS)
    if image is None:
        raise InputError(
            f"The segment '{segment.GetName()}' is a surface, not voxels.",
            hint="In the Segmentations module, make Binary labelmap under Representations.",
        )
    mask = np.zeros(geometry.size[::-1], bool)
    found = _drawn(segment, image)
    if found is not None:
        _place(*found, _index_map(node, image, geometry), mask, f"'{segment.GetName()}'", resample)
    return mask


def fingerprint(node: slicer.vtkMRMLSegmentationNode) -> str:
    """A hash of which voxels each segment has: another one after an edit, the same one after a new name or
    colour, another layer, or a scene that was saved and loaded.
    """
    segmentation, hashed = node.GetSegmentation(), hashlib.blake2b(digest_size=16)
    for id in sorted(segmentation.GetSegmentIDs()):
        segment = segmentation.GetSegment(id)
        image = segment.GetRepresentation(_VOXELS)
        found = None if image is None else _drawn(segment, image)
        hashed.update(f"{len(id)} {id} ".encode())
        if found is not None:
            voxels, first = found
            matrix = np.round(_image_to_world(image), 4) + 0.0
            hashed.update(f"{first} {voxels.shape} {matrix.tolist()}".encode())
            hashed.update(np.packbits(voxels).tobytes())
    return hashed.hexdigest()


def voxel_times(node: slicer.vtkMRMLSegmentationNode) -> dict[str, int]:
    """When the voxels of each segment were touched last, in VTK's time: equal where nothing was drawn."""
    segmentation = node.GetSegmentation()
    images = {
        id: segmentation.GetSegment(id).GetRepresentation(_VOXELS) for id in segmentation.GetSegmentIDs()
    }
    return {id: image.GetMTime() for id, image in images.items() if image is not None}


def _drawn(
    segment: slicer.vtkSegment, image: slicer.vtkOrientedImageData
) -> tuple[np.ndarray, list[int]] | None:
    """The smallest box round a segment, (Z, Y, X) bool, and the index (i, j, k) of its first voxel in the
    segment's own grid; None where nothing is drawn.
    """
    if image.IsEmpty() or image.GetPointData().GetScalars() is None:
        return None
    extent = image.GetExtent()
    shape = tuple(extent[2 * axis + 1] - extent[2 * axis] + 1 for axis in (2, 1, 0))
    voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape) == segment.GetLabelValue()
    planes = _range(voxels.any(axis=(1, 2)))
    if planes is None:
        return None
    flat = voxels[planes].any(axis=0)
    box = (planes, _range(flat.any(axis=1)), _range(flat.any(axis=0)))
    return voxels[box], [extent[2 * axis] + box[2 - axis].start for axis in range(3)]


def _range(occupied: np.ndarray) -> slice | None:
    found = np.flatnonzero(occupied)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else None


def _index_map(
    node: slicer.vtkMRMLSegmentationNode, image: slicer.vtkOrientedImageData, geometry: Geometry
) -> np.ndarray:
    """(4, 4) from voxel index of the segment to voxel index of the grid."""
    return np.linalg.inv(index_to_ras(geometry)) @ to_world(node) @ _image_to_world(image)


def _image_to_world(image: slicer.vtkOrientedImageData) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def _place(
    voxels: np.ndarray, first: list[int], index_map: np.ndarray, mask: np.ndarray, name: str, resample: bool
) -> None:
    """Write (Z, Y, X) voxels, whose first one has the index `first` (i, j, k), into `mask`."""
    last = [start + length - 1 for start, length in zip(first, voxels.shape[::-1], strict=True)]
    corners = np.array([[*corner, 1] for corner in np.array(np.meshgrid(*zip(first, last, strict=True))).T
                        .reshape(-1, 3)], float)  # fmt: skip
    whole = np.round(index_map).astype(int)
    exact = np.abs((index_map[:3] - whole[:3]) @ corners.T).max() < _TOLERANCE
    exact = exact and _is_turn(whole[:3, :3])
    if not exact and not resample:
        raise InputError(
            f"The segment {name} does not lie on the voxels of the image.",
            hint="Check that it was drawn on this image; step 2 can bring it onto the image's voxels.",
            code="other_grid",
        )
    if not exact:
        mask |= _resampled(voxels, first, index_map, mask.shape)
        return
    outside = _turned_into(mask, voxels, whole @ [*first, 1], whole @ [*last, 1], whole[:3, :3])
    if outside and not resample:
        raise InputError(
            f"{outside} voxels of the segment {name} lie outside the image.",
            hint="Check that it was drawn on this image; step 2 can add it without them.",
            code="other_grid",
        )


def _is_turn(matrix: np.ndarray) -> bool:
    """Whether a (3, 3) integer matrix only swaps and reverses axes."""
    size = np.abs(matrix)
    return bool((size.sum(axis=0) == 1).all() and (size.sum(axis=1) == 1).all())


def _turned_into(
    mask: np.ndarray, voxels: np.ndarray, first: np.ndarray, last: np.ndarray, turn: np.ndarray
) -> int:
    """Write a (Z, Y, X) box into `mask` with its axes swapped and reversed by `turn` (3, 3); its first and
    last voxel come to the indices `first` and `last` (i, j, k). Returns how many set voxels lie outside.
    """
    order = np.abs(turn).argmax(axis=1)
    box = voxels.transpose(2, 1, 0).transpose(order)
    box = box[tuple(slice(None, None, turn[axis, source]) for axis, source in enumerate(order))]
    target = mask.transpose(2, 1, 0)
    inside, places = [], []
    for begin, length, size in zip(np.minimum(first, last), box.shape, target.shape, strict=False):
        low, high = min(max(begin, 0), size), max(min(begin + length, size), 0)
        places.append(slice(low, max(low, high)))
        inside.append(slice(low - begin, max(low, high) - begin))
    kept = box[tuple(inside)]
    target[tuple(places)] |= kept
    return int(box.sum() - kept.sum())


def _resampled(
    voxels: np.ndarray, first: list[int], index_map: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """The voxels on the grid of `shape` (Z, Y, X), nearest neighbour."""
    back = np.linalg.inv(index_map)
    matrix = back[:3, :3][::-1, ::-1]
    offset = (back[:3, 3] - np.asarray(first))[::-1]
    padded = np.pad(voxels, 1).astype(np.uint8)
    moved = ndimage.affine_transform(padded, matrix, offset + 1, output_shape=shape, order=0, mode="constant")
    return moved > 0


def _no_structure(node: slicer.vtkMRMLSegmentationNode, matching: Matching) -> InputError:
    names = [f"'{node.GetSegmentation().GetSegment(id).GetName()}'" for id in matching.others]
    missing = "".join(f" {structure.name} has no segment." for structure in matching.missing)
    return InputError(
        f"The segment{'s' if len(names) > 1 else ''} {', '.join(names)} of '{node.GetName()}' "
        f"{'are' if len(names) > 1 else 'is'} no structure of the study.{missing}",
        hint="Rename or delete the segment, or let other segments count as background.",
        code="no_structure",
    )
