"""Segment Anything as it was made: asked by boxes, points and masks, it answers with one mask for each.

Image encoder, prompt encoder and mask decoder are segment-anything's own (``segment_anything.modeling``); the
image encoder has the faster attention of :mod:`SFRCore.foundation.sam`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn
from torch.nn import functional as F

from SFRCore.foundation.checkpoints import build_foundation
from SFRCore.foundation.sam import ClasswiseSAM
from SFRCore.foundation.store import load_tuned
from SFRCore.foundation.tuning import apply_tuning, merge

MASK_TOKENS = 4
"""Of SAM's decoder; the first answers where the prompt leaves no doubt."""
IOU_HEAD = "mask_decoder.iou_prediction_head."


@dataclass(frozen=True)
class Prompts:
    """What is asked about one image: N things, each by those of box, point and mask that are given.

    Boxes (N, 4) as x, y of two corners and points (N, 2) as x, y, in canvas pixels; masks (N, 1, 4s, 4s), 10
    inside and -10 outside.
    """

    boxes: Tensor | None
    points: Tensor | None
    masks: Tensor | None

    def __len__(self) -> int:
        return next(len(given) for given in (self.boxes, self.points, self.masks) if given is not None)

    def to(self, device: torch.device) -> Prompts:
        moved = (
            None if given is None else given.to(device) for given in (self.boxes, self.points, self.masks)
        )
        return Prompts(*moved)


class PromptedSAM(nn.Module):
    """``base``, a SAM of four mask tokens, asked by prompts."""

    def __init__(self, base: ClasswiseSAM) -> None:
        super().__init__()
        if base.classes != MASK_TOKENS:
            raise ValueError(f"SAM's own decoder has {MASK_TOKENS} mask tokens, not {base.classes}.")
        self.base = base

    @property
    def canvas(self) -> int:
        return self.base.canvas

    @property
    def mask_side(self) -> int:
        """Pixels along a side of a mask that is a prompt."""
        return 4 * self.base.spec.tokens(self.canvas)

    def set_checkpointing(self, on: bool) -> None:
        """Keep fewer activations in memory while training, and compute them again."""
        self.base.set_checkpointing(on)

    def encode(self, images: Tensor) -> Tensor:
        """Embeddings (B, D, s, s) of canvases (B, 1, S, S)."""
        return self.base.encode(images)

    def answer(self, embedding: Tensor, prompts: Prompts) -> Tensor:
        """Logits (N, S, S) of the masks of N things in the image of one embedding (1, D, s, s)."""
        points = None
        if prompts.points is not None:
            inside = torch.ones(len(prompts), 1, dtype=torch.int, device=prompts.points.device)
            points = (prompts.points[:, None], inside)
        encoder = self.base.prompt_encoder
        sparse, dense = encoder(points=points, boxes=prompts.boxes, masks=prompts.masks)
        masks, _ = MaskDecoder.forward(
            self.base.mask_decoder, embedding, encoder.get_dense_pe(), sparse, dense, multimask_output=False
        )
        size = (self.canvas, self.canvas)
        return F.interpolate(masks, size=size, mode="bilinear", align_corners=False)[:, 0]

    def forward(self, images: Tensor, prompts: Sequence[Prompts]) -> Tensor:
        """Logits (sum of all N, S, S) for images (B, 1, S, S) with their prompts, in order."""
        embeddings = self.encode(images)
        answers = [
            self.answer(embedding[None], asked) for embedding, asked in zip(embeddings, prompts, strict=True)
        ]
        return torch.cat(answers)


def build_prompted(name_or_file: str, *, canvas: int, tuning: str, seed: int) -> PromptedSAM:
    """A SAM to be tuned with prompts: the image encoder as ``tuning`` says, prompt encoder and decoder whole.

    Raises InputError as :func:`SFRCore.foundation.checkpoints.build_foundation` does.
    """
    base = build_foundation(name_or_file, classes=MASK_TOKENS, canvas=canvas, seed=seed)
    return trainable(apply_tuning(base, tuning, seed=seed))


def load_prompted(folder: Path | str, *, tuned_on: bool = False) -> PromptedSAM:
    """The model that was saved, for inference, or to be ``tuned_on``."""
    base = load_tuned(folder)
    return trainable(base) if tuned_on else PromptedSAM(merge(base))


def trainable(base: ClasswiseSAM) -> PromptedSAM:
    """Set free what prompts reach, besides what the tuning trains in the image encoder."""
    for name, parameter in base.named_parameters():
        if not name.startswith("image_encoder."):
            parameter.requires_grad_(not name.startswith(IOU_HEAD))
    return PromptedSAM(base)
