"""The parts of the report that tell what was run and how it went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from SFRCore.report.cases import CaseRow, number
from SFRCore.report.figures import curve_picture, histogram_picture
from SFRCore.report.history import History, StageRecord
from SFRCore.report.markup import count, duration, fixed, moment, picture, table
from SFRCore.study import Study

STAGES: dict[str, tuple[str, str]] = {
    "finetune": (
        "Foundation model fine-tuned",
        "A model trained on millions of everyday pictures learnt to outline the structures, from the slices of the "
        "labeled cases laid side by side.",
    ),
    "pseudolabel": (
        "Unlabeled cases pre-segmented",
        "The fine-tuned foundation model segmented the unlabeled cases (pseudo-labels) and said how sure it was.",
    ),
    "retrain": (
        "Student network trained",
        "A small 3D network, the one that is used in the end, learnt from the labels and the pseudo-labels.",
    ),
    "predict": ("Cases segmented", "The student segmented the cases: these are the results to use."),
    "evaluate": ("Results compared with references", "Segmentations were scored against labels kept aside."),
}
CHOICES = {
    "recipe": "recipe",
    "ssl": "semi-supervised method",
    "preset": "preset",
    "foundation": "foundation model",
    "student": "student",
    "device": "device",
    "seed": "random seed",
}
SCORES = (("dice", "Dice", 3), ("jaccard", "Jaccard", 3), ("asd", "Surface distance", 2), ("hd95", "95% Hausdorff", 2))


def what_was_run(study: Study, history: History) -> str:
    """Stages in plain words, in the order in which they ran."""
    if not history.runs:
        return ""
    items = []
    for stage in history.stages:
        title, words = STAGES.get(stage.stage, (stage.stage.replace("_", " ").capitalize(), ""))
        items.append(f"<li><b>{escape(title)}</b> <span class='soft'>{_progress(stage)}</span><br>{words}</li>")
    last = history.runs[-1]
    chosen = [
        f"{words} {escape(str(last.settings[key]))}" for key, words in CHOICES.items() if last.settings.get(key) is not None
    ]
    names = ", ".join(escape(structure.name) for structure in study.structures)
    ended = f"The last run {last.state}" if last.state in ("finished", "failed") else f"The last run is {last.state}"
    if last.state == "cancelled":
        ended = "The last run was cancelled"
    message = f": {escape(last.message)}" if last.state == "failed" and last.message else "."
    steps = f'<ol class="steps">{"".join(items)}</ol>' if items else ""
    asked = f"<p class='soft'>Chosen for the last run: {'; '.join(chosen)}.</p>" if chosen else ""
    when = f" It was started on {moment(last.started)}." if last.started else ""
    return (
        f'<section><h2>What was run</h2><div class="box"><p>Segmented: <b>{names}</b>. {ended}{message}{when}</p>'
        f"{steps}{asked}</div></section>"
    )


def curves(history: History) -> str:
    """The loss of each stage that trains."""
    boxes = []
    for stage in history.stages:
        steps, series = stage.curves()
        if len(steps):
            title = STAGES.get(stage.stage, (stage.stage, ""))[0]
            uri = curve_picture(steps, series, total=float(stage.total))
            boxes.append(f'<div class="box"><h3>{escape(title)}</h3>{picture(uri, f"Loss of {stage.stage}")}</div>')
    if not boxes:
        return ""
    return (
        "<section><h2>How training went</h2><p class='soft'>The loss measures how far the model is from what it should "
        "say: it should fall and then level off. The strong line is the trend.</p>"
        f'<div class="grid">{"".join(boxes)}</div></section>'
    )


def numbers_of_doubt(rows: list[CaseRow]) -> str:
    """Histograms of expected Dice and of mean confidence (Eq. 8 of SFR+) over all cases with a result."""
    kinds = {"prediction": "student", "pseudo_label": "foundation model"}
    expected: dict[str, list[float]] = {}
    confidence: dict[str, list[float]] = {}
    for row in rows:
        if row.result is not None and row.case.role != "labeled":
            name = kinds[row.result.kind]
            expected.setdefault(name, []).append(row.result.expected_dice)
            confidence.setdefault(name, []).append(row.result.mean_confidence)
    if not expected:
        return ""
    low = math.floor(min(min(values) for values in confidence.values()) * 20) / 20
    low = min(max(low, 0.0), 0.95)
    pictures = (
        ("Expected Dice of the least certain structure", histogram_picture(expected, label="expected Dice")),
        ("Mean confidence of all voxels", histogram_picture(confidence, label="mean confidence", low=low)),
    )
    boxes = "".join(f'<div class="box"><h3>{title}</h3>{picture(uri, title)}</div>' for title, uri in pictures)
    return (
        "<section><h2>How sure the model is</h2><p class='soft'>Each bar counts cases. Mean confidence is dominated by "
        f'the background, so go by the expected Dice.</p><div class="grid">{boxes}</div></section>'
    )


def scores_section(scores: Mapping[str, Any]) -> str:
    """Means over cases of each structure, then each case."""
    structures = scores.get("structures") or {}
    cases = scores.get("cases") or {}
    if not structures and not cases:
        return ""
    unit = "mm" if scores.get("millimetres") else "voxels"
    head = ["Structure"] + [f"{title} ({unit})" if key in ("asd", "hd95") else title for key, title, _ in SCORES]
    means = [[escape(name), *_score_cells(values)] for name, values in structures.items()]
    per_case = [
        [f"{escape(id)} <span class='soft'>{escape(name)}</span>", *_score_cells(values)]
        for id, case in cases.items()
        for name, values in (case.get("structures") or {}).items()
    ]
    empty = sum(number(v.get("empty")) for v in structures.values() if math.isfinite(number(v.get("empty"))))
    note = f" In {count(int(empty), 'comparison')} one of the two was empty." if empty else ""
    return (
        "<section><h2>Measured against references</h2>"
        f"<p>Scored on {count(len(cases), 'case')} whose expert label the training never saw. Dice and Jaccard: 1 is "
        f"perfect. Distances between the surfaces: 0 is perfect.{note}</p>"
        f'<div class="box">{table(head, means)}<details><summary>Each case</summary>'
        f"{table(['Case', *head[1:]], per_case)}</details></div></section>"
    )


def _score_cells(values: Mapping[str, Any]) -> list[str]:
    return [fixed(number(values.get(key)), digits) for key, _, digits in SCORES]


def _progress(stage: StageRecord) -> str:
    parts = [] if stage.state == "finished" else [stage.state]
    if stage.total:
        parts.append(f"{stage.step:,} of {stage.total:,} steps")
    if stage.cases:
        parts.append(count(stage.cases, "case"))
    if stage.seconds >= 1:
        parts.append(duration(stage.seconds))
    return " &middot; ".join(parts)
