"""A student of three resolutions, small enough to train in a test, and methods built on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from SFRCore.ssl import get_method
from SFRCore.ssl.contract import Batch, Method, MethodContext, Progress, progress_at
from SFRCore.students.student import Student

PATCH = (8, 8, 8)
CLASSES = 3


def _block(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels_in, channels, 3, padding=1), nn.BatchNorm3d(channels), nn.ReLU(inplace=True)
    )


class Pyramid(Student):
    """Encoder of 4, 6, 8 channels, decoder of 6, 4, its parts named unlike V-Net's."""

    name = "pyramid"
    divisor = 4

    def __init__(self, in_channels: int, classes: int, dropout: bool = True) -> None:
        super().__init__(in_channels, classes, dropout=dropout)
        self.falling = nn.ModuleList([_block(in_channels, 4), _block(4, 6), _block(6, 8)])
        self.rising = nn.ModuleList([_block(8 + 6, 6), _block(6 + 4, 4)])
        self.drop = nn.Dropout3d(0.5 if dropout else 0.0)
        self.head = nn.Conv3d(4, classes, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        features = [self.falling[0](images)]
        for stage in list(self.falling)[1:]:
            features.append(stage(functional.avg_pool3d(features[-1], 2)))
        features[-1] = self.drop(features[-1])
        return features

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        decoded: list[Tensor] = []
        below = features[-1]
        for stage, skip in zip(self.rising, list(features)[-2::-1], strict=True):
            below = stage(torch.cat([skip, functional.interpolate(below, scale_factor=2.0)], 1))
            decoded.append(below)
        decoded[-1] = self.drop(decoded[-1])
        return decoded


def build(**overrides: Any) -> Student:
    return Pyramid(**{"in_channels": 1, "classes": CLASSES, **overrides})


def method(name: str, *, guided: bool = False, seed: int = 1337, **options: Any) -> Any:
    """A method on this student, checked."""
    context = MethodContext(CLASSES, PATCH, build, with_pseudo_labels=guided, options=options, seed=seed)
    made = get_method(name)(context)
    made.check()
    return made


def stirred(name: str, *, guided: bool = False, **options: Any) -> Any:
    """A method in evaluation mode (no dropout) whose networks differ and are sure of some voxels only."""
    made = method(name, guided=guided, **options)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for module in made.modules():
            if isinstance(module, Pyramid):
                module.head.weight.mul_(2.0)
    return made.eval()


def batch(labeled: int = 2, unlabeled: int = 2, *, patch: Sequence[int] = PATCH, seed: int = 0) -> Batch:
    """Crops whose classes follow their brightness; the last two slices are padding."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(labeled + unlabeled, 1, *patch, generator=generator)
    labels = torch.bucketize(images[:, 0], torch.tensor([-0.5, 0.5]))
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[..., -2:] = False
    return Batch(
        labeled_images=images[:labeled],
        labels=labels[:labeled],
        labeled_valid=valid[:labeled],
        unlabeled_images=images[labeled:],
        unlabeled_valid=valid[labeled:],
        pseudo_labels=labels[labeled:],
    )


def at(step: int, total: int, trained: Method) -> Progress:
    return progress_at(trained.plan(total), total, step)


class Loop:
    """The training loop of a method with one phase: SGD, and a seed for every step."""

    def __init__(self, trained: Method, total: int) -> None:
        self.trained, self.total = trained, total
        phase = trained.plan(total)[0]
        trained.begin(phase)
        trained.train()
        self.optimizer = torch.optim.SGD(trained.parameter_groups(phase), lr=0.1, momentum=0.9)

    def run(self, first: int, last: int) -> list[float]:
        supervised = []
        for step in range(first, last):
            progress = at(step, self.total, self.trained)
            torch.manual_seed(step)
            done = self.trained(batch(seed=step), progress)
            self.optimizer.zero_grad()
            done.loss.backward()
            self.optimizer.step()
            self.trained.after_step(progress)
            supervised.append(float(done.parts["supervised"]))
        return supervised
