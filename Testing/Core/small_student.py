"""A student small enough for tests that has every part a semi-supervised method looks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from SFRCore.ssl import get_method
from SFRCore.ssl.contract import Batch, Method, MethodContext, Progress, progress_at
from SFRCore.students.student import Student

PATCH = (16, 16, 16)
CLASSES = 3


def _unit(convolution: nn.Module, channels: int, norm: str) -> nn.Sequential:
    layer = nn.BatchNorm3d(channels) if norm == "batch" else nn.InstanceNorm3d(channels)
    return nn.Sequential(convolution, layer, nn.ReLU())


class Small(Student):
    """Two resolutions, 4 and 6 channels, one transposed convolution, dropout at the bottom and at the end."""

    name = "small"
    divisor = 4

    def __init__(self, in_channels: int, classes: int, norm: str = "batch", dropout: bool = True) -> None:
        super().__init__(in_channels, classes, norm=norm, dropout=dropout)
        self.fine = _unit(nn.Conv3d(in_channels, 4, 3, padding=1), 4, norm)
        self.down = _unit(nn.Conv3d(4, 6, 2, stride=2), 6, norm)
        self.bottom = _unit(nn.Conv3d(6, 6, 3, padding=1), 6, norm)
        self.up = _unit(nn.ConvTranspose3d(6, 4, 2, stride=2), 4, norm)
        self.last = _unit(nn.Conv3d(4, 4, 3, padding=1), 4, norm)
        self.dropout = nn.Dropout3d(0.5 if dropout else 0.0)
        self.head = nn.Conv3d(4, classes, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        fine = self.run(self.fine, images)
        return [fine, self.dropout(self.down(fine))]

    def decode(self, features: Any) -> list[Tensor]:
        coarse = self.run(self.bottom, features[1])
        return [coarse, self.dropout(self.last(self.up(coarse) + features[0]))]


def build(**overrides: Any) -> Student:
    return Small(**{"in_channels": 1, "classes": CLASSES, **overrides})


def without_dropout(**overrides: Any) -> Student:
    return build(**{**overrides, "dropout": False})


def method(
    name: str,
    *,
    guided: bool = False,
    dropout: bool = True,
    patch: Any = PATCH,
    seed: int = 1337,
    **options: Any,
) -> Any:
    """A method with the small student, checked."""
    make = build if dropout else without_dropout
    context = MethodContext(CLASSES, patch, make, with_pseudo_labels=guided, options=options, seed=seed)
    made = get_method(name)(context)
    made.check()
    return made


def batch(labeled: int = 2, unlabeled: int = 2, *, pseudo: bool = False, seed: int = 0) -> Batch:
    """Crops whose classes follow their brightness; the last two slices are padding."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(labeled + unlabeled, 1, *PATCH, generator=generator)
    labels = torch.bucketize(images[:, 0], torch.tensor([-0.5, 0.5]))
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[..., -2:] = False
    return Batch(
        labeled_images=images[:labeled],
        labels=labels[:labeled],
        labeled_valid=valid[:labeled],
        unlabeled_images=images[labeled:],
        unlabeled_valid=valid[labeled:],
        pseudo_labels=labels[labeled:] if pseudo else None,
    )


def batch_of(trained: Method, progress: Progress, *, seed: int = 0) -> Batch:
    """A batch as the phase of the progress asks for."""
    phase = progress.phase
    return batch(phase.labeled, phase.unlabeled, pseudo=phase.pseudo_labels != "none", seed=seed)


def at(step: int, total: int, trained: Method) -> Progress:
    return progress_at(trained.plan(total), total, step)


class Loop:
    """The training loop in short: phases, one optimiser each, a seed for every step."""

    def __init__(self, trained: Method, total: int) -> None:
        self.trained, self.total = trained, total
        self.phase: Any = None
        self.optimizer: Any = None

    def enter(self, phase: Any) -> None:
        self.phase = phase
        self.trained.begin(phase)
        self.trained.train()
        self.optimizer = torch.optim.SGD(self.trained.parameter_groups(phase), lr=0.05, momentum=0.9)

    def run(self, first: int, last: int) -> list[float]:
        losses = []
        for step in range(first, last):
            progress = at(step, self.total, self.trained)
            if progress.phase != self.phase:
                self.enter(progress.phase)
            torch.manual_seed(step)
            result = self.trained(batch_of(self.trained, progress, seed=step), progress)
            self.optimizer.zero_grad()
            result.loss.backward()
            self.optimizer.step()
            self.trained.after_step(progress)
            losses.append(float(result.loss.detach()))
        return losses


def dice_by_hand(
    probabilities: Tensor,
    labels: Tensor,
    valid: Tensor,
    *,
    epsilon: float,
    squared: bool = True,
    first: int = 0,
) -> Tensor:
    """1 - (2 sum(p y) + e) / (sum(p^2) + sum(y^2) + e) in float64, from class ``first`` on."""
    terms = []
    for value in range(first, probabilities.shape[1]):
        p = probabilities.double()[:, value][valid]
        y = (labels == value)[valid].double()
        size = (p**2).sum() + y.sum() if squared else p.sum() + y.sum()
        terms.append(1 - (2 * (p * y).sum() + epsilon) / (size + epsilon))
    return torch.stack(terms).mean()


def entropy_by_hand(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Mean cross-entropy over valid voxels in float64."""
    chosen = logits.double().log_softmax(1).gather(1, labels[:, None])[:, 0]
    return -chosen[valid].mean()
