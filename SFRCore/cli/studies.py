"""Commands on a study's cases: init, add, review, relink, pack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from SFRCore.cli import options as opt
from SFRCore.cli.app import EXAMPLE, STUDY_PANEL, app
from SFRCore.cli.display import Display, print_json, print_table, show_result
from SFRCore.errors import InputError, command_line

ROLES = ("labeled", "unlabeled", "test")
QUEUE_COLUMNS = ("id", "expected_dice", "kind", "doubtful_slice", "label_map")


@app.command(
    rich_help_panel=STUDY_PANEL,
    help="Make a study from a folder of images and a folder of labels, paired by file name."
    + EXAMPLE
    + "sfr init STUDY --images scans --labels labels --num-labeled 4 --test 10 "
    '--structures "1=Anterior,2=Posterior"'
    + "\n\nLabels of unlabeled and test cases become references: only evaluate and report read them. Without "
    "--labeled and --num-labeled every case with a label is labeled.",
)
def init(
    study: opt.StudyFolder,
    images: Annotated[Path, typer.Option(metavar="DIR", help="Folder of images.", show_default=False)],
    structures: Annotated[
        str,
        typer.Option(
            metavar="VALUE=NAME,…",
            help='What is segmented, by its value in labels; "1+2+4=Whole tumour" takes several as one.',
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of labels.",
            show_default="_seg files beside the images",
        ),
    ] = None,
    labeled: Annotated[
        str | None, typer.Option(metavar="ID,ID…|FILE", help="Cases to learn from.", show_default=False)
    ] = None,
    num_labeled: Annotated[
        int | None,
        typer.Option(metavar="N", help="Learn from the first N in sorted order.", show_default=False),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            metavar="N|ID,ID…|FILE", help="Test cases: the last N, or those listed.", show_default=False
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Numbers for a kind of data, for every run of the study.")
    ] = "auto",
    other_as_background: Annotated[
        bool, typer.Option("--other-as-background", help="Take values that no structure has as background.")
    ] = False,
    resample_labels: opt.ResampleLabels = False,
    json: opt.Json = False,
) -> None:
    """A study folder with its cases and their roles."""
    from SFRCore.cli.cohort import Cohort, warn_of_blank_labels
    from SFRCore.presets import get_preset
    from SFRCore.study import parse_structures

    get_preset(preset)
    with Display() as display:
        cohort = Cohort(images, labels, display)
        cohort.assign(labeled=labeled, num_labeled=num_labeled, test=test)
        made = cohort.make(
            study,
            parse_structures(structures),
            preset=preset,
            other_as_background=other_as_background,
            resample=resample_labels,
        )
        warn_of_blank_labels(made, made.labeled_cases(), display)
        if not made.labeled_cases():
            display.warn("No case is labeled, so there is nothing to learn from yet.")
    summary: dict[str, Any] = {"study": made.root}
    summary |= {role: [case.id for case in made.cases.values() if case.role == role] for role in ROLES}
    summary |= {"left_out": cohort.problems, "unknown": cohort.unknown}
    if json:
        print_json(summary)
        return
    counts = ", ".join(f"{len(summary[role])} {role}" for role in ROLES)
    typer.echo(f"{made.root}: {counts} cases; {_files(len(cohort.problems))} left out.")
    if summary["labeled"]:
        typer.echo(f"Next:  {command_line('sfr', 'run', study)}")
    else:
        first = next(iter(made.cases))
        give = command_line("sfr", "review", study, "--label", f"{first}=FILE")
        typer.echo(f"Next: draw the structures in a few cases and give each its label:  {give}")


@app.command(
    rich_help_panel=STUDY_PANEL,
    help="Add images to a study: files, folders of files, or DICOM series."
    + EXAMPLE
    + "sfr add STUDY new_scans --labels new_labels --role test"
    + EXAMPLE
    + "sfr add STUDY scan01.nrrd --label scan01_liver.nrrd",
)
def add(
    study: opt.StudyFolder,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH…", help="Images, or folders.", show_default=False)
    ],
    label: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Label of the one image that is added.", show_default=False),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of labels, paired by name.", show_default=False)
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            help="labeled, unlabeled, test or ignored.",
            show_default="labeled with a label, else unlabeled",
        ),
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Labels are references: only evaluate and report read them.")
    ] = False,
    id: Annotated[
        str | None, typer.Option(metavar="ID", help="Name of the one case that is added.", show_default=False)
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(metavar="N|UID", help="Which DICOM series of the folder.", show_default=False),
    ] = None,
    resample_labels: opt.ResampleLabels = False,
    json: opt.Json = False,
) -> None:
    """Further cases."""
    from SFRCore.cli.cohort import add_paths, warn_of_blank_labels
    from SFRCore.study import Study

    if len(paths) > 1 and (label or id or series):
        raise InputError("--label, --id and --series go with one image.", hint="Add the images one by one.")
    opened = Study.open(study)
    with Display() as display:
        added, problems = add_paths(
            opened, paths, display, label=label, labels=labels, role=role, as_reference=reference, id=id,
            series=series, resample=resample_labels,
        )  # fmt: skip
        warn_of_blank_labels(opened, added, display)
    if json:
        print_json({"added": {case.id: case.role for case in added}, "left_out": problems})
    else:
        typer.echo(f"Added {len(added)} cases to {opened.root}; {_files(len(problems))} left out.")


@app.command(
    rich_help_panel=STUDY_PANEL,
    help="Show what to look at first, and say what is right: accept, correct, reject, change roles."
    + EXAMPLE
    + "sfr review STUDY"
    + EXAMPLE
    + "sfr review STUDY --accept case_07,case_09 --correct case_11=fixed.nrrd --reject case_12",
)
def review(
    study: opt.StudyFolder,
    accept: Annotated[
        str | None, typer.Option(metavar="ID,ID…", help="Make the newest result a label.", show_default=False)
    ] = None,
    correct: Annotated[
        list[str] | None, typer.Option(metavar="ID=FILE", help="Make a corrected label map the label.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="ID=FILE", help="Give a case a label drawn by an expert.")
    ] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option(metavar="ID=FILE", help="Give a case a reference to be scored against."),
    ] = None,
    reject: Annotated[
        str | None, typer.Option(metavar="ID,ID…", help="Keep a result out of training.", show_default=False)
    ] = None,
    unreject: Annotated[
        str | None, typer.Option(metavar="ID,ID…", help="Take a rejection back.", show_default=False)
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=ID,ID…", help="Make cases labeled, unlabeled, test or ignored."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List every case, not the queue alone.")] = False,
    json: opt.Json = False,
) -> None:
    """The queue, and a person's decisions."""
    from SFRCore.cli.decisions import Decisions, nothing_to_review
    from SFRCore.study import Study

    opened = Study.open(study)
    files = {
        name: opt.parse_pairs(pairs, f"--{name}", "ID=FILE")
        for name, pairs in (("correct", correct), ("label", label), ("reference", reference))
    }
    roles = opt.parse_pairs(role, "--role", "ROLE=ID,ID…")
    groups = [opt.split_ids(text) for text in (accept, reject, unreject, *(ids for _, ids in roles))]
    for case in [id for group in groups for id in group] + [
        id for pairs in files.values() for id, _ in pairs
    ]:
        opened.case(case)
    drawn = [id for name in ("correct", "label") for id, _ in files[name]]
    decided = Counter(id for ids in (*map(set, groups[:3]), drawn) for id in ids)
    if decided and max(decided.values()) > 1:
        raise InputError(
            f"Case {decided.most_common(1)[0][0]} is given two decisions at once.",
            hint="Decide on it once: accept, reject, unreject, correct or label.",
        )
    with Display() as display:
        decisions = Decisions(opened, display, quiet=json)
        for name, ids in roles:
            decisions.set_role(opt.split_ids(ids), name)
        for case, path in files["reference"]:
            decisions.set_reference(case, Path(path))
        for case, path in files["label"]:
            decisions.label(case, Path(path), "expert")
        for case, path in files["correct"]:
            decisions.label(case, Path(path), "corrected")
        for case in groups[0]:
            decisions.accept(case)
        for case in groups[1]:
            decisions.reject(case)
        for case in groups[2]:
            decisions.unreject(case)
    if everything:
        _list_cases(opened, json=json)
    else:
        _list_queue(opened, nothing_to_review, json=json)


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _list_queue(study: Any, when_empty: Callable[[Any], str], *, json: bool) -> None:
    rows = [
        {
            "id": item.id,
            "expected_dice": item.expected_dice,
            "kind": item.kind,
            "doubtful_slice": item.doubtful_slice,
            "review": item.review,
            "label_map": study.result(item.id, item.kind).label_path,
        }
        for item in study.review_queue()
    ]
    if json:
        print_json(rows)
    elif not rows:
        typer.echo(when_empty(study))
    else:
        columns = ["Case", "Expected Dice", "Made by", "Doubtful slice", "Label map"]
        print_table(columns, ([_shown(row[name], study.root) for name in QUEUE_COLUMNS] for row in rows))


