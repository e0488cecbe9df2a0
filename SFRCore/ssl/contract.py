"""What a semi-supervised method is to the training loop: phases, one step, and a student to evaluate."""

from __future__ import annotations

import dataclasses
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from SFRCore.errors import InputError
from SFRCore.settings import BATCH, PseudoSchedule
from SFRCore.ssl.losses import segmentation_loss
from SFRCore.ssl.schedules import SCHEDULES, STEP_FRACTION, Schedule, decay, learning_rate
from SFRCore.students.student import Student

Module = TypeVar("Module", bound=nn.Module)
PseudoLabels = Literal["foundation", "student", "none"]


@dataclass(frozen=True)
class Phase:
    """A part of the training with its own batches, learning rate and optimiser (SGD, fresh at its start).

    ``fraction`` of all iterations; ``labeled`` + ``unlabeled`` crops a batch; ``restart``: the networks
    begin anew. ``pseudo_labels``: those of the foundation model, or those the student of the phase before
    predicts for every unlabeled volume before ``begin`` is called, or none.
    """

    name: str
    fraction: float = 1.0
    labeled: int = 2
    unlabeled: int = 2
    restart: bool = False
    schedule: Schedule = "step"
    base_rate: float = 0.01
    step_every: Fraction = STEP_FRACTION
    pseudo_labels: PseudoLabels = "foundation"

    def learning_rate(self, step: int, total: int) -> float:
        """Learning rate at 0-based ``step`` of the ``total`` iterations of this phase."""
        return learning_rate(self.schedule, step, total, base=self.base_rate, every=self.step_every)

    def of_batch(self, batch: int) -> Phase:
        """The same with ``batch`` / 2 times as many crops of each kind, at least one where there are any."""
        labeled, unlabeled = (
            max(1, crops * batch // BATCH) if crops else 0 for crops in (self.labeled, self.unlabeled)
        )
        return dataclasses.replace(self, labeled=labeled, unlabeled=unlabeled)


@dataclass(frozen=True)
class Progress:
    """Where training stands before a step: 0-based ``step`` of ``total``, and the same within ``phase``."""

    step: int
    total: int
    phase: Phase
    step_in_phase: int
    phase_total: int


def phase_lengths(phases: Sequence[Phase], total: int) -> list[int]:
    """Iterations of each phase, in proportion to the fractions; they sum to ``total`` exactly."""
    whole = sum(phase.fraction for phase in phases)
    ends, reached = [0], 0.0
    for phase in phases:
        reached += phase.fraction
        ends.append(round(total * reached / whole))
    return [end - start for start, end in zip(ends, ends[1:], strict=False)]


def progress_at(phases: Sequence[Phase], total: int, step: int) -> Progress:
    """The progress at 0-based ``step``; raises ValueError unless 0 <= step < total."""
    start = 0
    for phase, length in zip(phases, phase_lengths(phases, total), strict=True):
        if 0 <= step - start < length:
            return Progress(step, total, phase, step - start, length)
        start += length
    raise ValueError(f"Step {step} is not one of the {total} steps.")


@dataclass
class Batch:
    """Crops of labeled cases and of unlabeled ones; a side without crops has tensors of length 0.

    Images (B, 1, X, Y, Z) float32; labels and pseudo-labels (B, X, Y, Z) int64 class indices; valid
    (B, X, Y, Z) bool, False where the crop was padded.
    """

    labeled_images: Tensor
    labels: Tensor
    labeled_valid: Tensor
    unlabeled_images: Tensor
    unlabeled_valid: Tensor
    pseudo_labels: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """All crops, labeled first."""
        return torch.cat([self.labeled_images, self.unlabeled_images])

    @property
    def valid(self) -> Tensor:
        """Valid voxels of all crops, labeled first."""
        return torch.cat([self.labeled_valid, self.unlabeled_valid])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=non_blocking)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclass
class Step:
    """What one training step gives back.

    ``loss`` is the method's own; ``parts`` are scalars for the log; ``unlabeled_logits`` are the student's
    logits of the plain, un-mixed unlabeled crops, one tensor a head or network, where a pseudo-label loss
    is attached (empty where the method already has it in ``loss``), averaged over them if
    ``pseudo_average``, else summed.
    """

    loss: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)
    unlabeled_logits: list[Tensor] = field(default_factory=list)
    pseudo_average: bool = False


