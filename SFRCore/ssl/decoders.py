"""Further decoders beside a student's own, which go up by interpolation instead of its own way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from SFRCore.ssl.tracing import decoder_names
from SFRCore.students.student import Student


def keep_decoder(student: Student, size: Sequence[int]) -> Student:
    """The student, in place, without the parameters that only its encoder uses (crops of ``size``)."""
    kept = set(decoder_names(student, size))
    for name, _ in list(student.named_parameters()):
        if name not in kept:
            owner, _, attribute = name.rpartition(".")
            setattr(student.get_submodule(owner), attribute, None)
    return student


def interpolate(student: Student, mode: str) -> Student:
    """The student, in place, with every enlargement done by ``trilinear`` or ``nearest`` interpolation.

    A transposed convolution becomes a 1 x 1 x 1 convolution and interpolation, as in CauSSL's ``VNet_mct``;
    an interpolation changes its mode. Trilinear ones put corners on corners.
    """
    options: dict[str, Any] = {"mode": mode, "align_corners": True if mode == "trilinear" else None}
    for parent in list(student.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.ConvTranspose3d):
                mixed = nn.Conv3d(child.in_channels, child.out_channels, 1, bias=child.bias is not None)
                setattr(parent, name, nn.Sequential(mixed, nn.Upsample(scale_factor=child.stride, **options)))
            elif isinstance(child, nn.Upsample):
                setattr(parent, name, nn.Upsample(scale_factor=child.scale_factor, **options))
    return student
