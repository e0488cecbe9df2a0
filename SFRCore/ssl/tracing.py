"""What a student looks like inside, found by running a copy of it on a small empty crop."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from SFRCore.students.student import Student


def feature_shapes(student: Student, size: Sequence[int]) -> tuple[list[torch.Size], list[torch.Size]]:
    """Shapes (C, X, Y, Z) of the features of every encoder and every decoder stage for crops of ``size``."""
    network, crop = _copy(student), _crop(student, size)
    with torch.no_grad():
        encoded = network.encode(crop)
        decoded = network.decode(encoded)

    def enlarged(features: Tensor) -> torch.Size:
        sides = zip(features.shape[2:], size, crop.shape[2:], strict=True)
        return torch.Size([features.shape[1], *(found * side // small for found, side, small in sides)])

    return [enlarged(one) for one in encoded], [enlarged(one) for one in decoded]


def decoder_names(student: Student, size: Sequence[int]) -> list[str]:
    """Names of the parameters that turn features into logits: those of the decoder and of the head."""
    network = _copy(student).requires_grad_(True)
    features = [one.detach() for one in network.encode(_crop(student, size))]
    logits = network.head(network.decode(features)[-1])
    parameters = dict(network.named_parameters())
    found = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
    return [name for name, gradient in zip(parameters, found, strict=True) if gradient is not None]


def _copy(student: Student) -> Student:
    """A copy without dropout and with statistics that stay, so that nothing random is drawn."""
    return copy.deepcopy(student).eval()


def _crop(student: Student, size: Sequence[int]) -> Tensor:
    """An empty crop, no larger than needed; features of crops of ``size`` are larger in proportion."""
    sides = [min(side, 2 * student.divisor) for side in size]
    return torch.zeros(1, student.in_channels, *sides)
