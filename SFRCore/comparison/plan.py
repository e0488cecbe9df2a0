"""What is compared: the rows of the table, and the snapshot of the study that all of them learn from."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from SFRCore.errors import InputError
from SFRCore.presets import get_preset
from SFRCore.runtime.files import read_json, write_json
from SFRCore.runtime.identity import file_identity
from SFRCore.settings import Settings
from SFRCore.study import Study
from SFRCore.study.images import renew_identities

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
COMMAND = "compare"
DESCRIPTION = "comparison.json"
STUDY, RESULTS = "study", "results"
ROW_SETTINGS = ("recipe", "ssl", "seed", "device", "precision", "yes")
"""Settings that may differ between the rows of one table, or do not change what is learned."""


@dataclass(frozen=True)
class Row:
    """One row of the table: a semi-supervised method within a recipe."""

    recipe: str
    ssl: str

    @property
    def key(self) -> str:
        """What the row's student is called in ``models`` and its results are in files."""
        return f"{self.recipe}-{self.ssl}"

    @property
    def title(self) -> str:
        """The row's name for people; the recipe is said where it adds to the method."""
        return self.ssl if self.recipe == "baseline" else f"{self.recipe}: {self.ssl}"


def parse_rows(names: Sequence[str], recipe: str) -> list[Row]:
    """Rows from "METHOD" or "RECIPE/METHOD"; ``recipe`` is that of the names without one.

    Raises InputError for unknown or repeated rows, or none.
    """
    from SFRCore.recipes import get_recipe
    from SFRCore.ssl import get_method

    rows: list[Row] = []
    for name in names:
        before, slash, method = name.rpartition("/")
        row = Row(before if slash else recipe, method)
        get_recipe(row.recipe)
        get_method(row.ssl)
        if row in rows:
            raise InputError(f"'{name}' is in the comparison twice.", hint="Name every row once.")
        rows.append(row)
    if not rows:
        raise InputError("There is nothing to compare.", hint="Name methods: --ssl supervised,mean_teacher")
    return rows


def settings_of(row: Row, settings: Settings, seed: int) -> Settings:
    """The settings of one training: of the shared ones, those that the row's recipe and method know."""
    from SFRCore.recipes import get_recipe
    from SFRCore.refusals import UNUSED_WITHOUT, takes

    recipe, standard = get_recipe(row.recipe), Settings()
    unused = {name: getattr(standard, name) for name in UNUSED_WITHOUT if not takes(row.recipe, name)}
    if "finetune" not in recipe.stages:
        unused["input"] = standard.input
    return settings.with_(
        recipe=row.recipe,
        ssl=row.ssl,
        seed=seed,
        yes=True,
        method_options=_known(settings.method_options, _method_options(row)),
        recipe_options=_known(settings.recipe_options, recipe.options),
        **unused,
    )


def refuse_unknown_options(rows: Sequence[Row], settings: Settings) -> None:
    """Raise InputError for a method's or recipe's option that no row has."""
    from SFRCore.recipes import get_recipe

    for what, given, of in (
        ("method", settings.method_options, _method_options),
        ("recipe", settings.recipe_options, lambda row: get_recipe(row.recipe).options),
    ):
        known = sorted({name for row in rows for name in of(row)})
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(
                f"No {what} of the comparison has an option '{unknown[0]}'.",
                hint=f"They have: {', '.join(known)}." if known else "They have none.",
            )


def _method_options(row: Row) -> Mapping[str, Any]:
    from SFRCore.ssl import get_method

    return get_method(row.ssl).known_options()


def _known(given: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in options}


def comparison_folder(study: Study, name: str) -> Path:
    """STUDY/comparisons/NAME; raises InputError for a name that is no plain word."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"'{name}' cannot be the name of a comparison.",
            hint="Use letters, digits, dots, dashes and underscores.",
        )
    return study.root / "comparisons" / name


def refuse_scoring(cases: str, mode: str) -> None:
    """Raise InputError for cases or a mode that the trained rows could not be scored with."""
    from SFRCore.stages.evaluate import refuse_cases
    from SFRCore.stages.metrics import refuse_mode

    refuse_cases(cases)
    refuse_mode(mode)


def snapshot(study: Study, folder: Path, settings: Settings, cases: str) -> Study:
    """The study in which the rows are trained: the same cases, with the labels as they are now.

    It is made at the first call. Raises InputError where an earlier part of this comparison was made from
    other labels, references, images, structures or cases, or with other settings.
    """
    renew_identities(study)
    now = _made_from(study, settings, cases)
    if (folder / DESCRIPTION).is_file():
        before = read_json(folder / DESCRIPTION)
        if "settings" in before:  # an older SFR had fewer of them
            before["settings"] = _shared(Settings(), study) | before["settings"]
        changed = [key for key, value in now.items() if before.get(key, value) != value]
        if "settings" in changed:
            asked, begun = now["settings"], before["settings"]
            names = [name for name in asked | begun if asked.get(name) != begun.get(name)]
            changed[changed.index("settings")] = f"settings ({', '.join(names).replace('_', ' ')})"
        if changed:
            raise InputError(
                f"The comparison '{folder.name}' was begun with other {' and '.join(changed)}.",
                hint="Give this one a name of its own (--name), or go back to what it was begun with.",
            )
        return Study.open(folder / STUDY)
    shutil.rmtree(folder, ignore_errors=True)  # a copy that was cut off
    copy = Study.create(
        folder / STUDY,
        structures=study.structures,
        preset=study.preset,
        other_as_background=study.other_as_background,
    )
    for case in study.cases.values():
        if case.role == "ignored" or case.problem:
            continue
        label = study.label_path(case.id) if case.role == "labeled" else None
        copy.add(
            study.image_path(case.id),
            id=case.id,
            role=case.role,
            label=label,
            reference=study.reference_path(case.id) if case.role != "labeled" else None,
        )
    write_json(folder / DESCRIPTION, now)
    return copy


def _made_from(study: Study, settings: Settings, cases: str) -> dict[str, Any]:
    """What all rows share, in plain values as JSON gives them back."""
    used = [case for case in study.cases.values() if case.role != "ignored"]
    labels, references = {}, {}
    for case in used:
        labels[case.id] = _hash(study.label_path(case.id) if case.role == "labeled" else None)
        references[case.id] = _hash(study.reference_path(case.id) if case.role != "labeled" else None)
    return {
        "labels": labels,
        "references": references,
        "images": {case.id: (case.image_identity or {}).get("sha256", "") for case in used},
        "structures": [[structure.value, structure.name] for structure in study.structures],
        "preset": study.preset,
        "roles": {case.id: case.role for case in used},
        "settings": _shared(settings, study),
        "scored cases": cases,
    }


def _shared(settings: Settings, study: Study) -> dict[str, Any]:
    """The settings of all rows, in plain values as JSON gives them back."""
    shared = {name: value for name, value in settings.to_dict().items() if name not in ROW_SETTINGS}
    shared["patch"] = list(settings.patch) if settings.patch else None
    shared["student"] = settings.student or get_preset(settings.preset or study.preset).student
    return shared


def _hash(path: Path | None) -> str:
    return "" if path is None else str(file_identity(path)["sha256"])
