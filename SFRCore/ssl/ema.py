"""The averaged teacher and the noise on its input, as Mean Teacher and its successors use them."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """A copy of the student whose parameters take no gradient."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, step: float, decay: float = 0.99) -> None:
    """Move the teacher's parameters towards the student's after the optimiser's 0-based ``step``.

    The weight of the old teacher is min(1 - 1/(step + 1), decay): step 0 copies the student, an infinite
    step means ``decay`` from the beginning. Buffers (the running statistics of batch norm) are not
    averaged, as in UA-MT, SSL4MIS and SFR; the teacher stays in training mode.
    """
    kept = min(1.0 - 1.0 / (step + 1), decay)
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.mul_(kept).add_(new, alpha=1.0 - kept)


def perturb(images: Tensor, scale: float = 0.1, limit: float = 0.2) -> Tensor:
    """Add Gaussian noise of ``scale``, clipped to +-``limit``, to z-scored images."""
    return images + (torch.randn_like(images) * scale).clamp_(-limit, limit)