def pseudo_label_loss(step: Step, batch: Batch, weight: float = 1.0) -> Tensor:
    """``weight`` * (cross-entropy + Dice) / 2 of a step's unlabeled logits against the pseudo-labels.

    To leave some crops out, clear their ``unlabeled_valid``. Source: SFR ``train_retraining.py`` (weight 1).
    Raises ValueError for a batch without pseudo-labels.
    """
    if batch.pseudo_labels is None:
        raise ValueError("The batch carries no pseudo-labels.")
    labels, valid = batch.pseudo_labels, batch.unlabeled_valid
    loss = step.loss.new_zeros((), dtype=torch.float32)
    for logits in step.unlabeled_logits:
        loss = loss + segmentation_loss(logits, labels, valid)
    if step.pseudo_average and step.unlabeled_logits:
        loss = loss / len(step.unlabeled_logits)
    return weight * loss


@dataclass(frozen=True)
class MethodContext:
    """What a method is built from.

    ``make_student(**overrides)`` builds a fresh student network; the overrides replace ``in_channels``,
    ``classes`` or options of the network. ``with_pseudo_labels``: batches of phases that ask for them carry
    those of the foundation model. ``pseudo_weight`` is the weight of the pseudo-label loss that the loop
    attaches, or that the method has in its own loss, at the beginning of a phase; ``pseudo_schedule`` says
    whether it stays. ``batch`` is the user's: 2 leaves the crops of the phases as they are. ``options``
    override the method's defaults.
    """

    classes: int
    patch: tuple[int, int, int]
    make_student: Callable[..., Student]
    in_channels: int = 1
    with_pseudo_labels: bool = False
    pseudo_weight: float = 1.0
    pseudo_schedule: PseudoSchedule = "constant"
    batch: int = BATCH
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 1337

    def pseudo_weight_at(self, progress: Progress) -> float:
        """The weight of the pseudo-label loss in a step."""
        factor = decay(self.pseudo_schedule, progress.step_in_phase, progress.phase_total)
        return self.pseudo_weight * factor


