"""Random crops of a volume: image, label map and which voxels are real."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

FOREGROUND_SAMPLES = 20_000


class CropSource(Protocol):
    """What a crop is taken from; a CachedVolume, or arrays in memory."""

    @property
    def image(self) -> np.ndarray:
        """(X, Y, Z) float32."""

    @property
    def label(self) -> np.ndarray | None:
        """(X, Y, Z) uint8 class indices."""

    @property
    def foreground(self) -> np.ndarray | None:
        """(N, 3) voxels of structures to centre crops on."""


@dataclass(frozen=True)
class Crop:
    """A patch of one volume, every array of shape (X, Y, Z) = patch.

    ``valid`` is False where the patch reaches beyond the volume (image and label maps are 0 there); ``start``
    is the patch's first voxel in the volume, negative where it was padded.
    """

    image: np.ndarray
    label: np.ndarray | None
    extra: np.ndarray | None
    valid: np.ndarray
    start: tuple[int, int, int]


def random_crop(
    rng: np.random.Generator,
    volume: CropSource,
    patch: tuple[int, int, int],
    *,
    foreground: bool = False,
    extra: np.ndarray | None = None,
) -> Crop:
    """Cut a random patch, its start uniform in [0, dim - patch] inclusive along each axis.

    ``foreground`` centres it on a random voxel of ``volume.foreground`` as far as the volume's edge allows
    (a volume without foreground is cut uniformly). An axis shorter than the patch is padded with 0 on both
    sides. ``extra`` is another label map of the volume, a pseudo-label for one, cut at the same place and of
    the same type in the crop. From memory maps only the patch is read.
    """
    image = volume.image
    if extra is not None and extra.shape != image.shape:
        raise ValueError(f"extra has shape {extra.shape}, the volume {image.shape}")
    voxels = volume.foreground if foreground else None
    if voxels is not None and len(voxels):
        centre = np.asarray(voxels[int(rng.integers(len(voxels)))], dtype=int)
        wanted = [int(c) - p // 2 for c, p in zip(centre, patch, strict=True)]
        start = [min(max(w, 0), max(d - p, 0)) for w, d, p in zip(wanted, image.shape, patch, strict=True)]
    else:
        start = [int(rng.integers(max(d - p, 0) + 1)) for d, p in zip(image.shape, patch, strict=True)]
    start = [-((p - d) // 2) if d < p else s for s, d, p in zip(start, image.shape, patch, strict=True)]
    return crop_at(volume, (start[0], start[1], start[2]), patch, extra=extra)


def crop_at(
    volume: CropSource,
    start: tuple[int, int, int],
    patch: tuple[int, int, int],
    *,
    extra: np.ndarray | None = None,
) -> Crop:
    """The patch that begins at voxel ``start``, which may reach beyond the volume on any side."""
    image, label = volume.image, volume.label
    source, target = [], []
    for s, p, d in zip(start, patch, image.shape, strict=True):
        first, last = max(s, 0), min(s + p, d)
        source.append(slice(first, max(first, last)))
        target.append(slice(first - s, max(first, last) - s))
    valid = np.zeros(patch, dtype=bool)
    valid[tuple(target)] = True

    def cut(array: np.ndarray, dtype: npt.DTypeLike) -> np.ndarray:
        piece: np.ndarray = np.zeros(patch, dtype=dtype)
        piece[tuple(target)] = array[tuple(source)]
        return piece

    return Crop(
        cut(image, np.float32),
        None if label is None else cut(label, np.uint8),
        None if extra is None else cut(extra, extra.dtype),
        valid,
        start,
    )


def sample_foreground(label: np.ndarray, count: int = FOREGROUND_SAMPLES) -> np.ndarray:
    """(N, 3) int32 random voxels of structures, N <= count, equally many of each class present.

    Voxels of a class with few are repeated, so that drawing a row uniformly favours no class. The same label
    map gives the same voxels.
    """
    rng = np.random.default_rng(0)
    flat = label.reshape(-1)
    classes = [c for c in np.flatnonzero(np.bincount(flat, minlength=256)) if c != 0]
    if not classes:
        return np.empty((0, 3), dtype=np.int32)
    places = [np.flatnonzero(flat == c) for c in classes]
    quota = min(count // len(classes), max(len(p) for p in places))
    drawn = []
    for place in places:
        repeats, rest = divmod(quota, len(place))
        chosen = rng.permutation(len(place))[:rest]
        drawn.append(np.concatenate([np.tile(place, repeats), place[chosen]]))
    return np.stack(np.unravel_index(np.concatenate(drawn), label.shape), axis=1).astype(np.int32)
