"""The training of a student from labels, pseudo-labels and a semi-supervised method.

Sources: SFR (IEEE TMI 2025), section III-B3, and the reference implementation's ``train_retraining.py``:
loss of the method + pseudo-label loss, SGD with momentum 0.9 and weight decay 1e-4, the last iteration is
kept. Padding counts in no loss; with ``faithful`` it counts as background, as it does there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..runtime.files import atomic_path
from ..runtime.loop import Ahead, made_ahead
from ..runtime.optimise import Optimisation, seed_step
from ..settings import BATCH
from ..ssl import get_method
from ..ssl.contract import (
    Batch,
    Method,
    MethodContext,
    Phase,
    Progress,
    Step,
    phase_lengths,
    progress_at,
    pseudo_label_loss,
)
from ..students import Student, make_student, save_student
from ..students.sliding_window import sliding_window
from ..study import Study
from ..volumes import CachedVolume
from .companions import load_companions, save_companions, take_over
from .context import StageContext
from .data import LABELED, UNLABELED, CropSource, make_batch
from .inference import network_probabilities, student_windows
from .lineage import Lineage
from .training import train_stage

STAGE_SEED = 2
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
PseudoLabeler = Callable[[Tensor], Tensor]
"""Crops (B, 1, X, Y, Z) -> label indices (B, X, Y, Z)."""


class Retrainer:
    """One training of a student by a semi-supervised method; see :class:`SFRCore.runtime.loop.Trainer`.

    ``unlabeled`` volumes carry their pseudo-label as label where the recipe has pseudo-labels; with
    ``online`` these are computed for every batch instead. ``parent_weights`` are those of the student that
    this one goes on from, ``companions`` the state of what was trained beside it, as far as it is known.
    """

    def __init__(
        self,
        context: StageContext,
        labeled: Mapping[str, CachedVolume],
        unlabeled: Mapping[str, CachedVolume],
        *,
        total: int,
        guided: bool,
        online: PseudoLabeler | None = None,
        parent_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        settings, plan = context.settings, context.plan
        self.context, self.total, self.online = context, total, online
        self.guided = guided
        self.labeled, self.unlabeled = labeled, unlabeled
        self.method = make_method(context, guided)
        self.phases = self.method.phases(total)
        self.first = progress_at(self.phases, total, 0).phase
        if not unlabeled and any(phase.unlabeled for phase in self.phases):
            raise InputError(
                f"The method {settings.ssl} learns from unlabeled volumes, and the study has none to use.",
                hint="Add volumes without labels, or choose the method 'supervised'.",
            )
        self.phase: Phase | None = None
        self.optimisation: Optimisation | None = None
        self.parent_weights = parent_weights
        self.companions: Mapping[str, Tensor] = {}
        self.predicted: dict[str, np.ndarray] = {}
        self.anchor: dict[str, Tensor] | None = None
        self.lean = False
        self.stack = ExitStack()
        self.ahead: Ahead[Batch] | None = None
        self.sources: tuple[CropSource, CropSource] | None = None
        assert len(plan.patch) == 3

    def step(self, k: int) -> dict[str, float]:
        progress = progress_at(self.phases, self.total, k)
        if progress.phase is not self.phase:
            self._enter(progress.phase, anchor=None)
        assert self.ahead is not None and self.optimisation is not None
        device = self.context.device
        seed_step(self.context.settings.seed, STAGE_SEED, k, device.rank)
        batch = self.prepared(_channels_last(self.ahead.get(k).to(device.torch_device)), progress)
        guided = progress.phase.pseudo_labels != "none"
        with device.autocast():
            done = self.optimisation.model(batch, progress)
        if not isinstance(done, Step):
            raise InputError(
                f"The method {self.method.name} gave back a {type(done).__name__} from its step.",
                hint="It must be a Step, of SFRCore.ssl.contract.",
            )
        loss = done.loss.float()
        parts = {name: value for name, value in done.parts.items()}
        weight = self.method.context.pseudo_weight_at(progress)
        if guided and done.unlabeled_logits and weight:
            guidance = pseudo_label_loss(done, self.guiding(batch, progress), weight)
            parts["pseudo_label"] = guidance.detach()
            loss = loss + guidance
        rate = progress.phase.learning_rate(progress.step_in_phase, progress.phase_total)
        self.optimisation.set_rate(rate)
        self.optimisation.descend(loss)
        self.method.after_step(progress)
        return {
            "loss": float(loss.detach()),
            "rate": rate,
            **{name: float(value) for name, value in parts.items()},
        }

    def prepared(self, batch: Batch, progress: Progress) -> Batch:
        """The batch with its pseudo-labels, where these are made online."""
        if progress.phase.pseudo_labels != "foundation" or self.online is None:
            return batch
        with torch.no_grad():
            return replace(batch, pseudo_labels=self.online(batch.unlabeled_images))

    def guiding(self, batch: Batch, progress: Progress) -> Batch:
        """The batch that the pseudo-label loss is taken on: all of it."""
        return batch

    def state(self) -> dict[str, Any]:
        assert self.optimisation is not None
        return {"method": self.method.state_dict(), "anchor": self.anchor, **self.optimisation.state()}

    def restore(self, state: dict[str, Any], step: int) -> None:
        progress = progress_at(self.phases, self.total, min(step, self.total - 1))
        at_start = progress.step_in_phase == 0 and step > 0
        reached = progress_at(self.phases, self.total, step - 1) if at_start else progress
        for phase in self.phases[: self.phases.index(reached.phase)]:
            self.method.begin(phase)
        self._enter(reached.phase, anchor=state["anchor"])
        assert self.optimisation is not None
        self.method.load_state_dict(state["method"])
        self.optimisation.restore(state)

    def save_memory(self) -> bool:
        if self.lean:
            return False
        self.lean = True
        return self._recompute_activations()

    def close(self) -> None:
        self._close_stream()
        shutil.rmtree(self._rounds_folder(), ignore_errors=True)
        if self.optimisation is not None:
            self.optimisation.close()

    def _recompute_activations(self) -> bool:
        """Let every network compute its activations twice; False where there is none that can."""
        students = [module for module in self.method.modules() if isinstance(module, Student)]
        for student in students:
            student.set_checkpointing(True)
        return bool(students)

    def _enter(self, phase: Phase, anchor: dict[str, Tensor] | None) -> None:
        """Begin a phase: its pseudo-labels, networks, optimiser and stream of batches."""
        if phase.pseudo_labels == "student":
            if anchor is not None:
                self.method.student.load_state_dict(anchor)
            self.anchor = {
                name: value.detach().cpu().clone() for name, value in self.method.student.state_dict().items()
            }
            self._close_stream()
            self.predicted = self._predict_unlabeled()
        else:
            self.anchor = None
        self.method.begin(phase)
        if self.lean:
            self._recompute_activations()
        if self.parent_weights is not None and (phase.restart or phase is self.first):
            self.method.student.load_state_dict(dict(self.parent_weights))
            take_over(self.method, self.companions)
        self.phase = phase
        device = self.context.device
        if self.optimisation is not None:
            self.optimisation.close()
        self.method.to(device.torch_device, memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
        groups = self.method.parameter_groups(phase)
        optimizer = torch.optim.SGD(groups, lr=phase.base_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        self.optimisation = Optimisation(device, self.method, optimizer)
        self._open_stream(phase)

    def _close_stream(self) -> None:
        """End the stream of batches, and let go of the label maps that it was made from."""
        self.stack.close()
        self.stack = ExitStack()
        self.ahead = None
        self.predicted = {}

    def _open_stream(self, phase: Phase) -> None:
        settings, plan = self.context.settings, self.context.plan
        self.stack.close()
        self.stack = ExitStack()
        own = phase.pseudo_labels == "student"
        cached = phase.pseudo_labels == "foundation" and self.online is None
        common = {
            "patch": plan.patch,
            "seed": settings.seed,
            "flip_axes": plan.flip_axes,
            "faithful": settings.faithful,
        }
        labeled = CropSource(self.labeled, stream=LABELED, **common)  # type: ignore[arg-type]
        unlabeled = CropSource(
            self.unlabeled,
            stream=UNLABELED,
            foreground=cached,
            overrides=self.predicted if own else None,
            **common,  # type: ignore[arg-type]
        )
        rank, processes = self.context.device.rank, self.context.device.processes
        kind = "extra" if own else "label" if cached else "none"

        def make(k: int) -> Batch:
            batch = make_batch(
                labeled.crops(k, phase.labeled, rank, processes),
                unlabeled.crops(k, phase.unlabeled, rank, processes) if phase.unlabeled else [],
                kind if phase.unlabeled else "none",
            )
            return _padding_counted(batch) if settings.faithful else batch

        self.ahead = self.stack.enter_context(made_ahead(make))

    def _predict_unlabeled(self) -> dict[str, np.ndarray]:
        """Label maps of all unlabeled volumes by the student as it stands (rounds of self-training): memory
        maps of files that stay until the next round.
        """
        plan, device = self.context.plan, self.context.device
        folder = self._rounds_folder()
        shutil.rmtree(folder, ignore_errors=True)
        student = self.method.student.to(device.torch_device).eval()

        predicted = {}
        for index, (case_id, volume) in enumerate(self.unlabeled.items()):
            image = np.asarray(volume.image)
            window, stride = student_windows(
                student, image.shape, plan.patch, plan.reference_stride, fast=True
            )
            found = sliding_window(
                network_probabilities(student, device),
                image,
                window,
                stride=stride,
                batch=1,
                device=device.torch_device,
                trained_on=plan.patch,
                check=self.context.check,
            )
            path = folder / f"{index:05d}.npy"
            with atomic_path(path) as temporary:
                np.save(temporary, found.argmax(0).astype(np.uint8))
            predicted[case_id] = np.load(path, mmap_mode="r")
            self.context.emit(
                "progress", step=index + 1, total=len(self.unlabeled), doing="pseudo-labels of the round"
            )
        return predicted

    def _rounds_folder(self) -> Path:
        """Where this process keeps the label maps of a round of self-training."""
        return self.context.study.cache_dir / "rounds" / str(self.context.device.rank)


def _padding_counted(batch: Batch) -> Batch:
    """The batch with padding as background like any other, as the reference implementation sees it."""
    return replace(
        batch,
        labeled_valid=torch.ones_like(batch.labeled_valid),
        unlabeled_valid=torch.ones_like(batch.unlabeled_valid),
    )


def _channels_last(batch: Batch) -> Batch:
    """Images with the channel innermost in memory: convolutions are faster so, on CPUs and GPUs."""
    layout = torch.channels_last_3d
    return replace(
        batch,
        labeled_images=batch.labeled_images.contiguous(memory_format=layout),
        unlabeled_images=batch.unlabeled_images.contiguous(memory_format=layout),
    )


def make_method(context: StageContext, guided: bool) -> Method:
    """The semi-supervised method of this run, with the preset's numbers for those options that it has.

    Raises InputError where method, student and patch do not fit.
    """
    settings, plan = context.settings, context.plan
    kind = get_method(settings.ssl)
    known = kind.known_options().keys() - kind.keeps
    preset = {
        "schedule": plan.schedule,
        "step_every": Fraction(plan.step_every).limit_denominator(1000),
        "base_rate": plan.base_rate,
        "consistency": plan.ramp[0],
        "ramp": (plan.ramp[1], plan.ramp[2], plan.reference_iterations),
    }
    options = {name: value for name, value in preset.items() if name in known} | dict(settings.method_options)
    classes = len(plan.preprocessing.values) + 1

    def build(**overrides: Any) -> Any:
        return make_student(context.student, **({"in_channels": 1, "classes": classes} | overrides))

    method = kind(
        MethodContext(
            classes=classes,
            patch=plan.patch,
            make_student=build,
            with_pseudo_labels=guided,
            pseudo_weight=settings.pseudo_weight if guided else 1.0,
            pseudo_schedule=settings.pseudo_schedule,
            batch=settings.batch or BATCH,
            options=options,
            seed=settings.seed,
        )
    )
    method.check()
    method.check_batch(plan.iterations_retrain)
    return method


def training_name(context: StageContext, lineage: Lineage) -> str:
    """What the checkpoints of a student are called."""
    return "-".join(lineage.folder.relative_to(context.study.models_dir).parts)


def train_student(context: StageContext, lineage: Lineage, trainer: Retrainer) -> dict[str, Any]:
    """Train to the end, from this student's newest checkpoint if there is one, and save the student."""
    if lineage.parent is not None:
        trainer.companions = load_companions(lineage.folder)

    def save() -> None:
        companions = save_companions(trainer.method, lineage.folder)
        info = student_info(context, lineage, trainer) | ({"companions": companions} if companions else {})
        save_student(trainer.method.student, lineage.folder, info)

    return train_stage(
        context,
        lineage,
        trainer,
        name=training_name(context, lineage),
        doing="training the student",
        save=save,
        labeled=len(trainer.labeled),
        unlabeled=len(trainer.unlabeled),
    )


