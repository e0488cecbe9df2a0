"""The refinement of ASLseg: student, prompted SAM and adaptation network make pseudo-labels together.

Source: ASLseg (ISBI 2024): the student's predictions prompt SAM, the adaptation network refines both, and
reliable pseudo-labels expand the labeled set. By which rule is not published: here by the agreement of the
three, and how sure the network is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..foundation.prompting import PromptedSAM, load_prompted
from ..students import Student, load_student
from ..students.sliding_window import sliding_window
from ..study import Case
from ..volumes import CachedVolume
from .adaptation import BOTH, with_guesses
from .aslseg_models import adaptation_lineage, prompted_lineage
from .context import DEFECTS, StageContext
from .inference import (
    Probabilities,
    as_images,
    describe,
    network_probabilities,
    student_windows,
    summary,
)
from .lineage import Lineage, image_hash, is_current, recipe_options, seen_by
from .prompts import ask_about
from .rounds import Selection, refinement_identity, save_selection, saved_selection

STAGE = "refine"
KIND = "pseudo_label"


def refine(
    context: StageContext, number: int, student: Lineage, *, needed: Callable[[Selection], bool]
) -> tuple[Selection, dict[str, Any]]:
    """Write a refined pseudo-label of every unlabeled case, and say which are reliable.

    ``student``: that of the round before. ``needed`` tells whether the pseudo-labels of a selection that is
    known already will still be learned from; where not, they need not be there any more.
    Raises InputError where a model is missing or no case can be read.
    """
    context.begin(STAGE)
    study = context.study
    identity = refinement_identity(context, student)
    cases = [case for case in study.unlabeled_cases() if case.review != "rejected"]
    if not cases:
        raise InputError(
            "The study has no unlabeled volumes to refine pseudo-labels of.",
            hint="Add volumes without labels, or choose the recipe 'baseline'.",
        )
    known = saved_selection(context, number, identity)
    current = {case.id for case in cases if is_current(context, case, identity)}
    if (
        known is not None
        and not _unjudged(context, cases, known)
        and (set(known.cases) <= current or not needed(known))
    ):
        context.emit("skipped", message=f"The pseudo-labels of round {number} are chosen already.")
        return known, {"skipped": True, "reliable": len(known.cases)}
    waiting, mine = context.share([case for case in cases if case.id not in current])
    made_by = (student.existing, prompted_lineage(context).existing, adaptation_lineage(context).existing)
    seen = frozenset[str]().union(*(seen_by(existing or {}) for existing in made_by))
    models = _Models(context, student) if mine else None
    context.emit("started", total=len(waiting))
    done = 0
    for index, case in enumerate(mine):
        context.check_local()
        assert models is not None
        try:
            volume = context.volume(case)
            found, judged = models.refined(volume)
            numbers = describe(
                found, context.plan.preprocessing.values, volume.frame, volume.frame.native_spacing
            )
            numbers["made_by"] = {"model": identity, "stage": STAGE, "round": number}
            numbers["made_by"] |= {"seen": case.id in seen, "image": image_hash(case)}
            numbers |= judged
            label, confidence = as_images(found, context.plan.preprocessing.values, volume.frame)
            study.write_result(case.id, KIND, label, confidence, numbers)
        except DEFECTS as error:
            context.leave_out(case, error)
            continue
        done += 1
        context.emit("case", id=case.id, path=f"pseudo_labels/{case.id}.nrrd", **summary(numbers))
        context.emit("progress", step=index + 1, total=len(mine))
    done = context.total_of(done)
    results = {case.id: study.result(case.id, KIND) for case in cases if is_current(context, case, identity)}
    if not results:
        raise InputError("No unlabeled volume could be refined.", hint="The warnings say why, case by case.")
    numbers = {
        case: {name: result.extra.get(name) for name in ("agreement", "certainty", "reliable")}
        for case, result in results.items()
        if result is not None
    }
    reliable = tuple(case for case, judged in numbers.items() if judged["reliable"])
    chosen = Selection(identity, reliable, frozenset(numbers))
    if context.main:
        study.write_confidence_table(KIND)
        save_selection(context, number, chosen, numbers)
    context.device.accelerator.wait_for_everyone()
    context.emit(
        "metric",
        step=number,
        total=recipe_options(context)["rounds"],
        reliable_fraction=round(len(chosen.cases) / len(results), 4),
    )
    if not chosen.cases:
        _say_none_is_reliable(context, number, numbers)
    context.emit("finished_stage", cases=done)
    return chosen, {"skipped": False, "cases": done, "reliable": len(chosen.cases)}


def _unjudged(context: StageContext, cases: Sequence[Case], known: Selection) -> bool:
    """Whether a case that could not be read when the others were judged can be read now."""
    missing = [case for case in cases if case.id not in known.judged]
    return bool(context.readable(missing, lambda case: None, "reading unlabeled volumes"))


def _say_none_is_reliable(
    context: StageContext, number: int, numbers: Mapping[str, Mapping[str, Any]]
) -> None:
    options = recipe_options(context)
    best = max(numbers.values(), key=lambda judged: judged["agreement"] or 0.0)
    context.warn(
        f"No pseudo-label of round {number} is reliable, so its student learns from the labels alone: "
        f"agreement {best['agreement'] or 0:.2f} and certainty {best['certainty'] or 0:.2f} at best, "
        f"{options['agreement']:g} and {options['certainty']:g} are asked for.",
        code="none_reliable",
        hint="Train longer, or ask for less: --recipe-option agreement=VALUE certainty=VALUE.",
    )


class _Models:
    """The three models that make a pseudo-label, on the device."""

    def __init__(self, context: StageContext, student: Lineage) -> None:
        where = context.device.torch_device
        self.context = context
        self.options = recipe_options(context)
        self.student: Student = load_student(student.folder)[0].to(where).eval()
        self.sam: PromptedSAM = load_prompted(prompted_lineage(context).folder).to(where)
        self.network: Student = load_student(adaptation_lineage(context).folder)[0].to(where).eval()

    def refined(self, volume: CachedVolume) -> tuple[np.ndarray, dict[str, Any]]:
        """Class probabilities (C, X, Y, Z) on the file's grid, and how reliable they are."""
        context, classes = self.context, self.network.classes
        image = np.asarray(volume.image)
        first = self._predicted(
            self.student, image, network_probabilities(self.student, context.device)
        ).argmax(0)
        (second,) = ask_about(
            self.sam,
            image,
            [first],
            classes,
            self.options["prompts"],
            context.device,
            context.check_local,
        )
        plain = network_probabilities(self.network, context.device)

        def probabilities(crops: Any) -> Any:
            guesses = crops[:, 1].round().long()
            return plain(with_guesses(crops[:, :1], guesses, classes))

        both = (first * BOTH + second).astype(np.float32)
        third = self._predicted(self.network, np.stack([image, both]), probabilities)
        judged = reliability(third, first, second, self.options["agreement"], self.options["certainty"])
        native: np.ndarray = volume.frame.to_native(third)
        if native is not third:
            native /= np.maximum(native.sum(0, keepdims=True), 1e-6)
        return native, judged

    def _predicted(self, network: Student, volume: np.ndarray, probabilities: Probabilities) -> np.ndarray:
        plan, device = self.context.plan, self.context.device
        window, stride = student_windows(
            network, volume.shape[-3:], plan.patch, plan.reference_stride, fast=True
        )
        return sliding_window(
            probabilities,
            volume,
            window,
            stride=stride,
            batch=1,
            device=device.torch_device,
            trained_on=plan.patch,
            check=self.context.check_local,
        )


