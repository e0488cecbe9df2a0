"""The rounds of ASLseg: which pseudo-labels were reliable, and the students that learned from them.

Round 0 is the student of the labels alone; each round after it has reliable pseudo-labels among its labels.
Each round's student lies in ``models/aslseg-METHOD/round-N``, with what was reliable in ``reliable.json``; a
copy of the last one's is the recipe's student. Nothing is written to ``labels/``.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..planning import digest
from ..runtime.files import atomic_path, read_json, write_json
from ..students import load_student
from ..students.store import WEIGHTS as STUDENT_WEIGHTS
from ..volumes import CachedVolume
from .aslseg_models import adaptation_lineage, prompted_lineage
from .context import StageContext
from .lineage import (
    STUDENT_INFO,
    Lineage,
    existing_model,
    image_hash,
    is_current,
    recipe_options,
    seen_by,
    shortened,
    student_folder,
    student_lineage,
    unlabeled_for_training,
)
from .retrainer import Retrainer, train_student
from .survey import keep_plan
from .training_set import training_volumes

STAGE = "retrain"
RELIABLE = "reliable.json"


@dataclass(frozen=True)
class Selection:
    """The cases whose pseudo-labels of one refinement, that of ``identity``, are reliable, among the
    ``judged`` ones: a case that could not be read is not among them.
    """

    identity: str
    cases: tuple[str, ...]
    judged: frozenset[str] = frozenset()


NOTHING = Selection("", ())


def round_folder(context: StageContext, number: int) -> Path:
    """Where what belongs to one round is kept."""
    return student_folder(context) / f"round-{number}"


def round_student(context: StageContext, number: int, selection: Selection) -> Lineage:
    """The lineage of the student of one round: how many follow does not matter to it, and to that of the
    labels alone no option does.
    """
    folder = round_folder(context, number)
    options = {name: value for name, value in recipe_options(context).items() if name != "rounds"}
    base = student_lineage(context, options if number else {})
    made_from = dict(base.made_from)
    if selection.cases:
        made_from["reliable"] = [[case, selection.identity] for case in selection.cases]
    inherited: frozenset[str] = frozenset()
    recipe = [base.recipe, "round", number]
    if number:
        adaptation = adaptation_lineage(context)
        inherited = seen_by(adaptation.existing or {})
        recipe.append(adaptation.recipe)
    return replace(
        base,
        folder=folder,
        recipe=digest(recipe),
        made_from=made_from,
        existing=existing_model(context, folder / STUDENT_INFO),
        inherited=inherited,
    )


def refinement_identity(context: StageContext, student: Lineage) -> str:
    """Fingerprint of what refined pseudo-labels are made by, and of the rule by which they are reliable."""
    options = recipe_options(context)
    return digest(
        [
            student.model_identity(),
            prompted_lineage(context).model_identity(),
            adaptation_lineage(context).model_identity(),
            {name: options[name] for name in ("prompts", "agreement", "certainty")},
            [
                [case.id, case.review == "rejected", image_hash(case)]
                for case in context.study.unlabeled_cases()
            ],
        ]
    )


def saved_selection(context: StageContext, number: int, identity: str) -> Selection | None:
    """What was reliable in one round; None where that is not known, or was made by other models."""
    path = round_folder(context, number) / RELIABLE
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        cases, judged = tuple(map(str, content["cases"])), frozenset(content["numbers"])
        found = Selection(str(content["identity"]), cases, judged)
    except (InputError, KeyError, TypeError):
        return None
    return found if found.identity == identity else None


def save_selection(
    context: StageContext, number: int, selection: Selection, numbers: Mapping[str, Any]
) -> None:
    """Keep what was reliable in one round, with the ``numbers`` of each case."""
    content = {"identity": selection.identity, "cases": list(selection.cases), "numbers": dict(numbers)}
    write_json(round_folder(context, number) / RELIABLE, content)


def train_round(context: StageContext, number: int, selection: Selection) -> dict[str, Any]:
    """Train the student of one round by the semi-supervised method, unless that is done.

    A reliable case is learned from as a labeled one, in this round only; it is among the unlabeled ones as
    well where no other is left.
    Raises InputError where no labeled case can be used.
    """
    context.begin(STAGE)
    lineage, labeled, unlabeled = _as_read(context, number, selection)
    if not lineage.is_done():
        added = reliable_volumes(context, selection)
        labeled = {**added, **labeled}
        left = {case: volume for case, volume in unlabeled.items() if case not in added}
        lineage = _made_of(lineage, labeled, unlabeled)
        unlabeled = left or unlabeled
    keep_plan(context.study, context.settings)
    if lineage.is_done():
        context.emit("skipped", message=f"The student of round {number} is already trained.")
        return {"skipped": True}
    total, weights = context.plan.iterations_retrain, None
    if lineage.parent is not None:
        weights = load_student(lineage.folder)[0].state_dict()
        total = shortened(total)
    trainer = Retrainer(context, labeled, unlabeled, total=total, guided=False, parent_weights=weights)
    return train_student(context, lineage, trainer)


def is_trained(context: StageContext, number: int, selection: Selection) -> bool:
    """Whether the student of one round has learned from all of its cases that can be read now; the reliable
    pseudo-labels need not be there any more.

    Raises InputError where no labeled case can be used.
    """
    return _as_read(context, number, selection)[0].is_done()


def publish(context: StageContext, student: Lineage) -> None:
    """Make a round's student that of the recipe, unless it is."""
    target = student_folder(context)
    present = existing_model(context, target / STUDENT_INFO)
    if context.main and (present is None or present["model"] != student.model_identity()):
        for name in (STUDENT_WEIGHTS, STUDENT_INFO):
            with atomic_path(target / name) as temporary:
                shutil.copyfile(student.folder / name, temporary)
    context.device.accelerator.wait_for_everyone()


def reliable_volumes(context: StageContext, selection: Selection) -> dict[str, CachedVolume]:
    """The reliable cases with their pseudo-labels as labels, by id."""
    study = context.study
    cases = [
        case
        for case in unlabeled_for_training(context)
        if case.id in selection.cases and is_current(context, case, selection.identity)
    ]
    return context.readable(
        cases, lambda case: study.result_paths(case.id, "pseudo_label")[0], "reading pseudo-labels"
    )


def _as_read(
    context: StageContext, number: int, selection: Selection
) -> tuple[Lineage, dict[str, CachedVolume], dict[str, CachedVolume]]:
    """The lineage of the student of one round, with only those cases that can be read, and its labeled and
    unlabeled volumes; none are read where it is done with all cases.
    """
    lineage = round_student(context, number, selection)
    if lineage.is_done():
        return lineage, {}, {}
    labeled, unlabeled = training_volumes(context)
    others = [
        case
        for case in unlabeled_for_training(context)
        if case.id in selection.cases and case.id not in unlabeled
    ]
    reliable = context.readable(others, lambda case: None, "reading unlabeled volumes")
    return _made_of(lineage, {**labeled, **unlabeled, **reliable}, unlabeled), labeled, unlabeled


def _made_of(lineage: Lineage, labeled: Collection[str], unlabeled: Collection[str]) -> Lineage:
    """The same with only those cases that can really be used."""
    used = lineage.made_of(labeled, unlabeled)
    made_from = dict(used.made_from)
    if "reliable" in made_from:
        made_from["reliable"] = [pair for pair in made_from["reliable"] if pair[0] in labeled]
    return replace(used, made_from=made_from)
