"""Reading and writing volumes: what cannot be used is refused in a sentence, never repaired silently."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SFRCore.runtime.files import atomic_path
from SFRCore.volumes import dicom
from SFRCore.volumes.geometry import Geometry, VolumeError, same_geometry
from SFRCore.volumes.integrity import check_bytes
from SFRCore.volumes.labels import check_label

__all__ = [
    "ImageInfo", "VolumeError", "check_label", "image_info", "quiet_itk", "read_image", "read_label",
    "same_geometry", "write_volume",
]  # fmt: skip

WRITTEN_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")
_quiet_lock = threading.Lock()


@dataclass(frozen=True)
class ImageInfo:
    """What a header says: the grid and the kind of pixel; no voxel has been read."""

    geometry: Geometry
    pixel: str

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along each axis, file order."""
        return self.geometry.size

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres along each axis, file order."""
        return self.geometry.spacing


def read_image(path: Path | str, *, series: int | str | None = None) -> sitk.Image:
    """Read a 3D scalar volume from a file or a DICOM folder, without its meta-data.

    A 4D file of one time point is taken as 3D. ``series`` picks one of several DICOM series of a folder
    (its number in ``dicom.list_series``, or its UID).

    Raises VolumeError: missing, empty, damaged, not an image, 2D, 4D, colour or vector pixels, NaN or
    infinite values, one value everywhere, impossible spacing.
    """
    path = Path(path)
    image = read_any(path, series)
    if image.GetNumberOfComponentsPerPixel() > 1 or "complex" in image.GetPixelIDTypeAsString():
        raise VolumeError(
            f"{path} has colour or vector values in its voxels, where one number a voxel is needed.",
            hint="Export it as a greyscale volume.",
        )
    values = sitk.GetArrayViewFromImage(image)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise VolumeError(
            f"{path} contains values that are not numbers (NaN or infinite).",
            hint="Replace them, with the value of air for one, and save the volume again.",
        )
    if values.min() == values.max():
        raise VolumeError(
            f"{path} has the same value in every voxel, so there is nothing to segment in it.",
            hint="Check that the right file was exported.",
        )
    return image


def read_label(
    path: Path | str,
    values: Sequence[int],
    *,
    like: sitk.Image | Geometry | None = None,
    merged: Mapping[int, int] | None = None,
    other_as_background: bool = False,
    resample: bool = False,
    allow_empty: bool = True,
) -> sitk.Image:
    """Read a label map as uint16 in the study's values; see check_label for what is accepted and refused."""
    path = Path(path)
    return check_label(
        read_any(path), values, name=str(path), like=like, merged=merged,
        other_as_background=other_as_background, resample=resample, allow_empty=allow_empty,
    )  # fmt: skip


def image_info(path: Path | str) -> ImageInfo:
    """Read the header of a file or DICOM folder; raises VolumeError where the header tells."""
    path = Path(path)
    if path.is_dir():
        series = dicom.pick_series(path)
        return ImageInfo(dicom.series_geometry(series), series.pixel)
    _check_exists(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    size, spacing = reader.GetSize(), reader.GetSpacing()
    _check_shape(path, size, spacing)
    d = reader.GetDimension()
    direction = np.asarray(reader.GetDirection()).reshape(d, d)[:3, :3]
    geometry = Geometry(size[:3], spacing[:3], reader.GetOrigin()[:3], tuple(map(float, direction.ravel())))
    return ImageInfo(geometry, sitk.GetPixelIDValueAsString(reader.GetPixelID()))


def write_volume(image: sitk.Image, path: Path | str) -> Path:
    """Write a volume compressed, whole or not at all (.nrrd, .nii.gz, .nii or .mha).

    Raises VolumeError for another suffix, DiskFull when the disk is full.
    """
    path = Path(path)
    if not path.name.lower().endswith(WRITTEN_SUFFIXES):
        raise VolumeError(
            f"{path} has a file type that volumes are not written in.",
            hint=f"Use one of {', '.join(WRITTEN_SUFFIXES)}.",
        )
    with atomic_path(path) as temporary, quiet_itk():
        sitk.WriteImage(image, str(temporary), useCompression=True)
    return path


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keep what ITK and its C libraries print on stderr off the terminal; their exceptions still come."""
    with _quiet_lock:
        shown = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        saved = -1
        with suppress(OSError, AttributeError, ValueError):
            sys.stderr.flush()
        with suppress(OSError):
            saved = os.dup(2)
        try:
            if saved >= 0:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 2)
                os.close(null)
            yield
        finally:
            if saved >= 0:
                os.dup2(saved, 2)
                os.close(saved)
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def read_any(path: Path, series: int | str | None = None) -> sitk.Image:
    """Read a 3D image of any pixel type and values, without its meta-data; raises VolumeError."""
    if path.is_dir():
        with quiet_itk():
            image = dicom.read_series(path, series)
    else:
        _check_exists(path)
        check_bytes(path)
        try:
            with quiet_itk():
                image = sitk.ReadImage(str(path))
        except RuntimeError as error:
            raise _unreadable(path, error) from error
    _check_shape(path, image.GetSize(), image.GetSpacing())
    while image.GetDimension() > 3:
        image = image[..., 0]
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    return image


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise VolumeError(
            f"{path} does not exist.", hint="Check the name, or whether the drive is connected."
        )
    try:
        if path.stat().st_size == 0:
            raise VolumeError(f"{path} is empty.", hint="Copy or export the file again.")
        with path.open("rb"):
            pass
    except OSError as error:
        raise VolumeError(f"{path} cannot be opened.", hint="Check that you may read this file.") from error


def _check_shape(path: Path, size: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    if any(n > 1 for n in size[3:]):
        raise VolumeError(
            f"{path} is a series of {max(size[3:])} volumes over time, where one volume is needed.",
            hint="Export one time point as a volume of its own.",
        )
    if len(size) < 3 or min(size[:3]) < 2:
        raise VolumeError(
            f"{path} is a single 2D picture, where a 3D volume is needed.",
            hint="For DICOM, give the folder that holds all slices.",
        )
    if any(not np.isfinite(s) or s <= 0 for s in spacing[:3]):
        shown = " x ".join(f"{s:g}" for s in spacing[:3])
        raise VolumeError(
            f"{path} has a voxel spacing of {shown} mm, which is not possible.",
            hint="Correct the spacing in the file's header or export the image again.",
        )


def _unreadable(path: Path, error: RuntimeError) -> VolumeError:
    text = str(error)
    if "orthonormal" in text:
        return VolumeError(
            f"{path} has axes that are not at right angles.",
            hint="Resample it onto a straight grid, in Slicer for one.",
        )
    if "spacing" in text:
        return VolumeError(
            f"{path} has a voxel spacing that is not possible.",
            hint="Correct the spacing in the file's header or export the image again.",
        )
    if "Unable to determine ImageIO" in text:
        return VolumeError(
            f"{path} is not an image that can be read.",
            hint="Use NRRD, NIfTI, MHA or a folder of DICOM slices; if it is one, the file is damaged.",
        )
    if "allocate" in text:
        return VolumeError(
            f"{path} does not fit into memory.", hint="Close other programs or crop the volume."
        )
    return VolumeError(f"{path} is damaged or incomplete.", hint="Copy or export the file again.")
