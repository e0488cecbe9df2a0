"""Where a model comes from: whether it is up to date, and whether it can be continued with new labels.

A model is made by a *recipe* (settings that a change of which means starting anew) from *data* (labels,
and the models before it). Same recipe and data: done. Same recipe, other data: continued from its weights
with a fifth of the iterations. Another recipe, or weights that have seen the label of what is a test case
now: from the start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from ..planning import digest
from ..runtime.files import file_identity, read_json
from ..settings import BATCH
from ..ssl import get_method
from ..study import Case, CaseResult
from ..study.folder import FileStamp, file_stamp
from .context import StageContext

CANVAS_SETTINGS = ("foundation", "input", "patch", "canvas", "zoom", "preprocessing")
"""Settings of a fine-tuning that must agree where the foundation is used."""
FOUNDATION_INFO = "foundation.json"
STUDENT_INFO = "student.json"


@dataclass(frozen=True)
class Lineage:
    """The identity of one model.

    ``folder`` holds it, ``made_from`` is its data: at first all labels and unlabeled cases of the study, then
    (:meth:`made_of`) those that could be read. ``existing`` says what made the model that is in the folder
    now, ``inherited`` names cases whose labels shaped the pseudo-labels, ``tests`` the study's test cases,
    ``withdrawn`` those that were rejected, ``images`` the hash of every image, as far as it is known.
    """

    folder: Path
    recipe: str
    settings: Mapping[str, Any]
    made_from: Mapping[str, Any]
    existing: Mapping[str, Any] | None
    inherited: frozenset[str]
    tests: frozenset[str]
    withdrawn: frozenset[str]
    images: Mapping[str, str]
    tuning: str = ""

    @property
    def data(self) -> str:
        """Fingerprint of the data."""
        return digest(self.made_from)

    @property
    def leaks(self) -> bool:
        """Whether the model in the folder has seen the label of what is a test case now."""
        return self.existing is not None and not self.tests.isdisjoint(seen_by(self.existing))

    @property
    def unlearned(self) -> bool:
        """Whether the model in the folder has seen a label that was accepted and then taken back: weights
        cannot forget it, so the next training starts anew.
        """
        return self.existing is not None and not self.withdrawn.isdisjoint(seen_by(self.existing))

    @property
    def replaced(self) -> bool:
        """Whether a case that the model in the folder learned from has another image now."""
        known = (self.existing or {}).get("images", {})
        return any(known.get(case, image) != image for case, image in self._own_images().items())

    @property
    def parent(self) -> str | None:
        """The model whose weights this one goes on from; None where it starts anew."""
        existing = self.existing
        if existing is None or self.leaks or self.unlearned or existing["recipe"] != self.recipe:
            return None
        return str(existing["model"]) if existing["data"] != self.data or self.replaced else None

    def is_done(self) -> bool:
        existing = self.existing
        return (
            existing is not None
            and not self.leaks
            and not self.unlearned
            and not self.replaced
            and (existing["recipe"], existing["data"]) == (self.recipe, self.data)
        )

    def made_of(self, labeled: Collection[str], unlabeled: Collection[str] = ()) -> Lineage:
        """The same with only those cases that can really be used."""
        made_from = dict(self.made_from)
        made_from["labels"] = [pair for pair in made_from["labels"] if pair[0] in labeled]
        if "unlabeled" in made_from:
            made_from["unlabeled"] = [case for case in made_from["unlabeled"] if case in unlabeled]
        return replace(self, made_from=made_from)

    def training_identity(self) -> str:
        """Fingerprint of the training that makes this model: what its checkpoints belong to."""
        return digest([self.recipe, self.data, self.parent, self._own_images()])

    def _own_images(self) -> dict[str, str]:
        """Hashes of the images that this model learns from."""
        used = {str(case) for case, _ in [*self.made_from["labels"], *self.made_from.get("reliable", ())]}
        used |= set(self.made_from.get("unlabeled", ()))
        return {case: image for case, image in self.images.items() if case in used}

    def model_identity(self) -> str:
        """Fingerprint of the model that lies in the folder now, empty where there is none."""
        return "" if self.existing is None else str(self.existing["model"])

    def made_by(self, *, iterations: int) -> dict[str, Any]:
        """What is written beside the model; ``seen`` are the cases whose labels have shaped its weights."""
        seen = {str(case) for case, _ in self.made_from["labels"]} | self.inherited
        if self.existing is not None and self.parent is not None:
            seen |= seen_by(self.existing)
        return {
            "program": f"SFR {__version__}",
            "time": time.time(),
            "recipe": self.recipe,
            "data": self.data,
            "parent": self.parent,
            "model": digest([self.training_identity(), iterations]),
            "iterations": iterations,
            "images": self._own_images(),
            "settings": dict(self.settings),
            "seen": sorted(seen),
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
    folder = foundation_folder(context)
    existing = existing_model(context, folder / FOUNDATION_INFO)
    identity = foundation_identity(settings.foundation)
    tuning = settings.tuning or default_tuning(context, identity, existing)
    recipe = {
        "stage": "finetune",
        "foundation": identity,
        "tuning": tuning,
        "input": settings.input,
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
    return Lineage(
        folder=folder,
        recipe=digest(recipe),
        settings=recipe,
        made_from={"labels": labels(context)},
        existing=existing,
        inherited=frozenset(),
        tests=test_cases(context),
        withdrawn=rejected_cases(context),
        images=images(context),
        tuning=tuning,
    )


def tuned_foundation(context: StageContext) -> Lineage:
    """The lineage of the foundation that is in the study.

    Raises InputError where there is none, it takes other canvases than this run's (another foundation, patch
    or preprocessing), or it has seen the label of what is a test case now.
    """
    lineage = foundation_lineage(context)
    if lineage.existing is None:
        raise InputError("The foundation is not tuned yet.", hint="Run the stage finetune first.")
    before = lineage.existing.get("settings", {})
    others = [name for name in CANVAS_SETTINGS if digest(before.get(name)) != digest(lineage.settings[name])]
    if others:
        raise InputError(
            f"The foundation in {lineage.folder} was tuned with other settings ({', '.join(others)}).",
            hint="Give the settings of the fine-tuning, or run the stage finetune with these.",
        )
    refuse_leak(lineage)
    return lineage


def refuse_leak(foundation: Lineage) -> None:
    """Raise InputError where pseudo-labels of the foundation would tell of a test case's label."""
    if foundation.leaks:
        raise InputError(
            f"The foundation in {foundation.folder} has learned from what is a test case now.",
            hint="Run the stage finetune again: it starts anew.",
        )


