"""Batches of crops for training: drawn from (seed, step) alone, so that any step can be drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..ssl.contract import Batch
from ..volumes import CachedVolume, Crop, random_crop, random_flip, rot_flip_faithful

FOREGROUND_SHARE = 1 / 3
LABELED, UNLABELED, CANVAS = 0, 1, 2


@dataclass(frozen=True)
class CropSource:
    """Endless stream of augmented crops from some volumes (the two-stream sampler of UA-MT, without its
    state).

    Every pass over the volumes is one random permutation; fewer volumes than crops in a batch are
    repeated, which is what the setting with a single label needs.
    """

    volumes: Mapping[str, CachedVolume]
    patch: tuple[int, int, int]
    seed: int
    stream: int
    flip_axes: tuple[int, ...] = ()
    faithful: bool = False
    foreground: bool = True
    overrides: Mapping[str, np.ndarray] | None = None
    """Label maps (X, Y, Z) to use in place of the volumes' own: pseudo-labels that a method made."""

    def rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.stream, 1, index])

    def case_at(self, index: int) -> str:
        """The case of the stream's crop number ``index``."""
        ids = list(self.volumes)
        epoch, position = divmod(index, len(ids))
        order = np.random.default_rng([self.seed, self.stream, 0, epoch]).permutation(len(ids))
        return ids[order[position]]

    def crop(self, index: int) -> Crop:
        """Crop number ``index`` of the stream."""
        case_id = self.case_at(index)
        rng = self.rng(index)
        volume = self.volumes[case_id]
        with_foreground = self.foreground and rng.random() < FOREGROUND_SHARE
        extra = self.overrides.get(case_id) if self.overrides else None
        crop = random_crop(rng, volume, self.patch, foreground=with_foreground, extra=extra)
        if self.faithful and self.flip_axes:
            return rot_flip_faithful(rng, crop)
        return random_flip(rng, crop, self.flip_axes)

    def crops(self, step: int, count: int, rank: int = 0, processes: int = 1) -> list[Crop]:
        """The crops of one step; with several processes each draws its own."""
        first = (step * processes + rank) * count
        return [self.crop(first + offset) for offset in range(count)]


def make_batch(labeled: Sequence[Crop], unlabeled: Sequence[Crop], pseudo: str = "none") -> Batch:
    """Stack crops into tensors. ``pseudo`` says where an unlabeled crop's pseudo-label is: "label", "extra",
    "none".
    """
    shape = (labeled or unlabeled)[0].image.shape

    def images(crops: Sequence[Crop]) -> torch.Tensor:
        return _stack([crop.image for crop in crops], shape, np.float32).unsqueeze(1)

    def valid(crops: Sequence[Crop]) -> torch.Tensor:
        return _stack([crop.valid for crop in crops], shape, np.bool_)

    pseudo_labels = None
    if pseudo != "none":
        pseudo_labels = _stack([getattr(crop, pseudo) for crop in unlabeled], shape, np.int64)
    return Batch(
        labeled_images=images(labeled),
        labels=_stack([crop.label for crop in labeled], shape, np.int64),
        unlabeled_images=images(unlabeled),
        pseudo_labels=pseudo_labels,
        labeled_valid=valid(labeled),
        unlabeled_valid=valid(unlabeled),
    )


def _stack(arrays: Sequence[np.ndarray | None], shape: tuple[int, ...], kind: type) -> torch.Tensor:
    """Copies: flipped crops are views with negative strides, which torch refuses."""
    if not arrays:
        return torch.from_numpy(np.zeros((0, *shape), kind))
    return torch.from_numpy(np.stack([np.ascontiguousarray(array, dtype=kind) for array in arrays]))
