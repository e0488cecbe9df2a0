"""What a student looks like inside, found by running a copy that has shapes only and computes nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from SFRCore.students.student import Student


def feature_shapes(student: Student, size: Sequence[int]) -> tuple[list[torch.Size], list[torch.Size]]:
    """Shapes (C, X, Y, Z) of the features of every encoder and every decoder stage for crops of ``size``."""
    outline = copy.deepcopy(student).to("meta").train()
    with torch.no_grad():
        encoded = outline.encode(torch.zeros(2, student.in_channels, *size, device="meta"))
        shapes = [features.shape[1:] for features in encoded]
        return shapes, [features.shape[1:] for features in outline.decode(encoded)]


def decoder_names(student: Student, size: Sequence[int]) -> list[str]:
    """Names of the parameters that turn features into logits: those of the decoder and of the head."""
    outline = copy.deepcopy(student).to("meta").train().requires_grad_(True)
    encoded = outline.encode(torch.zeros(2, student.in_channels, *size, device="meta"))
    features = [one.detach().requires_grad_(True) for one in encoded]
    logits = outline.head(outline.decode(features)[-1])
    parameters = dict(outline.named_parameters())
    found = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, found, strict=True) if gradient is not None]