def student_lineage(context: StageContext, options: Mapping[str, Any] | None = None) -> Lineage:
    """Of the student of this run's recipe and method. ``options``: those of the recipe that shape it, by
    default all.

    A foundation of another recipe is a setting of its student: pseudo-labels of the one before must not live
    on in its weights. The same one, tuned on with other labels, is data.
    """
    settings, plan = context.settings, context.plan
    guided = uses_pseudo_labels(context)
    recipe = {
        "stage": "selective" if trains_selectively(context) else "retrain",
        "student": context.student,
        "ssl": settings.ssl,
        "options": dict(settings.method_options),
        "pseudo_labels": ("online" if makes_labels_online(context) else "cached") if guided else "none",
        "pseudo_weight": settings.pseudo_weight if guided else 0.0,
        "seed": settings.seed,
        "faithful": settings.faithful,
        "patch": plan.patch,
        "preprocessing": plan.preprocessing.to_dict(),
        "flip_axes": plan.flip_axes,
        "schedule": plan.schedule,
        "step_every": plan.step_every,
        "base_rate": plan.base_rate,
        "ramp": plan.ramp,
        "reference_iterations": plan.reference_iterations,
        "iterations": plan.iterations_retrain,
    }
    if guided and settings.pseudo_schedule != "constant":
        recipe["pseudo_schedule"] = settings.pseudo_schedule
    if plan.finetune_batch != BATCH:
        recipe["batch"] = plan.finetune_batch
    chosen = recipe_options(context) if options is None else options
    if chosen:
        recipe["recipe"] = {"name": settings.recipe, **chosen}
    data: dict[str, Any] = {"labels": labels(context)}
    inherited: frozenset[str] = frozenset()
    if get_method(settings.ssl).uses_unlabeled or guided:
        data["unlabeled"] = [case.id for case in unlabeled_for_training(context)]
    if guided:
        foundation = foundation_lineage(context)
        recipe["foundation"] = (foundation.existing or {}).get("recipe", foundation.recipe)
        data["foundation"] = foundation.model_identity()
        inherited = seen_by(foundation.existing or {})
    folder = student_folder(context)
    return Lineage(
        folder=folder,
        recipe=digest(recipe),
        settings=recipe,
        made_from=data,
        existing=existing_model(context, folder / STUDENT_INFO),
        inherited=inherited,
        tests=test_cases(context),
        withdrawn=rejected_cases(context),
        images=images(context),
    )


