"""Evaluation: predictions against the references that training never sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from ..errors import InputError, SFRError, command_line
from ..runtime.files import write_json
from ..runtime.identity import renewed_identity
from ..settings import Settings
from ..ssl import get_method
from ..study import Case, CaseResult, Study
from ..volumes import Frame, read_label
from .metrics import Mode, case_scores

CASES = {"test": "test", "unlabeled": "unlabeled", "all": "test or unlabeled"}
MEASURES = ("dice", "jaccard", "asd", "hd95")


def evaluate(
    study: Study,
    *,
    kind: str = "prediction",
    cases: str = "test",
    mode: Mode = "strict",
    millimetres: bool = False,
    recipe: str | None = None,
    ssl: str | None = None,
    on_problem: Callable[[str, SFRError], None] | None = None,
) -> dict[str, Any]:
    """Score results against references and write ``reports/scores.json`` (per kind).

    ``kind``: "prediction" or "pseudo_label". ``cases``: "test", "unlabeled" or "all". ``mode``: "strict"
    (NaN distances where a structure is missing, left out of the means) or "official" (zeros, as the
    papers' scripts). Distances are in voxels, or in millimetres. Dice and Jaccard lie in 0..1.

    One model is scored: the newest student of ``recipe`` and ``ssl`` (a missing one is a run's default), or
    without both the one that made the newest result.

    Returns ``mean_dice`` (over structures of the means over cases), ``structures`` (means by name), ``cases``
    and ``student`` (None for pseudo-labels). A case that cannot be scored, has no result of this model, has
    one of another image than its file is now, or whose label the model has learned from, is told to
    ``on_problem`` and left out. Raises InputError where none can be scored.
    """
    chosen = _chosen(study, cases)
    student = _asked(kind, recipe, ssl)
    with_reference = [case for case in chosen if case.reference]
    if not with_reference:
        raise InputError(
            f"No {CASES[cases]} case has a reference to score against.",
            hint="Give one its reference:  "
            + command_line("sfr", "review", study.root, "--reference", "CASE=FILE"),
        )
    model = _newest_model(study, kind, student)
    student = model.get("student", student)
    noun = kind.replace("_", "-") + (f" by the student {student}" if student else "")
    names = {structure.value: structure.name for structure in study.structures}
    scored: dict[str, Any] = {}
    problems = 0
    for case in with_reference:
        result = study.result(case.id, kind)
        if result is None or result.made_by.get("model") != model.get("model"):
            other = "" if result is None else ", only one by another model"
            if on_problem is not None:
                on_problem(case.id, InputError(f"It has no {noun} yet{other}.", code="no_result"))
            continue
        try:
            _refuse_learned(study, case, result)
            _refuse_replaced(study, case, result)
            scores = _score(study, case, result, mode, millimetres)
        except SFRError as error:
            problems += 1
            if on_problem is not None:
                on_problem(case.id, error)
            continue
        structures = {names[value]: score for value, score in scores.items()}
        scored[case.id] = {"kind": kind, "structures": structures}
    if not scored:
        lacking = f"a {noun} {'that can be scored' if problems else 'yet'}"
        raise InputError(
            f"None of the {len(with_reference)} {CASES[cases]} cases with a reference has {lacking}."
            if len(with_reference) > 1
            else f"The {CASES[cases]} case {with_reference[0].id} does not have {lacking}.",
            hint="The warnings say why."
            if problems
            else f"Make them:  {command_line('sfr', 'run', study.root, *_words(recipe, ssl))}",
        )
    summary = {
        name: _means([case["structures"][name] for case in scored.values()]) for name in names.values()
    }
    dice = [means["dice"] for means in summary.values() if means["dice"] is not None]
    table = {
        "mean_dice": float(np.mean(dice)) if dice else None,
        "kind": kind,
        "student": student,
        "mode": mode,
        "unit": "mm" if millimetres else "voxel",
        "structures": summary,
        "cases": scored,
    }
    if not study.readonly:
        write_json(
            study.reports_dir / ("scores.json" if kind == "prediction" else "scores_pseudo_labels.json"),
            table,
        )
    return table


def _chosen(study: Study, cases: str) -> list[Case]:
    chosen: dict[str, Callable[[], list[Case]]] = {
        "test": study.test_cases,
        "unlabeled": study.unlabeled_cases,
        "all": lambda: study.test_cases() + study.unlabeled_cases(),
    }
    refuse_cases(cases)
    return chosen[cases]()


def refuse_cases(cases: str) -> None:
    """Raise InputError unless ``cases`` names some to evaluate."""
    if cases not in CASES:
        raise InputError(
            f"'{cases}' does not name cases to evaluate.", hint=f"Choose one of: {', '.join(CASES)}."
        )


def _asked(kind: str, recipe: str | None, ssl: str | None) -> str | None:
    """The folder of the student that recipe and method name; None where neither is given."""
    if recipe is None and ssl is None:
        return None
    if kind != "prediction":
        raise InputError(
            "Pseudo-labels are not by a student, so there is none to choose.",
            hint="Leave --recipe and --ssl out.",
        )
    settings = Settings.of(recipe=recipe, ssl=ssl)
    return f"{settings.recipe}-{get_method(settings.ssl).name}"


def _newest_model(study: Study, kind: str, student: str | None) -> dict[str, Any]:
    """What made the newest result of that student, or of any; nothing where there is none."""
    cases = study.unlabeled_cases() + study.test_cases()
    found = [result for case in cases if (result := study.result(case.id, kind)) is not None]
    if student is not None:
        found = [result for result in found if result.made_by.get("student") == student]
    return max(found, key=lambda result: result.time).made_by if found else {}


def _words(recipe: str | None, ssl: str | None) -> list[str]:
    given = {"--recipe": recipe, "--ssl": ssl}
    return [word for flag, value in given.items() if value is not None for word in (flag, value)]


def _refuse_learned(study: Study, case: Case, result: CaseResult) -> None:
    """Raise InputError where the result is by a model that has learned from the label of the case."""
    if result.made_by.get("seen"):
        role = command_line("sfr", "review", study.root, "--role", f"test={case.id}")
        raise InputError(
            f"Case {case.id} is not scored: the model behind its {result.kind.replace('_', '-')} has learned "
            "from its label.",
            hint="Run the study again: it trains anew without the label."
            if case.role == "test"
            else f"Only labels of test cases are forgotten: make it a test case first ({role}), then run the "
            "study again.",
            code="seen",
        )


def _refuse_replaced(study: Study, case: Case, result: CaseResult) -> None:
    """Raise InputError where the result was made of another image than the case's file is now; of one that
    cannot be read, what is on record counts.
    """
    before, recorded = result.made_by.get("image"), case.image_identity
    if before is None or not recorded:
        return
    with suppress(InputError):
        recorded = renewed_identity(study.image_path(case.id), recorded)
    if recorded.get("sha256") not in (None, before):
        raise InputError(
            f"Its {result.kind.replace('_', '-')} was made of another image than the one that is there now.",
            hint="Run the study again: it is made anew.",
            code="replaced",
        )


def _score(
    study: Study, case: Case, result: CaseResult, mode: Mode, millimetres: bool
) -> dict[int, dict[str, float | None]]:
    reference_path = study.reference_path(case.id)
    assert reference_path is not None
    values = [structure.value for structure in study.structures]
    prediction = read_label(result.label_path, values)
    reference = read_label(reference_path, values, like=prediction)
    frame = Frame.of(reference, stack_axis=2)
    table = np.zeros(max(values) + 1, dtype=np.int64)
    for index, value in enumerate(values, start=1):
        table[value] = index
    spacing = frame.native_spacing if millimetres else None
    scores = case_scores(
        table[frame.to_internal(prediction, label=True)],
        table[frame.to_internal(reference, label=True)],
        len(values) + 1,
        spacing=spacing,
        mode=mode,
    )
    return {values[index - 1]: _plain(score) for index, score in scores.items()}


def _plain(score: Any) -> dict[str, float | None]:
    """JSON knows no NaN: an undefined distance is null."""
    return {name: None if math.isnan(float(score[name])) else float(score[name]) for name in MEASURES}


def _means(scores: Sequence[dict[str, float | None]]) -> dict[str, Any]:
    means: dict[str, Any] = {}
    for name in MEASURES:
        known = [score[name] for score in scores if score[name] is not None]
        means[name] = float(np.mean(known)) if known else None  # type: ignore[arg-type]
        means[f"{name}_std"] = float(np.std(known)) if known else None  # type: ignore[arg-type]
    means["cases"] = len(scores)
    means["undefined_distances"] = sum(score["hd95"] is None for score in scores)
    return means
