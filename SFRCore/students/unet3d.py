"""3D U-Net, the student of the BraTS tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from SFRCore.errors import InputError
from SFRCore.students.student import Student

Norm = Literal["batch", "instance"]

_CHANNELS = (16, 32, 64, 128, 256)
_DROPOUT = 0.3


def _block(channels_in: int, channels: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (channels_in, channels):
        convolution = nn.Conv3d(width, channels, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight)
        layer = nn.InstanceNorm3d(channels) if norm == "instance" else nn.BatchNorm3d(channels)
        layers += [convolution, layer, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet3D(Student):
    """3D U-Net with 16 base filters: two convolutions a stage, max-pooling down, trilinear up.

    Skips are concatenated before the features from below. Instance norm without learned scale is the default
    (so the released code does, though its option is called batch norm). Single elements are dropped (0.3)
    from the bottleneck and the last features in training.

    Source: SSL4MIS ``networks/unet_3D.py`` (methods on BraTS 2019); Cicek et al., MICCAI 2016.
    """

    name = "unet3d"
    divisor = 16

    def __init__(
        self, in_channels: int = 1, classes: int = 2, norm: Norm = "instance", dropout: bool = True
    ) -> None:
        if norm not in ("batch", "instance"):
            raise InputError(f"The 3D U-Net has no normalisation '{norm}'.", hint="Choose batch or instance.")
        super().__init__(in_channels, classes, norm=norm, dropout=dropout)
        inputs = (in_channels, *_CHANNELS)
        self.encoder = nn.ModuleList(_block(*widths, norm) for widths in zip(inputs, _CHANNELS, strict=False))
        self.pool = nn.MaxPool3d(2)
        self.up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
        rising = _CHANNELS[::-1]
        self.decoder = nn.ModuleList(
            _block(coarse + fine, fine, norm) for coarse, fine in zip(rising, rising[1:], strict=False)
        )
        self.dropout = nn.Dropout(_DROPOUT if dropout else 0.0)
        self.head = nn.Conv3d(_CHANNELS[0], classes, 1)
        nn.init.kaiming_normal_(self.head.weight)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Features of the five stages: 16, 32, 64, 128, 256 channels, each at half the resolution before."""
        features = [self.run(self.encoder[0], images)]
        for stage in list(self.encoder)[1:]:
            features.append(self.run(stage, self.pool(features[-1])))
        features[-1] = self.dropout(features[-1])
        return features

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the four rising stages: 128, 64, 32, 16 channels, at 1/8, 1/4, 1/2 and full
        resolution.
        """
        decoded: list[Tensor] = []
        below = features[-1]
        for stage, skip in zip(self.decoder, list(features)[-2::-1], strict=True):
            below = self.run(stage, torch.cat([skip, self.up(below)], 1))
            decoded.append(below)
        decoded[-1] = self.dropout(decoded[-1])
        return decoded

    def check_patch(self, patch: Sequence[int]) -> None:
        """Raise InputError unless sizes are multiples of 16 that leave instance norm more than one voxel."""
        super().check_patch(patch)
        if self.options["norm"] == "instance" and all(size == self.divisor for size in patch):
            raise InputError(
                "A patch of 16 x 16 x 16 voxels is too small for the 3D U-Net with instance normalisation.",
                hint="Choose a patch of at least 32 voxels along one axis.",
            )
