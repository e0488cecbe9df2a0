"""V-Net, the student of SFR and of most semi-supervised methods on volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from SFRCore.errors import InputError
from SFRCore.students.student import Student

Norm = Literal["batch", "instance"]

_CHANNELS = (16, 32, 64, 128, 256)
_UNITS = (1, 2, 3, 3, 3)
_DROPOUT = 0.5


def _normalised(convolution: nn.Module, channels: int, norm: Norm) -> list[nn.Module]:
    layer = nn.BatchNorm3d(channels) if norm == "batch" else nn.InstanceNorm3d(channels)
    return [convolution, layer, nn.ReLU(inplace=True)]


def _stage(channels_in: int, channels: int, units: int, norm: Norm) -> nn.Sequential:
    layers: list[nn.Module] = []
    for unit in range(units):
        convolution = nn.Conv3d(channels_in if unit == 0 else channels, channels, 3, padding=1)
        layers += _normalised(convolution, channels, norm)
    return nn.Sequential(*layers)


class VNet(Student):
    """V-Net as UA-MT released it: no residual connections, skips are added, 16 base filters.

    Stages 1 to 5 encode with 1, 2, 3, 3, 3 convolutions and stages 6 to 9 decode with 3, 3, 2, 1. Dropout
    of whole channels (0.5) follows stages 5 and 9 in training. Batch norm is the default; MagicNet uses
    ``norm="instance"`` (no learned scale) and ``dropout=False``. 9,448,866 parameters for one channel in
    and two classes.

    Source: UA-MT ``networks/vnet.py``; SFR, DTC, BCP, SS-Net, CauSSL and MagicNet share the body.
    """

    name = "vnet"
    divisor = 16

    def __init__(
        self, in_channels: int = 1, classes: int = 2, norm: Norm = "batch", dropout: bool = True
    ) -> None:
        if norm not in ("batch", "instance"):
            raise InputError(f"V-Net has no normalisation '{norm}'.", hint="Choose batch or instance.")
        super().__init__(in_channels, classes, norm=norm, dropout=dropout)
        inputs = (in_channels, *_CHANNELS[1:])
        self.encoder = nn.ModuleList(
            _stage(*widths, norm) for widths in zip(inputs, _CHANNELS, _UNITS, strict=True)
        )
        self.down = nn.ModuleList(
            nn.Sequential(*_normalised(nn.Conv3d(fine, coarse, 2, stride=2), coarse, norm))
            for fine, coarse in zip(_CHANNELS, _CHANNELS[1:], strict=False)
        )
        rising = _CHANNELS[::-1]
        self.up = nn.ModuleList(
            nn.Sequential(*_normalised(nn.ConvTranspose3d(coarse, fine, 2, stride=2), fine, norm))
            for coarse, fine in zip(rising, rising[1:], strict=False)
        )
        self.decoder = nn.ModuleList(
            _stage(width, width, units, norm) for width, units in zip(rising[1:], _UNITS[3::-1], strict=True)
        )
        self.dropout = nn.Dropout3d(_DROPOUT if dropout else 0.0)
        self.head = nn.Conv3d(_CHANNELS[0], classes, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Features of stages 1 to 5: 16, 32, 64, 128, 256 channels, each at half the resolution before."""
        features = [self.run(self.encoder[0], images)]
        for down, stage in zip(self.down, list(self.encoder)[1:], strict=True):
            features.append(self.run(stage, self.run(down, features[-1])))
        features[-1] = self.dropout(features[-1])
        return features

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of stages 6 to 9: 128, 64, 32, 16 channels, at 1/8, 1/4, 1/2 and full resolution."""
        decoded: list[Tensor] = []
        below = features[-1]
        for up, stage, skip in zip(self.up, self.decoder, list(features)[-2::-1], strict=True):
            below = self.run(stage, self.run(up, below) + skip)
            decoded.append(below)
        decoded[-1] = self.dropout(decoded[-1])
        return decoded

    def check_patch(self, patch: Sequence[int]) -> None:
        """Raise InputError unless sizes are multiples of 16 that leave instance norm more than one voxel."""
        super().check_patch(patch)
        if self.options["norm"] == "instance" and all(size == self.divisor for size in patch):
            raise InputError(
                "A patch of 16 x 16 x 16 voxels is too small for V-Net with instance normalisation.",
                hint="Choose a patch of at least 32 voxels along one axis.",
            )