def labels(context: StageContext) -> list[list[str | None]]:
    """The labeled cases with the newest label of each; a label file is never overwritten."""
    return [[case.id, case.label] for case in context.study.labeled_cases()]


def images(context: StageContext) -> dict[str, str]:
    """The hash of every image by case; one that is not known is left out."""
    return {case.id: image for case in context.study.cases.values() if (image := image_hash(case))}


def image_hash(case: Case) -> str | None:
    """The hash of a case's image as the study has it on record; None in studies of an old SFR."""
    return (case.image_identity or {}).get("sha256")


def unlabeled_for_training(context: StageContext) -> list[Case]:
    """The unlabeled cases that a student may learn from; those with a rejected pseudo-label learn nothing
    from it.
    """
    cases = context.study.unlabeled_cases()
    return [case for case in cases if case.review != "rejected"] if uses_pseudo_labels(context) else cases


def is_current(context: StageContext, case: Case, model_identity: str) -> bool:
    """Whether the case has a pseudo-label, made by the foundation of that identity of the present image."""
    return is_of(context.study.result(case.id, "pseudo_label"), case, model_identity)


def is_of(result: CaseResult | None, case: Case, model_identity: str) -> bool:
    """Whether a result was made by the model of that identity, of the image that the case has now.

    A result that does not say of which image it was made counts as one of this image.
    """
    if result is None or result.made_by.get("model") != model_identity:
        return False
    before, now = result.made_by.get("image"), image_hash(case)
    return before is None or now is None or before == now


def uses_pseudo_labels(context: StageContext) -> bool:
    """Whether the student learns from the foundation's pseudo-labels in this recipe."""
    from ..recipes import get_recipe

    stages = get_recipe(context.settings.recipe).stages
    return not {"pseudolabel", "selective"}.isdisjoint(stages) and context.settings.pseudo_weight > 0


def recipe_options(context: StageContext) -> dict[str, Any]:
    """The options of this run's recipe; InputError where one cannot be used."""
    from ..recipes import get_recipe

    return get_recipe(context.settings.recipe).resolved(context.settings.recipe_options)


def trains_selectively(context: StageContext) -> bool:
    """Whether the student is trained together with the foundation in this recipe."""
    from ..recipes import get_recipe

    return "selective" in get_recipe(context.settings.recipe).stages


def makes_labels_online(context: StageContext) -> bool:
    """Whether pseudo-labels are made while the student trains."""
    return trains_selectively(context) or context.settings.pseudo_labels == "online"


def default_tuning(context: StageContext, identity: Any, existing: Mapping[str, Any] | None) -> str:
    """As this foundation was tuned before, on whatever computer; else LoRA as in the paper, every weight of a
    ``tiny``, or the decoder alone where no GPU would bear LoRA.
    """
    from ..foundation.choice import foundation_spec
    from ..foundation.spec import SPECS

    before = (existing or {}).get("settings", {})
    if before.get("foundation") == identity and "tuning" in before:
        return str(before["tuning"])
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
    return _sha256(path.resolve(), file_stamp(path))


def test_cases(context: StageContext) -> frozenset[str]:
    """The ids of the study's test cases."""
    return frozenset(case.id for case in context.study.test_cases())


def rejected_cases(context: StageContext) -> frozenset[str]:
    """The ids of the cases whose segmentation was rejected; labels drawn by hand cannot be."""
    return frozenset(case.id for case in context.study.unlabeled_cases() if case.review == "rejected")


def seen_by(made_by: Mapping[str, Any]) -> frozenset[str]:
    """The cases whose labels have shaped a model's weights, also by way of earlier models."""
    return frozenset(made_by.get("seen") or made_by.get("labeled") or made_by.get("cases") or ())


def existing_model(context: StageContext, path: Path) -> dict[str, Any] | None:
    """What made the model that the JSON describes; None, with a warning, where it is damaged."""
    if not path.is_file():
        return None
    try:
        return _made_by(path)
    except InputError as error:
        context.warn(f"{error.message} The model is made anew.", code="model")
        return None


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
