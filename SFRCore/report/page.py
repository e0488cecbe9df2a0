"""The report of a study: one HTML page that works offline and holds everything it shows."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from SFRCore import __version__
from SFRCore.comparison.table import read_comparisons
from SFRCore.errors import InputError
from SFRCore.report.cases import DOUBTFUL, CaseRow, case_rows, left_out, number, read_scores
from SFRCore.report.comparisons import comparison_section
from SFRCore.report.gallery import Gallery, gallery
from SFRCore.report.history import History, read_history, read_models, readable_rows
from SFRCore.report.markup import count, document, fixed, moment, table
from SFRCore.report.sections import curves, numbers_of_doubt, scores_section, what_was_run
from SFRCore.runtime.files import read_json, sweep_temporary, write_text
from SFRCore.study import Study

MOST_PICTURES = 60
FIRST = 6


def write_report(
    study: Study, path: Path | None = None, *, run: str | None = None, pictures: int = MOST_PICTURES
) -> Path:
    """Write the report of a study and return its path (STUDY/reports/report.html if ``path`` is None).

    ``run`` shows what one run did instead of all runs; ``pictures`` is the most cases drawn, the most
    doubtful ones. Cases are named by their ids only: no path, host or patient name is written. Raises
    InputError for an unknown run or where the page cannot be written.
    """
    target = Path(path) if path is not None else study.reports_dir / "report.html"
    if path is None and study.readonly:
        raise InputError(
            "This study is read-only, so the report cannot be written into it.",
            hint="Name another place for the report.",
        )
    private = [text for case in study.cases.values() for text in (case.image, Path(case.image).name)]
    history = read_history(study.root, run, known_paths=[p for p in private if p not in study.cases])
    scores = read_scores(study)
    rows = case_rows(study, scores)
    stack_axis, window = _how_slices_lie(study.models_dir)
    drawn = gallery(study, rows, most=pictures, stack_axis=stack_axis, window=window)
    name = study.root.name
    page = document(
        f"{name}: segmentation report",
        [
            _head(name, rows, scores),
            _look_first(rows, drawn),
            what_was_run(study, history),
            scores_section(scores),
            comparison_section(read_comparisons(study)),
            drawn.html,
            _rest(rows, drawn),
            _left_out(study, history),
            numbers_of_doubt(rows),
            curves(history),
            _settings(study, history),
            f"<footer><p>Written by SFR {__version__} on {moment(time.time())}. SFR is research software: "
            "a person must check every segmentation before it is used. Cases are shown by their ids "
            "only.</p></footer>",
        ],
    )
    sweep_temporary(target.parent)
    write_text(target, page)
    return target


def _head(name: str, rows: list[CaseRow], scores: Mapping[str, Mapping[str, Any]]) -> str:
    labeled = sum(row.case.role == "labeled" for row in rows)
    wanted = [row for row in rows if row.case.role in ("unlabeled", "test")]
    done = [row for row in wanted if row.result is not None]
    waiting = sum(row.is_open for row in rows)
    if not rows:
        lead = "This study has no cases yet. Add images first, then label a few of them."
    elif not done:
        lead = (
            f"Nothing has been segmented yet: {count(labeled, 'case is', 'cases are')} labeled, "
            f"{count(len(wanted), 'case waits', 'cases wait')} to be segmented."
        )
    else:
        doubtful = sum(row.is_open and row.is_doubtful for row in rows)
        lead = f"{len(done)} of {count(len(wanted), 'case is', 'cases are')} segmented. "
        if doubtful:
            lead += f"{count(doubtful, 'case needs', 'cases need')} a close look before the results are used."
        elif waiting:
            lead += "No case stands out as doubtful; they still wait to be looked at."
        else:
            lead += "Every one that has to be looked at has been looked at."
        missed = sum(row.expected_dice == 0 for row in done)
        if 2 * missed > len(done):
            lead += (
                f" In {missed} of them a structure was not found: train for longer, or label more cases, "
                "before correcting these."
            )
    tiles = [(str(labeled), "labeled by hand or accepted"), (f"{len(done)} of {len(wanted)}", "segmented")]
    tiles.append((str(waiting), "waiting for review"))
    expected = [row.expected_dice for row in done if math.isfinite(row.expected_dice)]
    if expected:
        tiles.append((f"{median(expected):.2f}", "median expected Dice"))
    for scored in list(scores.values())[:1]:
        measured, cases = number(scored.get("mean_dice")), count(len(scored.get("cases") or {}), "case")
        if math.isfinite(measured):
            tiles.append((f"{measured:.2f}", f"measured Dice ({cases} with a reference)"))
    shown = "".join(
        f'<div class="tile"><b>{n}</b><span class="soft">{label}</span></div>' for n, label in tiles
    )
    return (
        f'<header><p class="soft">Segmentation report</p><h1>{escape(name)}</h1>'
        f'<p class="lead">{lead}</p><div class="tiles">{shown}</div></header>'
    )


def _look_first(rows: list[CaseRow], drawn: Gallery) -> str:
    open_rows = [row for row in rows if row.is_open]
    if not open_rows:
        return ""
    doubtful = [row for row in open_rows if row.is_doubtful]
    chosen = doubtful[:FIRST] or open_rows[:3]
    items = []
    for row in chosen:
        anchor = drawn.anchors.get(row.case.id)
        name = escape(row.case.id)
        link = f'<a href="#{anchor}"><b>{name}</b></a>' if anchor else f"<b>{name}</b>"
        where = drawn.places.get(row.case.id, "")
        items.append(f"<li>{link}: {escape(row.finding())}{f'; look at {where}' if where else ''}.</li>")
    further = len(doubtful) - FIRST
    more = f"<p>{count(further, 'more case')} with an expected Dice below {DOUBTFUL} further down.</p>"
    more = more if further > 0 else ""
    return (
        '<section><h2>Look at these first</h2><div class="box first">'
        f"<ol>{''.join(items)}</ol>{more}"
        '<p class="soft">Expected Dice is how well the model expects its own outline to agree with an '
        "expert's: 1 is perfect agreement, 0 means that the structure was not found. It is the model's own "
        "estimate, not a measurement.</p></div></section>"
    )


def _rest(rows: list[CaseRow], drawn: Gallery) -> str:
    others = [row for row in rows if row.case.id not in drawn.anchors]
    if not others:
        return ""
    cells = [
        (
            escape(row.case.id),
            row.case.role,
            _state(row),
            fixed(row.expected_dice),
            fixed(row.result.mean_confidence, 3) if row.result else fixed(math.nan),
        )
        for row in others
    ]
    head = ("Case", "Role", "State", "Expected Dice", "Mean confidence")
    return (
        f"<section><h2>Cases without a picture here</h2><details{' open' if len(others) <= 15 else ''}>"
        f"<summary>{count(len(others), 'more case')}</summary>"
        f'<div class="box">{table(head, cells, numbers_from=3)}</div></details></section>'
    )


def _state(row: CaseRow) -> str:
    if row.result is not None and row.case.role == "unlabeled":
        return row.case.review
    return "no result yet" if row.result is None and row.case.role in ("unlabeled", "test") else ""


def _left_out(study: Study, history: History) -> str:
    out = left_out(study)
    parts = []
    if out:
        parts.append(table(("Case", "Why"), [(escape(id), escape(why)) for id, why in out], numbers_from=2))
    known = tuple(f"Case {id} is left out" for id, _ in out)
    said = "".join(f"<li>{escape(text)}</li>" for text in history.warnings if not text.startswith(known))
    if said:
        parts.append(f"<p>Warnings of the runs:</p><ul>{said}</ul>")
    if not parts:
        return ""
    title = "Cases left out" if out else "Warnings"
    return f'<section><h2>{title}</h2><div class="box warn">{"".join(parts)}</div></section>'


def _settings(study: Study, history: History) -> str:
    blocks = [
        (f"Run {run.name}: {run.command}", dict(readable_rows({**run.settings, "chosen": run.plan})))
        for run in reversed(history.runs)
        if run.settings or run.plan
    ]
    blocks += [(f"Model file {name}", rows) for name, rows in read_models(study.models_dir).items()]
    if not blocks:
        return ""
    inner = "".join(
        f"<details><summary>{escape(title)}</summary>"
        + table(("Setting", "Value"), [(escape(k), escape(v)) for k, v in rows.items()], numbers_from=2)
        + "</details>"
        for title, rows in blocks
    )
    return (
        '<section><h2>All settings</h2><div class="box"><p class="soft">For the record, and for whoever '
        f"repeats this.</p>{inner}</div></section>"
    )


def _how_slices_lie(models_dir: Path) -> tuple[int | None, tuple[float, float] | None]:
    """The stacking axis and the CT window that the newest model was trained with, where there is one."""
    found = models_dir.rglob("*.json") if models_dir.is_dir() else []
    for path in sorted(found, key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            content = read_json(path)
        except InputError:
            continue
        preprocessing = content.get("preprocessing") if isinstance(content, dict) else None
        if not isinstance(preprocessing, dict):
            continue
        axis, scale = preprocessing.get("stack_axis"), preprocessing.get("normalisation")
        window = None
        if isinstance(scale, dict) and scale.get("kind") == "ct_window":
            window = (float(scale["low"]), float(scale["high"]))
        return (axis if axis in (0, 1, 2) else None), window
    return None, None
