"""An invented cohort: volumes with known label maps, for trying things out and for tests.

Every case is one "patient": a soft-tissue body with a bent organ of two or more lobes, other round things as
bright as the organ, a bias field, noise and a contrast of its own. A threshold finds the distractors as well
as the organ, so that what tells them apart is place and shape, as in real images.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from SFRCore.errors import InputError
from SFRCore.volumes import write_volume

STRUCTURES = {1: "Anterior lobe", 2: "Posterior lobe", 3: "Stalk", 4: "Nodule"}
"""Values and names of the structures; a cohort of n structures has the first n."""

SPACING = (1.0, 1.0, 2.0)
"""Millimetres along the stored axes: slices are twice as thick as pixels are wide."""

# Centre and radii of each structure, as fractions of half the field of view (x to the right, y back, z up).
_LOBES = (
    ((-0.30, -0.22, -0.05), (0.27, 0.24, 0.40)),
    ((-0.22, 0.24, 0.10), (0.22, 0.30, 0.34)),
    ((-0.02, 0.02, -0.30), (0.16, 0.14, 0.26)),
    ((-0.55, 0.10, 0.30), (0.13, 0.13, 0.22)),
)
_DISTRACTORS = (
    ((0.46, -0.34, 0.08), (0.23, 0.20, 0.36)),
    ((0.48, 0.38, -0.20), (0.21, 0.25, 0.34)),
    ((0.15, 0.62, 0.26), (0.20, 0.13, 0.28)),
)


def make_synthetic_cohort(
    folder: Path | str,
    *,
    cases: int = 8,
    size: tuple[int, int, int] = (64, 64, 32),
    seed: int = 0,
    structures: int = 2,
) -> tuple[Path, Path]:
    """Write ``cases`` volumes and their label maps; returns the folders (images, labels).

    ``images/case_01.nrrd`` is int16 of ``size`` voxels (x, y, z as stored), ``labels/case_01.nrrd`` uint8
    with 0 for background and 1..structures. Directions are not the identity, and every third case is oblique.
    The same seed gives the same voxels. Raises InputError for numbers that make no volume.
    """
    if not 1 <= structures <= len(STRUCTURES):
        raise InputError(f"An invented cohort has 1 to {len(STRUCTURES)} structures, not {structures}.")
    if cases < 1 or min(size) < 8:
        raise InputError("An invented cohort needs at least one case of 8 voxels along each axis.")
    images, labels = Path(folder) / "images", Path(folder) / "labels"
    for target in (images, labels):
        target.mkdir(parents=True, exist_ok=True)
    digits = max(2, len(str(cases)))
    for number in range(cases):
        rng = np.random.default_rng([seed, number])
        image, label = synthetic_case(rng, size, structures)
        direction = _direction(rng, oblique=number % 3 == 2)
        origin = rng.uniform(-80, 80, 3).round(3).tolist()
        name = f"case_{number + 1:0{digits}d}.nrrd"
        for array, target in ((image, images / name), (label, labels / name)):
            front_last = array[:, ::-1]  # _direction turns the stored y axis to the front
            volume = sitk.GetImageFromArray(np.ascontiguousarray(front_last.transpose(2, 1, 0)))
            volume.SetSpacing(SPACING)
            volume.SetOrigin(origin)
            volume.SetDirection(direction)
            write_volume(volume, target)
    return images, labels


def synthetic_case(
    rng: np.random.Generator, size: tuple[int, int, int], structures: int
) -> tuple[np.ndarray, np.ndarray]:
    """One volume and its label map: int16 and uint8 arrays of shape ``size``, axes (X, Y, Z)."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij"))
    body = _ellipsoid(grid, np.zeros(3), np.array([0.92, 0.86, 1.3])) > 0
    bent = grid + _smooth_field(rng, size, amplitude=0.09)
    pose = rng.normal(0, 0.07, 3)
    label = np.zeros(size, np.uint8)
    closest = np.zeros(size)
    for value, (centre, radii) in enumerate(_LOBES[:structures], start=1):
        inside = _ellipsoid(
            bent, pose + centre + rng.normal(0, 0.02, 3), np.array(radii) * rng.uniform(0.85, 1.2, 3)
        )
        label[inside > closest] = value
        closest = np.maximum(closest, inside)
    tissue = 100 + 9 * _smooth_field(rng, size, amplitude=1.0)[0]
    contrast = rng.uniform(45, 75)
    intensity = np.where(body, tissue, 8.0)
    for centre, radii in _DISTRACTORS:
        inside = _ellipsoid(bent, centre + rng.normal(0, 0.06, 3), np.array(radii) * rng.uniform(0.8, 1.2, 3))
        intensity[(inside > 0) & (label == 0) & body] = 100 + contrast * rng.uniform(0.9, 1.2)
    for value in range(1, structures + 1):
        intensity[label == value] = 100 + contrast * (1 + 0.22 * (value - 1))
    blurred = ndimage.gaussian_filter(intensity, (0.7, 0.7, 0.35))
    bias = np.exp(_smooth_field(rng, size, amplitude=0.16)[0])
    noisy = blurred * bias + rng.normal(0, rng.uniform(7, 12), size)
    return np.clip(noisy.round(), 0, 4095).astype(np.int16), label


def _ellipsoid(grid: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Positive inside, 1 at the centre; ``grid`` is (3, X, Y, Z) in fractions of half the field of view."""
    shifted = (grid - np.asarray(centre)[:, None, None, None]) / np.asarray(radii)[:, None, None, None]
    return 1 - np.sqrt((shifted**2).sum(0))


def _smooth_field(rng: np.random.Generator, size: tuple[int, int, int], *, amplitude: float) -> np.ndarray:
    """A smooth random vector field (3, X, Y, Z) whose components stay within ``amplitude``."""
    coarse = rng.normal(0, 1, (3, 4, 4, 4))
    fine = np.stack(
        [
            ndimage.zoom(part, [n / 4 for n in size], order=3, mode="nearest", grid_mode=True)
            for part in coarse
        ]
    )
    return amplitude * fine / np.abs(fine).max()


def _direction(rng: np.random.Generator, *, oblique: bool) -> list[float]:
    """Direction cosines, row by row: RAS-like axes, tilted by up to 15 degrees where oblique."""
    axes = np.diag([-1.0, -1.0, 1.0])
    if oblique:
        tilt, turn = np.radians(rng.uniform(5, 15, 2) * rng.choice([-1, 1], 2))
        about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
        about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        axes = about_z @ about_x @ axes
    return [float(value) for value in axes.ravel()]
