"""Where a volume lies in the patient: its grid, and whether two grids are the same."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk

from SFRCore.errors import InputError


class VolumeError(InputError):
    """A volume that cannot be used; the message names the file and says why."""

    default_code = "volume"


@dataclass(frozen=True)
class Geometry:
    """The voxel grid of a 3D image, axes in file order, millimetres in LPS.

    ``direction`` is row-major 3 x 3; its columns are the directions of the file's axes.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> Geometry:
        """The grid of a 3D image, bit for bit."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def axes(self) -> np.ndarray:
        """(3, 3) directions of the file's axes, one a column."""
        return np.asarray(self.direction, dtype=float).reshape(3, 3)

    def position(self, index: tuple[float, ...]) -> np.ndarray:
        """(3,) LPS position in mm of a voxel index in file order."""
        return np.asarray(self.origin) + self.axes @ (np.asarray(index, float) * np.asarray(self.spacing))

    def apply(self, image: sitk.Image) -> sitk.Image:
        """Give ``image`` (of the same size) this grid, bit for bit, and return it."""
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    def difference(self, other: Geometry) -> str:
        """What differs from ``other`` in plain words; empty when both are the same grid.

        Grids are the same when sizes are equal and no corner is displaced by more than a tenth of the
        smallest spacing: rounding in a file header passes, a shift of half a voxel does not.
        """
        if self.size != other.size:
            return f"it has {_times(self.size)} voxels instead of {_times(other.size)}"
        if not np.allclose(self.spacing, other.spacing, rtol=1e-2, atol=0):
            return f"its spacing is {_times(self.spacing)} mm instead of {_times(other.spacing)} mm"
        corners = list(product(*((0, n - 1) for n in self.size)))
        tolerance = 0.1 * min(self.spacing)
        shifts = [self.position(c) - other.position(c) for c in corners]
        if max(float(np.linalg.norm(s)) for s in shifts) <= tolerance:
            return ""
        if np.allclose(self.axes, other.axes, atol=1e-3):
            return f"it is shifted by {np.linalg.norm(shifts[0]):.3g} mm"
        return "its axes point in other directions"


def same_geometry(a: sitk.Image | Geometry, b: sitk.Image | Geometry) -> bool:
    """Whether two volumes share one grid, within the rounding of file headers."""
    first = a if isinstance(a, Geometry) else Geometry.of(a)
    second = b if isinstance(b, Geometry) else Geometry.of(b)
    return not first.difference(second)


def _times(numbers: tuple[float, ...]) -> str:
    return " x ".join(f"{n:.4g}" if isinstance(n, float) else str(n) for n in numbers)
