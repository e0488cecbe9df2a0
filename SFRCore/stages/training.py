"""What all trainings share: one network with one optimiser, and the stage from its start to a saved model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..foundation.checkpoints import RANDOM
from ..foundation.tuning import WHOLE_ENCODER
from ..runtime.checkpoints import Checkpoints
from ..runtime.loop import Trainer, made_ahead, train
from ..runtime.optimise import Optimisation
from ..ssl.schedules import learning_rate
from .context import StageContext
from .lineage import Lineage

SAM_RATES = {"lora": 1e-3, "adapter": 1e-3, "decoder": 1e-3, "encoder_decoder": 1e-4, "full": 1e-4}
SAM_WEIGHT_DECAY = 0.1
RANDOM_RATE = 1e-3
"""Learning rate of a SAM of which every weight starts from random numbers."""
WARM_UP = 0.05
"""Share of the iterations in which the rate rises from 0 where SAM's whole encoder is tuned."""

Item = TypeVar("Item")


class ClosedTrainer(Trainer, Protocol):
    """A trainer that holds threads or files until it is closed."""

    def close(self) -> None: ...


class SingleTrainer(Generic[Item]):
    """A :class:`SFRCore.runtime.loop.Trainer` of one network; subclasses add ``step``.

    ``network`` (one with ``set_checkpointing``) is already where ``optimizer`` was made for it. ``make(k)``
    makes what step ``k`` learns from, in a thread of its own: ``ahead.get(k)``.
    """

    def __init__(
        self,
        context: StageContext,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        make: Callable[[int], Item],
        *,
        total: int,
    ) -> None:
        self.context, self.network, self.total = context, network, total
        self.optimisation = Optimisation(context.device, network, optimizer)
        self.lean = False
        self.stack = ExitStack()
        self.ahead = self.stack.enter_context(made_ahead(make))

    def descend(self, loss: Tensor, rate: float) -> dict[str, float]:
        """One step along the gradient of ``loss``; the numbers of its curve."""
        self.optimisation.set_rate(rate)
        self.optimisation.descend(loss)
        return {"loss": float(loss.detach()), "rate": rate}

    def state(self) -> dict[str, Any]:
        frozen = {name for name, weight in self.network.named_parameters() if not weight.requires_grad}
        weights = self.network.state_dict()
        trained = {name: value for name, value in weights.items() if name not in frozen}
        return {"trained": trained, **self.optimisation.state()}

    def restore(self, state: dict[str, Any], step: int) -> None:
        self.network.load_state_dict(state["trained"], strict=False)
        self.optimisation.restore(state)

    def save_memory(self) -> bool:
        if self.lean:
            return False
        self.lean = True
        self.network.set_checkpointing(True)  # type: ignore[operator]
        return True

    def close(self) -> None:
        self.stack.close()
        self.optimisation.close()


class SAMTrainer(SingleTrainer[Item]):
    """A training of SAM as ``tuning`` says; ``rate_at(k)`` is its learning rate."""

    def __init__(
        self,
        context: StageContext,
        model: nn.Module,
        make: Callable[[int], Item],
        *,
        tuning: str,
        total: int,
    ) -> None:
        self.model = model.to(context.device.torch_device).train()
        self.tuning = tuning
        anew = context.settings.foundation in RANDOM and tuning in WHOLE_ENCODER
        self.rate = RANDOM_RATE if anew else SAM_RATES[tuning]
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=self.rate, betas=(0.9, 0.999), weight_decay=SAM_WEIGHT_DECAY
        )
        super().__init__(context, self.model, optimizer, make, total=total)

    def rate_at(self, k: int) -> float:
        """Polynomial decay from the full rate at step 0; a whole encoder warms up first."""
        rate = learning_rate("poly", k, self.total, base=self.rate)
        if self.tuning in WHOLE_ENCODER:
            rate *= min(1.0, (k + 1) / max(1.0, WARM_UP * self.total))
        return rate


def checkpoints_of(context: StageContext, lineage: Lineage, name: str) -> Checkpoints:
    """The checkpoints of one training, in all runs of the study."""
    return Checkpoints(context.study.runs_dir, context.run_dir, name, lineage.training_identity())


def train_stage(
    context: StageContext,
    lineage: Lineage,
    trainer: ClosedTrainer,
    *,
    name: str,
    doing: str,
    save: Callable[[], None],
    **told: Any,
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint of ``name`` if there is one, and ``save`` the model.

    ``told`` are fields of the event ``started``. Raises what :func:`SFRCore.runtime.loop.train` raises; the
    trainer is closed then as well.
    """
    study = context.study
    checkpoints = checkpoints_of(context, lineage, name)
    context.emit("started", total=trainer.total, **told, continues=lineage.parent is not None)
    try:
        begin = train(trainer, context, context.device, checkpoints, doing)
    finally:
        trainer.close()
    if context.main:
        save()
        checkpoints.clear()
    context.device.accelerator.wait_for_everyone()
    context.emit("finished_stage", path=str(lineage.folder.relative_to(study.root)))
    return {"skipped": False, "iterations": trainer.total, "continued_at": begin}
