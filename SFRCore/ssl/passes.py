"""Predictions of a network that differ from pass to pass, by dropout and input noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from SFRCore.ssl.ema import perturb


@torch.no_grad()
def mean_of_passes(network: nn.Module, images: Tensor, passes: int) -> Tensor:
    """Mean softmax (B, C, X, Y, Z), float32, of an even number of passes, each with its own noise.

    Two passes go through the network at a time, as one batch of twice the size, which is also what batch
    norm sees. Source: UA-MT ``train_LA_meanteacher_certainty_unlabel.py``.
    """
    twice = torch.cat([images, images])
    total: Tensor | None = None
    for _ in range(passes // 2):
        first, second = network(perturb(twice)).float().softmax(1).chunk(2)
        total = first + second if total is None else total + first + second
    assert total is not None
    return total / passes
