"""Volume nodes: what the study may refer to or must copy, and images of the study shown as volumes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer

from SFRCore.errors import InputError
from SFRCore.study.case import case_id_from
from SFRCore.volumes import Geometry, VolumeError, image_info

from . import study_nodes
from .node_geometry import geometry_of, index_to_ras

_DICOM = "DICOM.instanceUIDs"
_VOXELS = "SFR.Voxels"


def check_scalar(volume: slicer.vtkMRMLVolumeNode) -> None:
    """Raise `InputError` for what holds no grey image: none, empty, a label map, colours or vectors."""
    if volume is None:
        raise InputError("No volume is chosen.", hint="Load a volume and choose it.")
    name = volume.GetName()
    if volume.GetAttribute(study_nodes.KIND) == study_nodes.DOUBT:
        raise InputError(f"'{name}' is a map of doubt, not an image.", hint="Choose the image itself.")
    if volume.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InputError(
            f"'{name}' is a label map, where an image is needed.",
            hint="Choose it as the label of a case, or convert it in the Volumes module.",
        )
    data = volume.GetImageData()
    if data is None or not all(data.GetDimensions()):
        raise InputError(f"The volume '{name}' is empty.", hint="Load it again, or choose another volume.")
    if data.GetNumberOfScalarComponents() != 1:
        raise InputError(
            f"'{name}' has colours or vectors in its voxels, where one number a voxel is needed.",
            hint="Make a grey volume of it, with Vector to Scalar Volume for one.",
        )


def image_of(volume: slicer.vtkMRMLVolumeNode) -> sitk.Image:
    """A copy of the voxels on their grid in the world; raises `InputError` as `geometry_of` does."""
    geometry = geometry_of(volume)
    array = slicer.util.arrayFromVolume(volume)
    return geometry.apply(sitk.GetImageFromArray(np.ascontiguousarray(array)))


def file_behind(volume: slicer.vtkMRMLVolumeNode) -> Path | None:
    """The one file that holds exactly this volume and will stay where it is; None where there is none.

    None for a volume that was edited, moved by a transform, loaded with its centre or orientation changed,
    made from several files, shown from a sequence, or that lies in Slicer's own temporary folders.
    """
    storage = volume.GetStorageNode()
    if storage is None or volume.GetModifiedSinceRead() or sequence_of(volume) is not None:
        return None
    if storage.GetNumberOfFileNames() > 1 or not storage.GetFullNameFromFileName():
        return None
    path = Path(storage.GetFullNameFromFileName())
    if not path.is_file() or _is_temporary(path):
        return None
    try:
        same = not image_info(path).geometry.difference(geometry_of(volume))
    except VolumeError:
        return None
    return path if same else None


def sequence_of(volume: slicer.vtkMRMLVolumeNode) -> slicer.vtkMRMLSequenceBrowserNode | None:
    """The sequence browser that shows its frames in this volume, else None."""
    for browser in slicer.util.getNodesByClass("vtkMRMLSequenceBrowserNode"):
        if browser.IsProxyNodeID(volume.GetID()):
            return browser
    return None


def case_id_of(volume: slicer.vtkMRMLVolumeNode) -> str | None:
    """A case id by the volume's name, with the frame for one of a sequence; None for DICOM, whose names may
    be a patient's.
    """
    if volume.GetAttribute(_DICOM):
        return None
    name = volume.GetName() or ""
    browser = sequence_of(volume)
    if browser is not None:
        name = f"{name} frame {browser.GetSelectedItemNumber() + 1}"
    return case_id_from(name)


def show_image(image: sitk.Image, name: str) -> slicer.vtkMRMLScalarVolumeNode:
    """A new volume with the voxels of `image`, on its grid; 64-bit whole numbers become floating point."""
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4:
        array = array.astype(np.float64)
    matrix = index_to_ras(Geometry.of(image))
    return slicer.util.addVolumeFromArray(array, matrix, name)


def note_voxels(volume: slicer.vtkMRMLVolumeNode) -> None:
    """Remember what the voxels are now, also in a scene that is saved: see `has_other_voxels`."""
    volume.SetAttribute(_VOXELS, _hash(volume))


def has_other_voxels(volume: slicer.vtkMRMLVolumeNode) -> bool:
    """Whether voxels were changed since `note_voxels`; False where they never were noted."""
    noted = volume.GetAttribute(_VOXELS)
    return noted is not None and noted != _hash(volume)


def _hash(volume: slicer.vtkMRMLVolumeNode) -> str:
    voxels = np.ascontiguousarray(slicer.util.arrayFromVolume(volume))
    return hashlib.blake2b(voxels.data, digest_size=16).hexdigest()


def _is_temporary(path: Path) -> bool:
    """Whether Slicer may remove the file by itself: unpacked scenes and downloads lie there."""
    folders = [slicer.app.temporaryPath]
    cache = slicer.mrmlScene.GetCacheManager()
    if cache is not None and cache.GetRemoteCacheDirectory():
        folders.append(cache.GetRemoteCacheDirectory())
    resolved = path.resolve()
    return any(folder and resolved.is_relative_to(Path(folder).resolve()) for folder in folders)
