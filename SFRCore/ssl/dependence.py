"""How well the kernels of one network are linear combinations of those of others (CauSSL)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

RATE, DECAYS, EPSILON = 2e-2, (0.9, 0.999), 1e-8


class Dependence(nn.Module):
    """Coefficients A of every layer, and the mean squared cosine between kernels W and combinations A V.

    ``rows`` and ``others``, one number a layer: the kernels of W, and of V, the kernels of the other
    networks one below the other. Called with lists of W and of V, it returns the mean over layers of the mean
    over rows of cos^2. ``strengthen`` moves A, by Adam, to where that is larger. A and the averages of Adam
    are buffers: no optimiser of the training sees them, checkpoints do.

    Source: CauSSL ``utils/losses.py``, ``Linear_vector`` (A ~ N(0, 1e-3), Adam with rate 2e-2).
    """

    updates: Tensor

    def __init__(self, rows: Sequence[int], others: Sequence[int]) -> None:
        super().__init__()
        self.layers = len(rows)
        for layer, (own, other) in enumerate(zip(rows, others, strict=True)):
            self.register_buffer(f"coefficients_{layer}", 1e-3 * torch.randn(own, other))
            self.register_buffer(f"mean_{layer}", torch.zeros(own, other))
            self.register_buffer(f"square_{layer}", torch.zeros(own, other))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, kernels: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """Dependence, a scalar in [0, 1], of kernels (out, ...) on others (out of all others, ...)."""
        return self._measured(kernels, others, self._all("coefficients"))

    @torch.no_grad()
    def strengthen(self, kernels: Sequence[Tensor], others: Sequence[Tensor], updates: int) -> None:
        """So many steps of Adam on A towards a larger dependence; the kernels stay as they are."""
        kernels, others = ([one.detach() for one in group] for group in (kernels, others))
        coefficients, means, squares = self._all("coefficients"), self._all("mean"), self._all("square")
        for _ in range(updates):
            with torch.enable_grad():
                free = [one.detach().requires_grad_(True) for one in coefficients]
                gradients = torch.autograd.grad(-self._measured(kernels, others, free), free)
            self.updates += 1
            bias = [1.0 - decay**self.updates for decay in DECAYS]
            for value, mean, square, gradient in zip(coefficients, means, squares, gradients, strict=True):
                mean.lerp_(gradient, 1.0 - DECAYS[0])
                square.mul_(DECAYS[1]).addcmul_(gradient, gradient, value=1.0 - DECAYS[1])
                value -= RATE * (mean / bias[0]) / ((square / bias[1]).sqrt() + EPSILON)

    def _measured(
        self, kernels: Sequence[Tensor], others: Sequence[Tensor], coefficients: Sequence[Tensor]
    ) -> Tensor:
        with torch.autocast(device_type=self.updates.device.type, enabled=False):
            found = []
            for own, other, linear in zip(kernels, others, coefficients, strict=True):
                combined = functional.normalize(linear @ other.float().flatten(1), dim=1)
                cosines = (functional.normalize(own.float().flatten(1), dim=1) * combined).sum(1)
                found.append(cosines.square().mean())
            return torch.stack(found).mean()

    def _all(self, name: str) -> list[Tensor]:
        return [self.get_buffer(f"{name}_{layer}") for layer in range(self.layers)]
