"""Where a model comes from: whether it is up to date, and whether it can be continued with new labels.

A model is made by a *recipe* (settings that a change of which means starting anew) from *data* (labels,
and the models before it). Same recipe and data: done. Same recipe, other data: continued from its weights
with a fifth of the iterations. Another recipe: from the start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..planning import digest
from ..runtime.files import file_identity, read_json
from ..ssl import get_method
from ..study.folder import FileStamp, file_stamp
from .context import StageContext

FOUNDATION_INFO = "foundation.json"
STUDENT_INFO = "student.json"


@dataclass(frozen=True)
class Lineage:
    """The identity of one model: ``folder`` holds it, ``parent`` names the one it goes on from."""

    folder: Path
    recipe: str
    data: str
    settings: Mapping[str, Any]
    parent: str | None
    existing: Mapping[str, Any] | None
    tuning: str = ""

    def is_done(self) -> bool:
        return self.existing is not None and (self.existing["recipe"], self.existing["data"]) == (
            self.recipe,
            self.data,
        )

    def training_identity(self) -> str:
        """Fingerprint of the training that makes this model: what its checkpoints belong to."""
        return digest([self.recipe, self.data, self.parent])

    def model_identity(self) -> str:
        """Fingerprint of the model that lies in the folder now, empty where there is none."""
        return "" if self.existing is None else str(self.existing["model"])

    def made_by(self, *, iterations: int) -> dict[str, Any]:
        """What is written beside the model."""
        return {
            "program": f"SFR {__version__}",
            "time": time.time(),
            "recipe": self.recipe,
            "data": self.data,
            "parent": self.parent,
            "model": digest([self.recipe, self.data, self.parent, iterations]),
            "iterations": iterations,
            "settings": dict(self.settings),
        }


def shortened(iterations: int) -> int:
    """Iterations when earlier weights are continued with new labels: a fifth."""
    return max(1, math.ceil(iterations / 5))


def foundation_folder(context: StageContext) -> Path:
    return context.study.models_dir / "foundation"


def student_folder(context: StageContext) -> Path:
    """One folder a recipe and method, so that students of several methods stand side by side."""
    return context.study.models_dir / f"{context.settings.recipe}-{context.settings.ssl}"


def foundation_lineage(context: StageContext) -> Lineage:
    settings, plan = context.settings, context.plan
    tuning = settings.tuning or default_tuning(context)
    recipe = {
        "stage": "finetune",
        "foundation": foundation_identity(settings.foundation),
        "tuning": tuning,
        "seed": settings.seed,
        "faithful": settings.faithful,
        "patch": plan.patch,
        "canvas": plan.canvas,
        "zoom": plan.zoom,
        "preprocessing": plan.preprocessing.to_dict(),
        "flip_axes": plan.flip_axes,
        "canvas_rotation": plan.canvas_rotation,
        "batch": plan.finetune_batch,
        "iterations": plan.iterations_finetune,
    }
    data = {"labels": labels(context)}
    return _lineage(context, foundation_folder(context), FOUNDATION_INFO, recipe, data, tuning)


def student_lineage(context: StageContext) -> Lineage:
    settings, plan = context.settings, context.plan
    guided = uses_pseudo_labels(context)
    recipe = {
        "stage": "retrain",
        "student": settings.student,
        "ssl": settings.ssl,
        "options": dict(settings.method_options),
        "pseudo_labels": settings.pseudo_labels if guided else "none",
        "pseudo_weight": settings.pseudo_weight if guided else 0.0,
        "seed": settings.seed,
        "faithful": settings.faithful,
        "patch": plan.patch,
        "preprocessing": plan.preprocessing.to_dict(),
        "flip_axes": plan.flip_axes,
        "schedule": plan.schedule,
        "step_every": plan.step_every,
        "ramp": plan.ramp,
        "reference_iterations": plan.reference_iterations,
        "iterations": plan.iterations_retrain,
    }
    data: dict[str, Any] = {"labels": labels(context)}
    if get_method(settings.ssl).uses_unlabeled or guided:
        data["unlabeled"] = [case.id for case in context.study.unlabeled_cases()]
    if guided:
        data["foundation"] = foundation_lineage(context).model_identity()
        data["rejected"] = [case.id for case in context.study.unlabeled_cases() if case.review == "rejected"]
    return _lineage(context, student_folder(context), STUDENT_INFO, recipe, data)


def labels(context: StageContext) -> list[list[str | None]]:
    """The labeled cases with the newest label of each; a label file is never overwritten."""
    return [[case.id, case.label] for case in context.study.labeled_cases()]


def uses_pseudo_labels(context: StageContext) -> bool:
    """Whether the student learns from the foundation's pseudo-labels in this recipe."""
    from ..recipes import get_recipe

    return "pseudolabel" in get_recipe(context.settings.recipe).stages and context.settings.pseudo_weight > 0


def default_tuning(context: StageContext) -> str:
    """LoRA as in the paper; every weight of a ``tiny``; the decoder alone where no GPU would bear LoRA."""
    from ..foundation.choice import foundation_spec
    from ..foundation.spec import SPECS

    if foundation_spec(context.settings.foundation).dim < SPECS["vit_b"].dim:
        return "full"
    return "lora" if context.device.is_gpu else "decoder"


def foundation_identity(name: str) -> Any:
    """A known name, or the size and hash of the user's checkpoint file."""
    from ..foundation.spec import SPECS

    if name in SPECS:
        return name
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(
            f"The foundation '{name}' is neither a known name nor a file.",
            hint=f"Known names: {', '.join(SPECS)}.",
        )
    return file_identity(path)["sha256"]


def _lineage(
    context: StageContext,
    folder: Path,
    info: str,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    tuning: str = "",
) -> Lineage:
    existing = None
    if (folder / info).is_file():
        try:
            existing = _made_by(folder / info)
        except InputError as error:
            context.warn(f"{error.message} The model is made anew.", code="model")
    recipe_digest, data_digest = digest(recipe), digest(data)
    continues = (
        existing is not None and existing["recipe"] == recipe_digest and existing["data"] != data_digest
    )
    parent = str(existing["model"]) if existing is not None and continues else None
    return Lineage(folder, recipe_digest, data_digest, recipe, parent, existing, tuning)


def _made_by(path: Path) -> dict[str, Any] | None:
    """What the JSON beside a model says of its making; None for a model of an older SFR.

    Raises InputError where it is damaged, or the weights are not those that it was written for: a process
    that was killed between the two files leaves them so.
    """
    description = read_json(path)
    weights = path.with_suffix(".safetensors")
    made_by = description.get("made_by") if isinstance(description, dict) else None
    if not isinstance(made_by, dict):
        raise InputError(f"{path} does not describe a model.")
    if _sha256(weights, file_stamp(weights)) != description.get("weights_sha256"):
        raise InputError(f"{weights} is damaged or does not belong to {path.name}.")
    return made_by if {"recipe", "data", "model"} <= set(made_by) else None


@lru_cache(maxsize=16)
def _sha256(path: Path, stamp: FileStamp | None) -> str:
    """The hash of a file as it was at ``stamp``; empty where there is none."""
    return str(file_identity(path)["sha256"]) if stamp is not None else ""
