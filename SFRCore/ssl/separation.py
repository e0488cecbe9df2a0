"""Features of each structure kept together: a memory of good ones, and attention over them (SS-Net)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 32
KEPT = 32
"""Features remembered of each structure."""


class ClassSeparation(nn.Module):
    """Projections of voxels' features, and the distance of each structure's from those remembered.

    Features go through two perceptrons (channels -> 32 -> 32, then 32 -> 32 -> 32). Remembered are, for each
    structure, the 32 projections of rightly labeled voxels that its selector thinks best; they stay until
    there are newer ones. The loss is, over voxels and remembered ones of a structure, the mean of
    (1 - cosine) times both attentions, sigmoids of selectors made to have mean 1; summed over structures,
    divided by the number of classes.

    Source: SS-Net ``feature_memory.py``, ``contrastive_losses.py``. The released code remembers the worst
    features, and divides the attention of remembered ones by itself, which leaves 1; neither is done here. It
    has a part for background, which is never remembered nor compared; here there is none.
    """

    filled: Tensor
    memory: Tensor

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.projection = _perceptron(channels, WIDTH, nn.ReLU(inplace=True))
        self.prediction = _perceptron(WIDTH, WIDTH, nn.ReLU(inplace=True))
        self.selectors, self.memory_selectors = (
            nn.ModuleList(_perceptron(WIDTH, 1, nn.LeakyReLU(0.2, inplace=True)) for _ in range(1, classes))
            for _ in range(2)
        )
        self.register_buffer("memory", torch.zeros(classes - 1, KEPT, WIDTH))
        self.register_buffer("filled", torch.zeros(classes - 1, dtype=torch.int64))

    @torch.no_grad()
    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Take features (N, channels) of rightly labeled voxels of structures, labels (N,) their classes."""
        if not len(features):
            return
        self.projection.eval()
        # not in half precision, whose copies of the weights, made here, would be kept without a gradient
        with torch.autocast(device_type=features.device.type, enabled=False):
            projected = self.projection(features.float())
            for index, selector in enumerate(self.selectors):
                found = projected[labels == index + 1]
                if len(found) > KEPT:
                    found = found[selector(found)[:, 0].argsort(descending=True)[:KEPT]]
                if len(found):
                    self.memory[index, : len(found)] = found
                    self.filled[index] = len(found)
        self.projection.train()

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of features (N, channels) of voxels with labels (N,)."""
        total = torch.zeros((), device=features.device)
        if len(features) < 2:
            return total
        predicted = self.prediction(self.projection(features)).float()
        for index, filled in enumerate(self.filled.tolist()):
            found = predicted[labels == index + 1]
            if len(found) < 2 or filled < 2:
                continue
            kept = functional.normalize(self.memory[index, :filled], dim=1)
            attention = _mean_one(self.selectors[index](found.detach()))
            towards = (_mean_one(self.memory_selectors[index](kept)) * kept).mean(0)
            distances = 1.0 - functional.normalize(found, dim=1) @ towards
            total = total + (attention[:, 0] * distances).mean()
        return total / self.classes


def _mean_one(scores: Tensor) -> Tensor:
    attention = scores.float().sigmoid()
    return attention / attention.mean()


def _perceptron(inputs: int, outputs: int, activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.BatchNorm1d(WIDTH), activation, nn.Linear(WIDTH, outputs)
    )
