"""Commands that look at what came out: evaluate, report, export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from SFRCore.cli import options as opt
from SFRCore.cli.app import EXAMPLE, RESULTS_PANEL, app
from SFRCore.cli.display import Display, print_json, print_table, show_result
from SFRCore.errors import SFRError

MEASURES = ("dice", "jaccard", "asd", "hd95")
NEWEST = "that of the newest prediction"
EvaluatedRecipe = Annotated[
    str | None, typer.Option(help="Score the student of this recipe.", show_default=NEWEST)
]
EvaluatedSsl = Annotated[
    str | None, typer.Option(help="Score the student of this method.", show_default=NEWEST)
]


@app.command(
    rich_help_panel=RESULTS_PANEL,
    help="Compare predictions or pseudo-labels with the reference labels."
    + EXAMPLE
    + "sfr evaluate STUDY --json",
)
def evaluate(
    study: opt.StudyFolder,
    kind: Annotated[str, typer.Option(help="What is scored: prediction or pseudo_label.")] = "prediction",
    cases: Annotated[
        str | None,
        typer.Option(
            help="Which cases: test, unlabeled or all.",
            show_default="test; for pseudo-labels, unlabeled",
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="strict leaves undefined scores out; official counts them as the papers' code does."
        ),
    ] = "strict",
    millimetres: Annotated[
        bool, typer.Option("--millimetres", help="Distances in millimetres instead of voxels.")
    ] = False,
    recipe: EvaluatedRecipe = None,
    ssl: EvaluatedSsl = None,
    json: opt.Json = False,
) -> None:
    """Scores by structure and case."""
    from SFRCore import api

    which = cases or ("unlabeled" if kind == "pseudo_label" else "test")
    with Display() as display:
        scores = api.evaluate(
            study,
            kind=kind,
            cases=which,
            mode=mode,
            millimetres=millimetres,
            recipe=recipe,
            ssl=ssl,
            on_problem=lambda case, error: display.warn(_left_out(case, error), hint=error.hint),
        )
    if json:
        print_json(scores)
    else:
        print_scores(scores, "mm" if millimetres else "voxels")


def _left_out(case: str, error: SFRError) -> str:
    return error.message if error.code == "seen" else f"Case {case} is not scored: {error.message}"


def print_scores(scores: Mapping[str, Any], unit: str) -> None:
    """The scores as a table: a row a structure, the smallest cases after it."""
    heads = ["", "Dice", "Jaccard", f"ASD ({unit})", f"HD95 ({unit})"]
    structures: Mapping[str, Any] = scores.get("structures", {})
    print_table(heads, [[name, *_measures(row)] for name, row in structures.items()])
    rows = []
    for case, entry in scores.get("cases", {}).items():
        for name, row in entry.get("structures", {}).items():
            rows.append([f"{case}: {name}", *_measures(row)])
    if rows:
        typer.echo("")
        print_table(["Case", *heads[1:]], rows)
    mean = scores.get("mean_dice")
    text = f"{mean:.4f}" if isinstance(mean, (int, float)) else "undefined"
    count = len(scores.get("cases", {}))
    by = f", predicted by {scores['student']}" if scores.get("student") else ""
    typer.echo(f"\nMean Dice: {text} over {count} case{'' if count == 1 else 's'}{by}")


def _measures(row: Any) -> list[Any]:
    return [row.get(name) for name in MEASURES] if isinstance(row, Mapping) else [row, None, None, None]


@app.command(
    rich_help_panel=RESULTS_PANEL,
    help="Write one self-contained HTML page: settings, curves, pictures of the doubtful cases, scores."
    + EXAMPLE
    + "sfr report STUDY --open",
)
def report(
    study: opt.StudyFolder,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to.", show_default="reports/ of the study"),
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    json: opt.Json = False,
) -> None:
    """The report of a study."""
    from SFRCore import api

    page = api.report(study, output)
    if json:
        print_json({"report": page})
    else:
        typer.echo(str(page))
    if show:
        typer.launch(Path(page).resolve().as_uri())


@app.command(
    rich_help_panel=RESULTS_PANEL,
    help="Export the trained student for other programs (PyTorch export, ONNX), checked against the original."
    + EXAMPLE
    + "sfr export STUDY --output liver-model --format onnx",
)
def export(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY|MODEL", help="A study, or the folder of a student.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where to.", show_default="exports/ of the study"),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="FORMAT,…", help="torch, onnx, or both with a comma.")
    ] = "torch,onnx",
    json: opt.Json = False,
) -> None:
    """The student in formats that other programs read."""
    from SFRCore import api

    typer.echo("Exporting, and comparing each file with the original: a minute or so.", err=True)
    result = api.export(source, output, tuple(opt.split_ids(formats)))
    show_result(result if json else {name: result[name] for name in ("folder", "files")}, json=json)