def reliability(
    probabilities: np.ndarray,
    student: np.ndarray,
    sam: np.ndarray,
    agreement: float,
    certainty: float,
) -> dict[str, Any]:
    """Whether a pseudo-label of ``probabilities`` (C, X, Y, Z) is reliable, and the numbers that say so.

    Its label map must have a mean Dice of at least ``agreement`` with each of the other two (X, Y, Z), and a
    mean probability of at least ``certainty`` in its foreground. Where it finds nothing, it is not reliable.
    """
    label = probabilities.argmax(0)
    foreground = label > 0
    classes = range(1, len(probabilities))
    agreed = min(_mean_dice(label, other, classes) for other in (student, sam))
    sure = float(probabilities.max(0)[foreground].mean()) if foreground.any() else 0.0
    return {
        "agreement": round(agreed, 5),
        "certainty": round(sure, 5),
        "reliable": bool(foreground.any() and agreed >= agreement and sure >= certainty),
    }


def _mean_dice(one: np.ndarray, other: np.ndarray, classes: Sequence[int]) -> float:
    """Mean Dice over the classes that either of two label maps has; 0 where there is none."""
    found = []
    for c in classes:
        first, second = one == c, other == c
        total = int(first.sum()) + int(second.sum())
        if total:
            found.append(2 * int((first & second).sum()) / total)
    return float(np.mean(found)) if found else 0.0
