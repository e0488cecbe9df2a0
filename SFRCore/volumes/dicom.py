"""DICOM series: found by their headers, ordered by position; nothing of the patient is kept or shown."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from SFRCore.volumes.geometry import Geometry, VolumeError

if TYPE_CHECKING:
    import pydicom

_TAGS = [
    "SeriesInstanceUID", "SeriesNumber", "Modality", "ImagePositionPatient", "ImageOrientationPatient",
    "Rows", "Columns", "PixelSpacing", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated",
    "PixelRepresentation",
]  # fmt: skip
_NOT_IMAGES = {"SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "DOC", "REG"}

_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, EOFError)


@dataclass(frozen=True)
class _Slice:
    path: Path
    shape: tuple[int, int]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    frames: int


@dataclass(frozen=True)
class Series:
    """One image series of a folder; ``number`` counts from 1 in the folder's order, files in no order yet."""

    number: int
    uid: str
    modality: str
    pixel: str
    slices: tuple[_Slice, ...] = field(repr=False)

    @property
    def description(self) -> str:
        """Modality and size, no word from the patient's tags."""
        count = sum(s.frames for s in self.slices)
        rows, columns = self.slices[0].shape
        return f"{self.number}: {count} {self.modality} slices of {columns} x {rows}"

    @property
    def files(self) -> list[Path]:
        """The files, lowest slice first along the series' normal."""
        return [s.path for s in _ordered(self)]


def list_series(folder: Path | str, on_file: Callable[[Path], None] | None = None) -> list[Series]:
    """The image series in a folder and its subfolders, by series number; reads headers only.

    Reports, structure sets and pictures without a position (screenshots, dose sheets) are left out.
    ``on_file`` is called with each file before it is read; what it raises ends the search.
    Raises VolumeError where the folder is missing or holds no DICOM image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VolumeError(f"{folder} is not a folder.", hint="Give the folder that holds the DICOM slices.")
    groups: dict[tuple[int, str], list[_Slice]] = {}
    kinds: dict[tuple[int, str], tuple[str, str]] = {}
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if on_file is not None:
                on_file(Path(root) / name)
            header = _header(Path(root) / name)
            if header is None:
                continue
            key = (int(header.get("SeriesNumber") or 0), str(header.get("SeriesInstanceUID", "")))
            kinds.setdefault(key, (str(header.get("Modality", "")) or "image", _pixel(header)))
            groups.setdefault(key, []).append(_slice(Path(root) / name, header))
    if not groups:
        raise VolumeError(
            f"{folder} holds no DICOM images.", hint="Give the folder that holds the DICOM slices."
        )
    found = []
    for number, key in enumerate(sorted(groups), start=1):
        modality, pixel = kinds[key]
        found.append(Series(number, key[1], modality, pixel, tuple(groups[key])))
    return found


def pick_series(folder: Path | str, series: int | str | None = None) -> Series:
    """The folder's only series, or the one asked for by number or UID; raises VolumeError listing them."""
    found = list_series(folder)
    if series is None:
        if len(found) == 1:
            return found[0]
        listing = "; ".join(s.description for s in found)
        raise VolumeError(
            f"{folder} holds {len(found)} series, where one is needed ({listing}).",
            hint="Pick one by its number (series=1), or put each series into a folder of its own.",
        )
    for candidate in found:
        if series in (candidate.number, candidate.uid, str(candidate.number)):
            return candidate
    listing = "; ".join(s.description for s in found)
    raise VolumeError(f"{folder} has no series {series}.", hint=f"It holds {listing}.")


def read_series(folder: Path | str, series: int | str | None = None) -> sitk.Image:
    """Read one series of a folder as a 3D volume, in stored units (HU for CT).

    Raises VolumeError: no or several series; slices that are missing, doubled, of different sizes or not
    stacked along their normal; unreadable files.
    """
    chosen = pick_series(folder, series)
    geometry = series_geometry(chosen)
    files = chosen.files
    try:
        if len(files) == 1:
            return sitk.ReadImage(str(files[0]))
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(f) for f in files])
        image = reader.Execute()
    except RuntimeError as error:
        raise VolumeError(
            f"{folder} has DICOM slices that cannot be read.",
            hint="Export the series again, uncompressed.",
        ) from error
    return geometry.apply(image)


