"""Model, optimiser and gradient scaling of one training, alike on one device and on several."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .devices import Device


class Optimisation:
    """One model (wrapped for several GPUs where accelerate launched several) with one optimiser.

    In half precision it scales its losses by a factor of its own: two optimisations that take turns must not
    unscale their gradients by what the other found out.
    """

    def __init__(self, device: Device, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.device, self.plain = device, model
        if device.processes > 1:
            self.model = device.accelerator.prepare_model(model)
        else:
            self.model = model
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(device.torch_device.type, enabled=device.precision == "fp16")

    def close(self) -> None:
        """Let accelerate forget the model, which it would keep in memory for good."""
        self.device.accelerator.free_memory()

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of every group."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def descend(self, loss: Tensor) -> None:
        """One step along the gradient of ``loss`` (a float32 scalar)."""
        self.gradient(loss)
        self.step()

    def gradient(self, loss: Tensor) -> None:
        """Compute the gradient of ``loss`` in place of any before; ``step`` is still to come."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        """Move the weights along the gradient; in half precision not where it overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])


def seed_step(seed: int, stage: int, step: int, rank: int = 0) -> None:
    """Seed torch for one step, so that dropout and noise do not depend on the steps before it."""
    mixed = (seed * 1_000_003 + stage * 7919 + step * 4 + rank * 104_729) % (1 << 62)
    torch.manual_seed(mixed)
