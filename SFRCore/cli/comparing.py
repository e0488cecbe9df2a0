"""The command compare: several methods, several seeds, one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from SFRCore.cli import options as opt
from SFRCore.cli.app import COMPUTE_PANEL, EXAMPLE, app
from SFRCore.cli.computing import compute, start_in_background
from SFRCore.cli.display import print_json


@app.command(
    rich_help_panel=COMPUTE_PANEL,
    help="Train several methods with several seeds on the same cases, and write one table (Markdown, CSV) "
    "with mean ± deviation and the paired difference to the first. Run it again to go on or to add rows."
    + EXAMPLE
    + "sfr compare STUDY --ssl baseline/supervised,baseline/mean_teacher,sfr/mean_teacher --seeds 3",
)
def compare(
    study: opt.StudyFolder,
    ssl: Annotated[
        str,
        typer.Option(
            metavar="METHOD,…", help="The rows: methods, or RECIPE/METHOD (baseline/ua_mt, sfr/ua_mt)."
        ),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each row.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first training.")] = 1,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD", help="The row that others are compared with.", show_default="the first"
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the comparison, in comparisons/.")] = "methods",
    cases: Annotated[str, typer.Option(help="Which cases are scored: test, unlabeled or all.")] = "test",
    mode: Annotated[
        str, typer.Option(help="strict, or official for the counting of the papers' code.")
    ] = "strict",
    recipe: opt.Recipe = None,
    preset: opt.Preset = None,
    foundation: opt.Foundation = None,
    tuning: opt.Tuning = None,
    input: opt.Input = None,
    student: opt.Student = None,
    pseudo_labels: opt.PseudoLabels = None,
    iterations_finetune: opt.IterationsFinetune = None,
    iterations_retrain: opt.IterationsRetrain = None,
    patch: opt.Patch = None,
    batch: opt.Batch = None,
    pseudo_weight: opt.PseudoWeight = None,
    pseudo_schedule: opt.PseudoSchedule = None,
    method_option: opt.MethodOption = None,
    recipe_option: opt.RecipeOption = None,
    faithful: opt.Faithful = False,
    dense: opt.Dense = False,
    device: opt.Device = None,
    precision: opt.Precision = None,
    yes: opt.Yes = False,
    background: opt.Background = False,
    json: opt.Json = False,
) -> None:
    """A table of methods."""
    options = {
        "recipe": recipe, "preset": preset, "foundation": foundation, "tuning": tuning, "input": input,
        "student": student, "method_option": method_option, "recipe_option": recipe_option,
        "pseudo_labels": pseudo_labels, "iterations_finetune": iterations_finetune,
        "iterations_retrain": iterations_retrain, "patch": patch, "batch": batch,
        "pseudo_weight": pseudo_weight, "pseudo_schedule": pseudo_schedule,
        "faithful": faithful, "dense": dense, "device": device, "precision": precision,
    }  # fmt: skip
    settings = opt.settings_from(options)
    own = {"seeds": seeds, "first_seed": first_seed, "base": base, "name": name, "cases": cases, "mode": mode}
    if background:
        start_in_background("compare", study, {"ssl": ssl, **own, **options}, yes=yes, json=json)
        return
    from SFRCore import api

    done = compute(api.compare, study, opt.split_ids(ssl), yes=yes, **own, **settings)
    if json:
        print_json(done)
        return
    table = Path(done["folder"]) / "table.md"
    typer.echo(table.read_text(encoding="utf-8"))
    typer.echo(f"Written to {table} and, as CSV, beside it.")