def _shown(value: Any, root: Path) -> Any:
    """A cell of the queue: numbers to three digits, paths within the study."""
    if isinstance(value, float):
        return f"{value:.3f}"
    return value.relative_to(root) if isinstance(value, Path) else value


def _list_cases(study: Any, *, json: bool) -> None:
    rows = [
        {
            "id": case.id,
            "role": case.role,
            "label": case.label_origin,
            "reference": case.reference is not None,
            "review": case.review,
            "problem": case.problem,
            "image": case.image,
        }
        for case in study.cases.values()
    ]
    if json:
        print_json(rows)
    else:
        print_table(
            [name.capitalize() for name in rows[0]] if rows else ["Id"], (list(row.values()) for row in rows)
        )


@app.command(
    rich_help_panel=STUDY_PANEL,
    help="Find image files that were moved, by name and content."
    + EXAMPLE
    + "sfr relink STUDY /new/place/of/scans",
)
def relink(
    study: opt.StudyFolder,
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER…", help="Where to search.", show_default=False)
    ],
    json: opt.Json = False,
) -> None:
    """Point a study to files that were moved."""
    from SFRCore.study import Study

    opened = Study.open(study)
    result = opened.relink(folders)
    show_result({"found": result.found, "missing": result.missing}, json=json)


@app.command(
    rich_help_panel=STUDY_PANEL,
    help="Copy files that lie outside the study into it, so that the folder can be moved."
    + EXAMPLE
    + "sfr pack STUDY",
)
def pack(study: opt.StudyFolder, json: opt.Json = False) -> None:
    """Make a study self-contained."""
    from SFRCore.study import Study

    show_result({"copied": Study.open(study).pack()}, json=json)
