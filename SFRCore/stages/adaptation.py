"""The adaptation stage of ASLseg: a 3D network makes better pseudo-labels of the student's and SAM's.

Source: ASLseg (ISBI 2024), stage III, trained on synthetic pseudo-labels. Unpublished are the network, its
input and the corruptions: here it is a student that sees the image and both predictions, one channel for each
structure of each.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ..errors import InputError
from ..foundation.checkpoints import seeded
from ..foundation.prompting import PromptedSAM, load_prompted
from ..runtime.files import atomic_path
from ..runtime.optimise import seed_step
from ..settings import BATCH
from ..ssl.contract import Batch
from ..ssl.losses import segmentation_loss
from ..ssl.schedules import Schedule, learning_rate
from ..students import Student, load_student, make_student, save_student
from ..volumes import CachedVolume
from .aslseg_models import adaptation_lineage, prompted_lineage
from .context import StageContext
from .corruption import corrupt
from .data import LABELED, CropSource, make_batch
from .lineage import Lineage, recipe_options, shortened
from .prompts import ask_about
from .retrainer import MOMENTUM, WEIGHT_DECAY, structures_of
from .survey import keep_plan
from .training import SingleTrainer, train_stage
from .training_set import labeled_volumes

STAGE = "adapt"
STAGE_SEED = 4
BOTH = 256
"""Two label maps in one: the student's class times this, plus SAM's."""


class AdaptationTrainer(SingleTrainer[Batch]):
    """One training of an adaptation network; see :class:`SFRCore.runtime.loop.Trainer`.

    ``guesses`` (X, Y, Z) uint16 by "CASE#NUMBER" are synthetic predictions of student and SAM in one.
    """

    def __init__(
        self,
        context: StageContext,
        volumes: Mapping[str, CachedVolume],
        guesses: Mapping[str, np.ndarray],
        network: Student,
        *,
        total: int,
    ) -> None:
        settings, plan = context.settings, context.plan
        self.student = network.to(context.device.torch_device).train()
        self.every = Fraction(plan.step_every).limit_denominator(1000)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=plan.base_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        source = CropSource(
            {key: volumes[key.rpartition("#")[0]] for key in guesses},
            plan.patch,
            settings.seed,
            LABELED,
            flip_axes=plan.flip_axes,
            faithful=settings.faithful,
            overrides=guesses,
        )
        rank, processes = context.device.rank, context.device.processes
        super().__init__(
            context,
            network,
            optimizer,
            lambda k: guessed_batch(source, k, rank, processes, plan.finetune_batch),
            total=total,
        )

    def step(self, k: int) -> dict[str, float]:
        seed_step(self.context.settings.seed, STAGE_SEED, k, self.context.device.rank)
        batch = self.ahead.get(k).to(self.context.device.torch_device)
        assert batch.pseudo_labels is not None
        inputs = with_guesses(batch.labeled_images, batch.pseudo_labels, self.student.classes)
        with self.context.device.autocast():
            logits = self.optimisation.model(inputs)
        loss = segmentation_loss(logits.float(), batch.labels, batch.labeled_valid, epsilon=1e-10)
        rate = learning_rate(
            cast(Schedule, self.context.plan.schedule),
            k,
            self.total,
            base=self.context.plan.base_rate,
            every=self.every,
        )
        return self.descend(loss, rate)


def guessed_batch(source: CropSource, k: int, rank: int, processes: int, count: int = BATCH) -> Batch:
    """``count`` labeled crops of step ``k``, with what was guessed of them where the pseudo-labels are."""
    crops = source.crops(k, count, rank, processes)
    return make_batch(crops, crops, "extra")


def with_guesses(images: torch.Tensor, guesses: torch.Tensor, classes: int) -> torch.Tensor:
    """Input (B, 1 + 2(C-1), X, Y, Z) of the network: the image, then each structure as the student and as SAM
    found it, of images (B, 1, X, Y, Z) and both label maps in one, ``student * 256 + sam`` (B, X, Y, Z).
    """
    found = (guesses // BOTH, guesses % BOTH)
    masks = [(one == c).to(images.dtype) for one in found for c in range(1, classes)]
    return torch.cat([images, torch.stack(masks, 1)], 1)


def adapt(context: StageContext) -> dict[str, Any]:
    """Train the adaptation network, unless that is done; leaves ``models/aslseg/adaptation``.

    Raises InputError where the prompted SAM is missing.
    """
    context.begin(STAGE)
    lineage = adaptation_lineage(context)
    prompted = prompted_lineage(context)
    if prompted.existing is None or prompted.leaks:
        raise InputError("SAM is not tuned with prompts yet.", hint="Run the recipe aslseg.")
    volumes: dict[str, CachedVolume] = {}
    if not lineage.is_done():
        volumes = labeled_volumes(context)
        lineage = lineage.made_of(volumes)
    keep_plan(context.study, context.settings)
    if lineage.is_done():
        context.emit("skipped", message="The adaptation network is already trained on these labels.")
        return {"skipped": True}
    folder = context.study.cache_dir / "corruptions" / lineage.training_identity()
    model = load_prompted(prompted.folder).to(context.device.torch_device)
    guesses = synthetic_guesses(context, volumes, model, folder)
    trainer = prepare(context, lineage, volumes, guesses)

    def save() -> None:
        plan = context.plan
        info = {
            "structures": structures_of(context.study),
            "preprocessing": plan.preprocessing.to_dict(),
            "patch": list(plan.patch),
            "stride": list(plan.reference_stride),
            "made_by": lineage.made_by(iterations=trainer.total),
        }
        save_student(trainer.student, lineage.folder, info)

    doing = "training the adaptation network"
    done = train_stage(context, lineage, trainer, name=STAGE, doing=doing, save=save, cases=len(volumes))
    shutil.rmtree(folder.parent, ignore_errors=True)
    return done


def prepare(
    context: StageContext,
    lineage: Lineage,
    volumes: Mapping[str, CachedVolume],
    guesses: Mapping[str, np.ndarray],
) -> AdaptationTrainer:
    """The training of this run, before its first step."""
    settings, plan = context.settings, context.plan
    total = plan.iterations_retrain
    classes = len(plan.preprocessing.values) + 1
    if lineage.parent is not None:
        network, _ = load_student(lineage.folder)
        total = shortened(total)
    else:
        with seeded(settings.seed):
            network = make_student(context.student, in_channels=1 + 2 * (classes - 1), classes=classes)
    return AdaptationTrainer(context, volumes, guesses, network, total=total)


def synthetic_guesses(
    context: StageContext, volumes: Mapping[str, CachedVolume], model: PromptedSAM, folder: Path
) -> dict[str, np.ndarray]:
    """Corrupted labels of every volume, with what SAM answers to prompts from them: memory maps of files in
    this process's own part of ``folder``, kept for the next run of the same training.
    """
    options, seed = recipe_options(context), context.settings.seed
    classes, count = len(context.plan.preprocessing.values) + 1, options["corruptions"]
    own = folder / f"{context.device.rank}-of-{context.device.processes}"
    made: dict[str, np.ndarray] = {}
    for index, (case_id, volume) in enumerate(volumes.items()):
        paths = [own / f"{index:05d}-{number:03d}.npy" for number in range(count)]
        if not all(path.is_file() for path in paths):
            label = volume.label
            assert label is not None
            wrong = [
                corrupt(
                    np.random.default_rng([seed, STAGE_SEED, index, number]),
                    label,
                    classes,
                    volume.frame.spacing,
                )
                for number in range(count)
            ]
            answers = ask_about(
                model, volume.image, wrong, classes, options["prompts"], context.device, context.check_local
            )
            for path, guess, answer in zip(paths, wrong, answers, strict=True):
                with atomic_path(path) as temporary, open(temporary, "wb") as stream:
                    np.save(stream, guess.astype(np.uint16) * BOTH + answer)
        made |= {f"{case_id}#{number}": np.load(path, mmap_mode="r") for number, path in enumerate(paths)}
        context.emit("progress", step=index + 1, total=len(volumes), doing="synthetic pseudo-labels")
    return made
