"""The one training loop: steps, progress events, checkpoints, cancelling, continuing.

Nothing random lives between two steps: the trainer draws everything of step k from (seed, k), so a run
that is killed and continued from a checkpoint walks the same path, bit for bit on a CPU.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from ..errors import Cancelled, SFRError
from .checkpoints import Checkpoints
from .devices import Device, explained_memory, is_out_of_memory

logger = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 240.0
EVENT_SECONDS = 0.5
DIVERGED_STEPS = 20
"""Steps in a row without a finite loss after which a training is given up."""
Item = TypeVar("Item")


class Trainer(Protocol):
    """What the loop drives: a fine-tuning or a re-training."""

    total: int

    def step(self, k: int) -> dict[str, float]:
        """Do step ``k`` (0-based); returns the numbers for the curve, among them ``loss``."""
        ...

    def state(self) -> dict[str, Any]:
        """All that ``restore`` needs to continue after the last step: tensors and plain values."""
        ...

    def restore(self, state: dict[str, Any], step: int) -> None: ...

    def save_memory(self) -> bool:
        """Trade time for memory without changing a gradient; False where it is done already."""
        ...


class Reporter(Protocol):
    """What the loop tells: the events of a run, and whether it is to stop."""

    def emit(self, event: str, **fields: Any) -> None: ...

    def check(self) -> None: ...


def train(trainer: Trainer, reporter: Reporter, device: Device, checkpoints: Checkpoints, doing: str) -> int:
    """Run ``trainer`` to its end, from the newest checkpoint if there is one. Returns the step it began at.

    Raises Cancelled after writing a checkpoint when the user asks to stop, OutOfMemory where even activation
    checkpointing does not fit, SFRError (code "diverged") where the loss is no longer a finite number. No
    checkpoint is written while it is not.
    """
    found = checkpoints.load(torch.device("cpu"))
    begin = 0
    if found is not None:
        begin, state = found
        trainer.restore(state, begin)
        logger.info("continuing %s after step %d", doing, begin)
    saved_at = told_at = time.monotonic()
    started = time.monotonic()
    done = first = begin
    lost = 0
    try:
        for k in range(begin, trainer.total):
            reporter.check()
            numbers = _step(trainer, reporter, device, k, doing)
            done = k + 1
            lost = 0 if math.isfinite(numbers["loss"]) else lost + 1
            if lost == DIVERGED_STEPS or (lost and done == trainer.total):
                raise _diverged(doing, done - lost + 1)
            now = time.monotonic()
            if k == begin:
                started, first = now, done
            if now - told_at >= EVENT_SECONDS or done == trainer.total or k == begin:
                told_at = now
                pace = (now - started) / max(1, done - first)
                eta = pace * (trainer.total - done) if done > first else None
                reporter.emit(
                    "progress", step=done, total=trainer.total, eta_s=eta and round(eta, 1), **numbers
                )
            if now - saved_at >= CHECKPOINT_SECONDS and done < trainer.total and not lost:
                saved_at = now
                _save(trainer, reporter, device, checkpoints, done)
    except Cancelled:
        if done > begin and not lost:
            _save(trainer, reporter, device, checkpoints, done)
        device.accelerator.wait_for_everyone()
        raise
    return begin


def measure(trainer: Trainer, device: Device, reporter: Reporter, steps: int = 3, begin: int = 0) -> float:
    """Seconds a step takes: the mean of ``steps`` steps from ``begin``, less the first of several."""
    taken = []
    for k in range(begin, min(begin + steps, trainer.total)):
        reporter.check()
        started = time.perf_counter()
        _step(trainer, reporter, device, k, "measuring the speed")
        taken.append(time.perf_counter() - started)
    return sum(taken[1:]) / (len(taken) - 1) if len(taken) > 1 else taken[0]


def _diverged(doing: str, step: int) -> SFRError:
    return SFRError(
        f"The loss is no longer a number since step {step} while {doing}, so no model was saved.",
        hint="Try again with --precision fp32 or another --seed, and look for volumes with odd values.",
        code="diverged",
    )


def _step(trainer: Trainer, reporter: Reporter, device: Device, k: int, doing: str) -> dict[str, float]:
    try:
        return trainer.step(k)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or not trainer.save_memory():
            with explained_memory(device, doing, trains=True):
                raise
    if device.torch_device.type == "cuda":
        torch.cuda.empty_cache()
    reporter.emit(
        "warning",
        code="memory",
        message="Memory ran out: activations are now computed twice instead of kept, which is slower.",
    )
    with explained_memory(device, doing, trains=True):
        return trainer.step(k)


def _save(trainer: Trainer, reporter: Reporter, device: Device, checkpoints: Checkpoints, step: int) -> None:
    if device.is_main:
        path = checkpoints.save(step, trainer.state())
        reporter.emit("checkpoint", step=step, path=path.name)


@dataclass
class Ahead(Generic[Item]):
    """Makes the item of the next step in a thread while the current one is computed with."""

    make: Callable[[int], Item]
    pool: ThreadPoolExecutor
    waiting: tuple[int, Future[Item]] | None = None

    def get(self, k: int) -> Item:
        ready = self.waiting is not None and self.waiting[0] == k
        item = self.waiting[1].result() if self.waiting is not None and ready else self.make(k)
        self.waiting = (k + 1, self.pool.submit(self.make, k + 1))
        return item


@contextmanager
def made_ahead(make: Callable[[int], Item]) -> Iterator[Ahead[Item]]:
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        yield Ahead(make, pool)
