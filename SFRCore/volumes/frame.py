"""The frame of a case: from a file's axes to the axes used inside, and exactly back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from SFRCore.volumes.geometry import Geometry, VolumeError
from SFRCore.volumes.reading import ImageInfo
from SFRCore.volumes.resampling import resample_array

Shape = tuple[int, int, int]
Spacing = tuple[float, float, float]
AnyGeometry = sitk.Image | ImageInfo | Geometry


@dataclass(frozen=True)
class Frame:
    """How one file's voxels become the (X, Y, Z) array used inside, and the way back.

    The file's axes are permuted and flipped to the nearest LPS axes with the stacking axis last; oblique
    directions are never interpolated away. Only where another ``spacing`` is asked for are voxels resampled,
    over the same field of view.

    Attributes: ``axes[k]`` is the file axis that internal axis k runs along, ``flips[k]`` whether backwards;
    ``shape`` and ``spacing`` (mm) of the internal array, ``native_shape`` before resampling.
    """

    geometry: Geometry
    stack_axis: int
    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    shape: Shape
    spacing: Spacing

    @classmethod
    def of(cls, image: AnyGeometry, *, stack_axis: int, spacing: Spacing | None = None) -> Frame:
        """The frame of a volume; ``stack_axis`` an LPS axis, ``spacing`` mm in internal order (None: native).

        With ``spacing`` the field of view is kept, so the frame's spacing is the nearest that divides it.
        """
        geometry = _geometry(image)
        if stack_axis not in (0, 1, 2):
            raise ValueError(f"stack_axis must be 0, 1 or 2, not {stack_axis}")
        nearest = _nearest_axes(geometry)
        order = [a for a in range(3) if a != stack_axis] + [stack_axis]
        axes = (nearest[order[0]], nearest[order[1]], nearest[order[2]])
        flips = tuple(bool(geometry.axes[lps, axis] < 0) for lps, axis in zip(order, axes, strict=True))
        native = tuple(geometry.size[a] for a in axes)
        native_spacing = tuple(geometry.spacing[a] for a in axes)
        shape, true_spacing = native, native_spacing
        if spacing is not None:
            if any(not np.isfinite(s) or s <= 0 for s in spacing):
                raise ValueError(f"spacing must be positive, not {spacing}")
            extents = [n * s for n, s in zip(native, native_spacing, strict=True)]
            shape = tuple(max(1, round(e / s)) for e, s in zip(extents, spacing, strict=True))
            if shape != native:
                true_spacing = tuple(e / n for e, n in zip(extents, shape, strict=True))
        return cls(geometry, stack_axis, axes, flips, shape, true_spacing)  # type: ignore[arg-type]

    @property
    def native_shape(self) -> Shape:
        """(X, Y, Z) at the file's own spacing."""
        size = self.geometry.size
        return size[self.axes[0]], size[self.axes[1]], size[self.axes[2]]

    @property
    def native_spacing(self) -> Spacing:
        """Millimetres along internal axes before any resampling."""
        spacing = self.geometry.spacing
        return spacing[self.axes[0]], spacing[self.axes[1]], spacing[self.axes[2]]

    def to_internal(self, image: sitk.Image, *, label: bool = False) -> np.ndarray:
        """The volume as an array of ``shape``: float32, or the label map's own integers (nearest neighbour).

        Raises VolumeError when the image does not lie on this frame's grid.
        """
        difference = Geometry.of(image).difference(self.geometry)
        if difference:
            raise VolumeError(f"The volume does not lie on its case's voxels: {difference}.")
        native = self._permuted(sitk.GetArrayViewFromImage(image).transpose())
        array = np.array(native, dtype=native.dtype if label else np.float32, order="C")
        if self.shape == self.native_shape:
            return array
        return resample_array(array, self.shape, self.native_spacing, kind="label" if label else "image")

    def to_image(self, array: np.ndarray, pixel: npt.DTypeLike | None = None) -> sitk.Image:
        """An array of ``native_shape`` as an image on the file's grid: origin, spacing, direction bit-equal.

        ``pixel`` is the type of the voxels written (None: the array's own).
        """
        if array.shape != self.native_shape:
            raise ValueError(f"expected an array of shape {self.native_shape}, not {array.shape}")
        if pixel is not None:
            array = array.astype(pixel)
        if array.dtype == bool:
            array = array.astype(np.uint8)
        flipped = array[tuple(slice(None, None, -1 if f else 1) for f in self.flips)]
        in_file_order = flipped.transpose(np.argsort(self.axes))
        return self.geometry.apply(sitk.GetImageFromArray(np.ascontiguousarray(in_file_order.transpose())))

    def to_native(self, array: np.ndarray, *, label: bool = False) -> np.ndarray:
        """(..., *shape) back to (..., *native_shape): nearest for labels, else linear.

        The array itself where nothing was resampled.
        """
        if array.shape[-3:] != self.shape:
            raise ValueError(f"expected an array of shape (..., {self.shape}), not {array.shape}")
        if self.shape == self.native_shape:
            return array
        kind: Literal["label", "linear"] = "label" if label else "linear"
        result = np.empty((*array.shape[:-3], *self.native_shape), dtype=array.dtype)
        for lead in np.ndindex(*array.shape[:-3]):
            result[lead] = resample_array(array[lead], self.native_shape, self.spacing, kind=kind)
        return result

    def slice_to_original(self, z: int) -> tuple[int, int]:
        """(axis, index) of the file's slice that internal slice ``z`` is, or lies in after resampling."""
        count = self.native_shape[2]
        if not 0 <= z < self.shape[2]:
            raise ValueError(f"slice {z} is outside 0 to {self.shape[2] - 1}")
        native = min(int((z + 0.5) * count / self.shape[2]), count - 1)
        return self.axes[2], count - 1 - native if self.flips[2] else native

    def native_slice(self, z: int) -> tuple[int, int]:
        """(axis, index) of the file's slice that slice ``z`` of an array of ``native_shape`` is."""
        count = self.native_shape[2]
        if not 0 <= z < count:
            raise ValueError(f"slice {z} is outside 0 to {count - 1}")
        return self.axes[2], count - 1 - z if self.flips[2] else z

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers survive exactly."""
        g = self.geometry
        grid = {"size": g.size, "spacing": g.spacing, "origin": g.origin, "direction": g.direction}
        return {
            "geometry": {name: list(value) for name, value in grid.items()},
            "stack_axis": self.stack_axis,
            "axes": list(self.axes),
            "flips": list(self.flips),
            "shape": list(self.shape),
            "spacing": list(self.spacing),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Frame:
        """The frame that to_dict described; raises KeyError, TypeError or ValueError on anything else."""
        grid = data["geometry"]
        geometry = Geometry(*(tuple(grid[name]) for name in ("size", "spacing", "origin", "direction")))
        axes, flips, shape, spacing = (tuple(data[name]) for name in ("axes", "flips", "shape", "spacing"))
        if sorted(axes) != [0, 1, 2] or not len(flips) == len(shape) == len(spacing) == 3:
            raise ValueError("not a frame")
        return cls(geometry, int(data["stack_axis"]), axes, flips, shape, spacing)

    def _permuted(self, in_file_order: np.ndarray) -> np.ndarray:
        permuted = in_file_order.transpose(self.axes)
        return permuted[tuple(slice(None, None, -1 if f else 1) for f in self.flips)]


def choose_stack_axis(images: Sequence[AnyGeometry]) -> int:
    """The LPS axis of coarsest median spacing over the cases (2 on a tie), one choice a study."""
    if not images:
        return 2
    spacings = []
    for image in images:
        geometry = _geometry(image)
        spacings.append([geometry.spacing[a] for a in _nearest_axes(geometry)])
    median = np.median(spacings, axis=0)
    tied = np.flatnonzero(median >= median.max() * 0.99)
    return int(tied[-1])


def _geometry(image: AnyGeometry) -> Geometry:
    if isinstance(image, Geometry):
        return image
    return image.geometry if isinstance(image, ImageInfo) else Geometry.of(image)


def _nearest_axes(geometry: Geometry) -> tuple[int, ...]:
    """For each LPS axis the file axis nearest to it, each used once."""
    closeness = np.abs(geometry.axes)
    return max(permutations(range(3)), key=lambda p: sum(closeness[lps, axis] for lps, axis in enumerate(p)))
