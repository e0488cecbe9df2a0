"""Embeddings of training canvases, computed once and kept on disk while only the decoder is tuned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..runtime.files import atomic_path

Entry = tuple[Tensor, Tensor]
"""Embeddings (B, D, s, s) float32 and labels (B, S, S) uint8 of a batch of canvases."""


@dataclass(frozen=True)
class EmbeddingPool:
    """A fixed set of batches in ``folder``, one file each; one of them at a time is in memory.

    ``make`` computes an entry from its number alone, so files that a process left when it was killed are as
    good as new ones, and one that is missing or damaged is computed again.
    """

    folder: Path
    make: Callable[[int], Entry]

    def fill(self, index: int) -> None:
        """Compute entry ``index`` unless it is there. Raises DiskFull."""
        if not self._path(index).is_file():
            self._write(index)

    def entry(self, index: int) -> Entry:
        """Entry ``index``; raises DiskFull where it had to be computed and could not be kept."""
        try:
            found = load_file(self._path(index))
            return found["embedding"], found["labels"]
        except (OSError, SafetensorError, KeyError):
            return self._write(index)

    def _write(self, index: int) -> Entry:
        embedding, labels = self.make(index)
        embedding, labels = embedding.float().cpu().contiguous(), labels.to(torch.uint8).contiguous()
        with atomic_path(self._path(index)) as temporary:
            save_file({"embedding": embedding, "labels": labels}, temporary)
        return embedding, labels

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:03d}.safetensors"