class Method(nn.Module, ABC):
    """A semi-supervised method; a module ``SFRCore/ssl/NAME.py`` that sets ``METHOD`` to its class is one.

    The loop calls, for each phase of ``plan(total)``: ``begin(phase)``, moves the module to the device,
    makes an optimiser from ``parameter_groups(phase)``; then a step at a time the module itself (so it may
    be wrapped for several GPUs), backward, optimiser, ``after_step``. To resume, ``begin`` of the phase in
    progress comes before ``load_state_dict``. State beyond parameters belongs in buffers or
    ``get_extra_state``. Everything stays in training mode; random numbers come from torch's global
    generator, which the loop seeds at every step. A step may run under autocast. ``student`` is what is
    evaluated and saved: its softmax is the prediction.

    ``defaults`` are a class's own options beside those of the classes it builds on. The preset of a data set
    replaces ``schedule``, ``step_every``, ``base_rate``, ``consistency`` and ``ramp``, so that methods are
    compared under equal conditions, but for the options that ``keeps`` names. ``uses_unlabeled`` tells
    whether unlabeled crops are looked at without pseudo-labels. ``group``: labeled and unlabeled crops of a
    batch come in multiples of it, as in methods that mix pairs.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    source: ClassVar[str]
    uses_unlabeled: ClassVar[bool] = True
    group: ClassVar[int] = 1
    keeps: ClassVar[frozenset[str]] = frozenset()
    defaults: ClassVar[Mapping[str, Any]] = {
        "schedule": "step",
        "step_every": STEP_FRACTION,
        "base_rate": 0.01,
    }

    student: Student

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        self.context = context
        known = self.known_options()
        unknown = sorted(set(context.options) - set(known))
        if unknown:
            raise InputError(
                f"The method {self.name} has no option '{unknown[0]}'.",
                hint=f"It has: {', '.join(known)}.",
            )
        for option, value in context.options.items():
            if not _fits(value, known[option]):
                raise InputError(
                    f"The method {self.name} cannot use {option}={value}.",
                    hint=f"Give {_expected(known[option])}.",
                )
        self.options: dict[str, Any] = {**known, **context.options}

    @classmethod
    def known_options(cls) -> dict[str, Any]:
        """Every option with its default."""
        known: dict[str, Any] = {}
        for kind in reversed(cls.__mro__):
            known |= vars(kind).get("defaults", {})
        return known

    def check(self) -> None:
        """Raise InputError where the method cannot work with its options, patch or classes."""
        self.check_choice("schedule", SCHEDULES)
        for option in ("base_rate", "step_every"):
            if self.options[option] <= 0:
                raise InputError(f"The method {self.name} needs {option} above 0.")
        self.student.check_patch(self.context.patch)

    def check_choice(self, option: str, choices: Sequence[Any]) -> None:
        """Raise InputError unless the option has one of these values."""
        if self.options[option] not in choices:
            raise InputError(
                f"The method {self.name} cannot use {option}={self.options[option]}.",
                hint=f"Choose one of: {', '.join(map(str, choices))}.",
            )

    def check_shares(self, *options: str) -> None:
        """Raise InputError unless each of these options lies between 0 and 1."""
        for option in options:
            if not 0 <= self.options[option] <= 1:
                raise InputError(f"The method {self.name} needs {option} between 0 and 1.")

    def check_batch(self, total: int) -> None:
        """Raise InputError where the batch of the context is too small for the method, or for its network."""
        batch, patch = self.context.batch, self.context.patch
        if any(
            crops % self.group for phase in self.phases(total) for crops in (phase.labeled, phase.unlabeled)
        ):
            raise InputError(
                f"The method {self.name} mixes crops in groups of {self.group}, so it cannot be trained "
                f"with a batch of {batch}.",
                hint=f"Choose a multiple of {self.group}, or another method.",
            )
        if batch == 1 and self.student.sees_one_voxel(patch):
            raise InputError(
                f"A batch of 1 with a patch of {' x '.join(map(str, patch))} voxels leaves the network "
                f"{self.student.name} nothing to normalise.",
                hint=f"Choose a larger patch, or a batch of {BATCH}.",
            )

    def plan(self, total: int) -> list[Phase]:
        """The phases of a training of ``total`` iterations, with the method's own numbers of crops."""
        return [self.phase("training")]

    def phases(self, total: int) -> list[Phase]:
        """The same with as many crops as the user's batch makes of them."""
        return [phase.of_batch(self.context.batch) for phase in self.plan(total)]

    def phase(self, name: str, fraction: float = 1.0, **fields: Any) -> Phase:
        """A phase with the learning rate of the options, and pseudo-labels if the recipe has them."""
        for option in Method.defaults:
            fields.setdefault(option, self.options[option])
        fields.setdefault("pseudo_labels", "foundation" if self.context.with_pseudo_labels else "none")
        return Phase(name, fraction, **fields)

    def begin(self, phase: Phase) -> None:  # noqa: B027 - most methods keep their networks
        """Prepare for the phase, for example build networks anew (on the CPU)."""

    def parameter_groups(self, phase: Phase) -> list[dict[str, Any]]:
        """Groups for the loop's SGD (momentum 0.9, weight decay 1e-4): everything that takes a gradient."""
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    @abstractmethod
    def step(self, batch: Batch, progress: Progress) -> Step:
        """The losses of one batch."""

    def forward(self, batch: Batch, progress: Progress) -> Step:
        """The same as ``step``."""
        return self.step(batch, progress)

    def after_step(self, progress: Progress) -> None:  # noqa: B027 - only methods with a teacher need it
        """Called after the optimiser with the progress the step was called with, e.g. to update a teacher."""

    def new_student(self, key: str, **overrides: Any) -> Student:
        """A fresh student whose weights depend on the seed and ``key`` only, not on what ran before."""
        return self.seeded(key, lambda: self.context.make_student(**overrides))

    def seeded(self, key: str, build: Callable[[], Module]) -> Module:
        """What ``build`` makes, with random numbers that depend on the seed and ``key`` only."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(zlib.crc32(f"{self.context.seed}/{key}".encode()))
            return build()


def _fits(value: Any, default: Any) -> bool:
    """Whether an option's value is of its default's kind; beside None anything, which ``check`` looks at."""
    if default is None:
        return True
    if isinstance(default, tuple):
        return (
            isinstance(value, tuple | list)
            and len(value) == len(default)
            and all(_fits(one, like) for one, like in zip(value, default, strict=True))
        )
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    kind = Integral if isinstance(default, int) else Real
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


def _expected(default: Any) -> str:
    if isinstance(default, tuple):
        return f"{len(default)} numbers, such as {','.join(map(str, default))}"
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, str):
        return f"a word, such as {default}"
    if isinstance(default, int):
        return f"a whole number, such as {default}"
    return f"a number, such as {float(default):.3g}"
