"""What every student network offers to the training loop and to the semi-supervised methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from SFRCore.errors import InputError


class Student(nn.Module, ABC):
    """A 3D segmentation network in three parts: encoder, decoder and a head on the last decoder features.

    ``forward`` maps (B, in_channels, X, Y, Z) to logits (B, classes, X, Y, Z) whose softmax is the
    prediction. ``options`` are the keyword arguments that, with ``in_channels`` and ``classes``, build the
    same network again.
    """

    name: ClassVar[str]
    divisor: ClassVar[int]
    head: nn.Module

    def __init__(self, in_channels: int, classes: int, **options: Any) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.classes = classes
        self.options = options
        self.checkpointing = False

    def set_checkpointing(self, on: bool) -> None:
        """Compute activations again instead of keeping them: less memory, the same gradient."""
        self.checkpointing = on

    def run(self, stage: nn.Module, features: Tensor) -> Tensor:
        """A stage of the network, with its activations kept or, where checkpointing is on, computed again."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            result: Tensor = stage(features)
            return result
        again: Tensor = checkpoint(
            stage,
            features,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), statistics_untouched(stage)),
        )
        return again

    @property
    def takes_any_size(self) -> bool:
        """Whether windows larger than the training patch are predicted alike: not if normalised singly."""
        return not any(isinstance(module, nn.modules.instancenorm._InstanceNorm) for module in self.modules())

    def sees_one_voxel(self, patch: Sequence[int]) -> bool:
        """Whether batch norm at the bottleneck has a single voxel of a crop of this size (X, Y, Z)."""
        normalised = any(isinstance(module, nn.BatchNorm3d) for module in self.modules())
        return normalised and all(size <= self.divisor for size in patch)

    @abstractmethod
    def encode(self, images: Tensor) -> list[Tensor]:
        """Features of every encoder stage, full resolution first, bottleneck last."""

    @abstractmethod
    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of every decoder stage, coarsest first; the last, at full resolution, feeds ``head``."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes, X, Y, Z) of images (B, in_channels, X, Y, Z)."""
        logits: Tensor = self.head(self.decode(self.encode(images))[-1])
        return logits

    def check_patch(self, patch: Sequence[int]) -> None:
        """Raise InputError where the network cannot take patches (X, Y, Z) of this size."""
        if len(patch) != 3 or any(size < self.divisor or size % self.divisor for size in patch):
            shown = " x ".join(str(size) for size in patch)
            raise InputError(
                f"The network {self.name} cannot be used with a patch of {shown} voxels.",
                hint=f"Choose three sizes that are multiples of {self.divisor}.",
            )


@contextmanager
def statistics_untouched(network: nn.Module) -> Iterator[None]:
    """Let batch norm use the batch's statistics without averaging them into the running ones.

    The running ones stay arguments of the layer, so that what is computed again in the backward pass is the
    same operation.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    found = [(layer, layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer, _, count in found:
        layer.momentum = 0.0
        layer.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for layer, momentum, count in found:
            layer.momentum = momentum
            layer.num_batches_tracked = count