def series_geometry(series: Series) -> Geometry:
    """The grid of a series from its headers; raises VolumeError as read_series."""
    if len(series.slices) == 1:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(series.slices[0].path))
        reader.ReadImageInformation()
        d = reader.GetDimension()
        if d != 3:
            raise _flat(series.slices[0].path)
        return Geometry(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    ordered = _ordered(series)
    first, step = ordered[0], _step(ordered)
    row, column = np.asarray(first.orientation[:3]), np.asarray(first.orientation[3:])
    normal = np.cross(row, column)
    axes = np.stack([row, column, normal], axis=1)
    rows, columns = first.shape
    return Geometry(
        (columns, rows, len(ordered)),
        (float(first.spacing[1]), float(first.spacing[0]), step),
        (float(first.position[0]), float(first.position[1]), float(first.position[2])),
        tuple(map(float, axes.ravel())),
    )


def _ordered(series: Series) -> list[_Slice]:
    slices = series.slices
    if len(slices) == 1:
        return list(slices)
    where = slices[0].path.parent
    if any(s.frames > 1 for s in slices):
        raise VolumeError(
            f"{where} has a series of several multi-frame files, where one volume is needed.",
            hint="Put each file into a folder of its own.",
        )
    if len({s.shape for s in slices}) > 1:
        raise VolumeError(
            f"{where} has a series whose slices differ in size.",
            hint="Export the volume without its scout images.",
        )
    first = slices[0]
    if any(not np.allclose(s.orientation, first.orientation, atol=1e-3) for s in slices):
        raise VolumeError(
            f"{where} has a series whose slices point in different directions.",
            hint="Export the volume without its scout images.",
        )
    if any(not np.allclose(s.spacing, first.spacing, rtol=1e-3) for s in slices):
        raise VolumeError(
            f"{where} has a series whose slices differ in pixel spacing.", hint="Export the series again."
        )
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    return sorted(slices, key=lambda s: float(np.dot(s.position, normal)))


def _step(ordered: list[_Slice]) -> float:
    """Millimetres between slices, after checking that they are evenly stacked along their normal."""
    where = ordered[0].path.parent
    positions = np.asarray([s.position for s in ordered], dtype=float)
    normal = np.cross(ordered[0].orientation[:3], ordered[0].orientation[3:])
    gaps = np.diff(positions @ normal)
    step = float(np.median(gaps))
    if np.any(gaps < 1e-3):
        at = int(np.argmin(gaps))
        raise VolumeError(
            f"{where} has two slices at one position (slice {at + 1} and {at + 2} of {len(ordered)}, "
            f"at {positions[at] @ normal:.1f} mm), so it is more than one volume.",
            hint="Export one volume alone: one time point, one echo.",
        )
    wide = np.flatnonzero(np.abs(gaps - step) > 0.1 * step + 0.01)
    if len(wide):
        at = int(wide[0])
        missing = round(float(gaps[at]) / step) - 1
        what = "slices are unevenly spaced"
        if missing > 0:
            what = "one slice is missing" if missing == 1 else f"{missing} slices are missing"
        raise VolumeError(
            f"{where} is incomplete: {what} between slice {at + 1} and {at + 2} of {len(ordered)} "
            f"(from {positions[at] @ normal:.1f} to {positions[at + 1] @ normal:.1f} mm).",
            hint="Export the series again with all its slices.",
        )
    drift = np.linalg.norm(positions[-1] - positions[0] - normal * float(gaps.sum()))
    if drift > 0.5 * min(ordered[0].spacing):
        raise VolumeError(
            f"{where} has slices that are stacked at a slant (gantry tilt).",
            hint="Resample it onto a straight grid first; Slicer's DICOM module does this on loading.",
        )
    return float(gaps.mean())


def _header(path: Path) -> pydicom.Dataset | None:
    """The tags needed of a DICOM image, None for anything else."""
    import pydicom  # half of the time that a study takes to open, and few studies need it
    from pydicom.errors import InvalidDicomError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=_TAGS, force=path.suffix.lower() == ".dcm"
            )
            if header.get("Modality") in _NOT_IMAGES or not header.get("Rows") or not header.get("Columns"):
                return None
            placed = header.get("ImagePositionPatient") and header.get("ImageOrientationPatient")
            if not placed and int(header.get("NumberOfFrames") or 1) < 2:
                return None
    except (InvalidDicomError, *_UNREADABLE):
        return None
    return header


def _slice(path: Path, header: pydicom.Dataset) -> _Slice:
    return _Slice(
        path,
        (int(header.Rows), int(header.Columns)),
        tuple(float(v) for v in header.get("ImagePositionPatient") or (0, 0, 0)),
        tuple(float(v) for v in header.get("ImageOrientationPatient") or (1, 0, 0, 0, 1, 0)),
        tuple(float(v) for v in header.get("PixelSpacing") or (1, 1)),
        int(header.get("NumberOfFrames") or 1),
    )


def _pixel(header: pydicom.Dataset) -> str:
    sign = "signed" if header.get("PixelRepresentation") else "unsigned"
    return f"{int(header.get('BitsAllocated') or 16)}-bit {sign} integer"


def _flat(path: Path) -> VolumeError:
    return VolumeError(
        f"{path} is a single 2D picture, where a 3D volume is needed.",
        hint="Give the folder that holds all slices.",
    )
