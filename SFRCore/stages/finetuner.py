"""The training of SAM on laid out crops of the labeled volumes.

Sources: SFR (IEEE TMI 2025), sections III-B1 and III-B2; the optimiser and the augmentation are those of
the reference implementation's ``train_finetuning.py``, with its Dice masked to stitched voxels and its
Bezier transform mapped to the crop's own range (``faithful`` restores both).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..foundation.sam import ClasswiseSAM
from ..runtime.optimise import seed_step
from ..ssl.losses import cross_entropy, segmentation_loss
from ..volumes import CachedVolume, bezier_intensity
from .context import StageContext
from .data import CANVAS, LABELED, CropSource
from .embeddings import EmbeddingPool
from .training import SAMTrainer

STAGE_SEED = 1
IGNORE = 255
POOL_PER_CASE = 16
LARGEST_POOL = 96
"""Batches, of ``finetune_batch`` crops each, whose embeddings are computed once when only the decoder is
tuned.
"""
BEZIER_PROBABILITY = 0.5

Canvas = tuple[Tensor, Tensor, Tensor]


class FineTuner(SAMTrainer[Canvas]):
    """One fine-tuning of a foundation model on canvases of B crops; see
    :class:`SFRCore.runtime.loop.Trainer`.

    ``embeddings`` is the folder of its own in which a tuning of the decoder keeps what it computed once.
    """

    model: ClasswiseSAM

    def __init__(
        self,
        context: StageContext,
        volumes: Mapping[str, CachedVolume],
        model: ClasswiseSAM,
        *,
        tuning: str,
        total: int,
        embeddings: Path | None = None,
    ) -> None:
        self.embeddings = embeddings
        plan, settings = context.plan, context.settings
        self.layout = context.layout()
        self.source = CropSource(
            volumes,
            plan.patch,
            settings.seed,
            LABELED,
            flip_axes=plan.flip_axes,
            faithful=settings.faithful,
        )
        self.pool: EmbeddingPool | None = None
        super().__init__(context, model, self.canvases, tuning=tuning, total=total)

    def canvases(self, k: int) -> Canvas:
        """Images (B, N, S, S) float32, labels (B, N, S, S) with 255 where nothing is known, of step ``k``."""
        device = self.context.device
        crops = self.source.crops(k, self.context.plan.finetune_batch, device.rank, device.processes)
        first = (k * device.processes + device.rank) * self.context.plan.finetune_batch
        images, labels = [], []
        for offset, crop in enumerate(crops):
            rng = np.random.default_rng([self.context.settings.seed, CANVAS, 2, first + offset])
            assert crop.label is not None
            canvas, target = self.canvas(rng, crop.image, crop.label, crop.valid)
            images.append(canvas)
            labels.append(target)
        image_batch, label_batch = torch.stack(images), torch.stack(labels)
        return image_batch, label_batch, label_batch != IGNORE

    def canvas(
        self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray, valid: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Image and labels (N, S, S) of one augmented crop of arrays (X, Y, Z); 255 where nothing is known.

        Where a crop takes more canvases than make one training image, N of them are drawn.
        """
        faithful = self.context.settings.faithful
        image = bezier_intensity(rng, image, probability=BEZIER_PROBABILITY, faithful=faithful, valid=valid)
        image = np.where(valid, image, 0).astype(np.float32)
        label = np.where(valid, label, IGNORE).astype(np.int64)
        layout = self.layout.drawn(rng)
        windows = layout.windows
        if layout.together < len(windows):
            chosen = rng.choice(len(windows), layout.together, replace=False)
            windows = [windows[n] for n in sorted(chosen.tolist())]
        single = layout.single
        canvas, target = (
            torch.cat([single.stitch(item[..., a:b], fill, smooth=smooth) for a, b in windows])
            for item, fill, smooth in (
                (torch.from_numpy(image), 0.0, True),
                (torch.from_numpy(label), IGNORE, False),
            )
        )
        return self._rotate(rng, canvas, target) if self.context.plan.canvas_rotation else (canvas, target)

    def step(self, k: int) -> dict[str, float]:
        seed_step(self.context.settings.seed, STAGE_SEED, k, self.context.device.rank)
        where = self.context.device.torch_device
        with self.context.device.autocast():
            if self.tuning == "decoder":
                embedding, labels, valid = self._pooled(k)
                logits = self.optimisation.model(embedding.to(where), embedded=True)
            else:
                images, labels, valid = (item.flatten(0, 1) for item in self.ahead.get(k))
                logits = self.optimisation.model(images.unsqueeze(1).to(where))
        loss = self.loss(logits.float(), labels.to(where), valid.to(where))
        return self.descend(loss, self.rate_at(k))

    def loss(self, logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
        target = torch.where(valid, labels, torch.zeros_like(labels))
        if not self.context.settings.faithful:
            return segmentation_loss(logits, target, valid, epsilon=1e-10)
        return (cross_entropy(logits, target, valid) + _unmasked_dice(logits, target, valid)) / 2

    def _pooled(self, k: int) -> Canvas:
        """Canvases of step ``k`` from the fixed pool, their embeddings (B, D, s, s) computed once."""
        size = min(self.total, LARGEST_POOL, POOL_PER_CASE * len(self.source.volumes))
        if self.pool is None:
            self.pool = EmbeddingPool(self._pool_folder(), self._embedded)
            for index in range(size):
                self.context.check()
                self.pool.fill(index)
                self.context.emit("progress", step=index + 1, total=size, doing="embeddings")
        order = np.random.default_rng([self.context.settings.seed, CANVAS, 3, k])
        embedding, labels = self.pool.entry(int(order.integers(size)))
        return embedding, labels.long(), labels != IGNORE

    def _pool_folder(self) -> Path:
        """This process's own folder: kept for the next run, or for this measurement only."""
        if self.embeddings is None:
            return Path(self.stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True)))
        return self.embeddings / f"{self.context.device.rank}-of-{self.context.device.processes}"

    def _embedded(self, index: int) -> tuple[Tensor, Tensor]:
        """Embeddings and labels of batch ``index`` of the pool, by the encoder without dropout."""
        images, labels, _ = (item.flatten(0, 1) for item in self.canvases(index))
        self.model.eval()
        with torch.no_grad(), self.context.device.autocast():
            embedding = self.model.encode(images.unsqueeze(1).to(self.context.device.torch_device))
        self.model.train()
        return embedding, labels

    def _rotate(self, rng: np.random.Generator, canvas: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        turns, flip = int(rng.integers(4)), int(rng.integers(2)) + 1
        flipped = self.context.settings.faithful or rng.random() < 0.5
        turned = [torch.rot90(item, turns, (1, 2)) for item in (canvas, target)]
        return (turned[0].flip(flip), turned[1].flip(flip)) if flipped else (turned[0], turned[1])


def _unmasked_dice(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The reference's Dice: ignored pixels have no target, yet count in the denominator."""
    probabilities = logits.softmax(1)
    one_hot = F.one_hot(target, logits.shape[1]).movedim(-1, 1) * valid.unsqueeze(1)
    axes = (0, *range(2, logits.ndim))
    shared = (probabilities * one_hot).sum(axes)
    total = probabilities.square().sum(axes) + one_hot.sum(axes)
    return (1 - (2 * shared + 1e-10) / (total + 1e-10)).mean()