def student_info(context: StageContext, lineage: Lineage, trainer: Retrainer) -> dict[str, Any]:
    """What the student's JSON says: what made it and what it expects."""
    settings, plan, study = context.settings, context.plan, context.study
    method = trainer.method
    return {
        "student": context.student,
        "student_options": dict(method.student.options),
        "in_channels": 1,
        "classes": len(plan.preprocessing.values) + 1,
        "structures": structures_of(study),
        "preprocessing": plan.preprocessing.to_dict(),
        "patch": list(plan.patch),
        "stride": list(plan.reference_stride),
        "plan": plan.to_dict(),
        "made_by": lineage.made_by(iterations=trainer.total)
        | {
            "method": settings.ssl,
            "method_options": {name: str(value) for name, value in method.options.items()},
            "phases": [
                {"name": phase.name, "iterations": length}
                for phase, length in zip(
                    method.plan(trainer.total), phase_lengths(trainer.phases, trainer.total), strict=True
                )
            ],
            "labeled": sorted(trainer.labeled),
            "unlabeled": sorted(trainer.unlabeled),
        },
    }


def structures_of(study: Study) -> list[dict[str, Any]]:
    """What a model's JSON says of the structures, in the order of its classes after background."""
    return [
        {"value": item.value, "name": item.name, "color": list(item.color), "terminology": item.terminology}
        for item in study.structures
    ]
