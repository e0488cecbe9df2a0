"""The parts of the report that tell what was run and how it went."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from SFRCore.comparison.plan import COMMAND
from SFRCore.report.cases import SOURCES, CaseRow, number
from SFRCore.report.figures import curve_picture, fraction_picture, histogram_picture
from SFRCore.report.history import History, RunRecord, StageRecord, readable
from SFRCore.report.markup import count, duration, fixed, moment, picture, table
from SFRCore.study import Study

STAGES: dict[str, tuple[str, str]] = {
    "finetune": (
        "Foundation model fine-tuned",
        "A model that had learnt to outline things in pictures of all kinds (SAM) was shown the labeled "
        "cases, their slices laid side by side.",
    ),
    "pseudolabel": (
        "Unlabeled cases pre-segmented",
        "The fine-tuned foundation model segmented the unlabeled cases (pseudo-labels) and marked "
        "where it is unsure.",
    ),
    "retrain": (
        "Student network trained",
        "A small 3D network, the one that is used in the end, learnt from the labels and the pseudo-labels.",
    ),
    "selective": (
        "Foundation model and student trained together",
        "Pieces that the student is sure of taught the foundation model further; on the others the student "
        "learnt from the foundation model.",
    ),
    "prompt": (
        "Foundation model tuned with prompts",
        "A model that had learnt to outline what is pointed at (SAM) was shown slices of the labeled cases, "
        "with boxes and points about their structures.",
    ),
    "adapt": (
        "Adaptation network trained",
        "A small 3D network learnt to mend flawed segmentations, on labels that were spoilt on purpose.",
    ),
    "refine": (
        "Unlabeled cases refined",
        "The student's segmentations prompted the foundation model, the adaptation network made one of both, "
        "and those that agree joined the labels of the next round.",
    ),
    "predict": ("Cases segmented", "The student segmented the cases: these are the results to use."),
    "evaluate": ("Results compared with references", "Segmentations were scored against labels kept aside."),
}
METRICS = {
    "confident_fraction": "Crops that the student was confident of",
    "reliable_fraction": "Refined cases that were reliable, round by round",
}
ENDED = {
    "cancelled": "was cancelled",
    "running": "has not ended yet",
    "queued": "has not begun yet",
    "died": "stopped without a word: it was killed, or memory ran out",
}
STAND_IN = (
    "A small stand-in for a foundation model, begun from random numbers and meant for trying things out, was "
    "shown the labeled cases, their slices laid side by side."
)
CHOICES = {
    "recipe": "recipe",
    "ssl": "semi-supervised method",
    "preset": "preset",
    "foundation": "foundation model",
    "student": "student",
    "device": "device",
    "seed": "random seed",
}
SCORES = (
    ("dice", "Dice", 3),
    ("jaccard", "Jaccard", 3),
    ("asd", "Surface distance", 2),
    ("hd95", "95% Hausdorff", 2),
)


def what_was_run(study: Study, history: History) -> str:
    """Stages in plain words, in the order in which they ran."""
    if not history.runs:
        return ""
    items = []
    own = [run for run in history.runs if run.command != COMMAND]
    for stage in history.stages:
        title, words = STAGES.get(stage.stage, (stage.stage.replace("_", " ").capitalize(), ""))
        if stage.stage == "finetune" and own and own[-1].settings.get("foundation") in ("tiny", "tiny16"):
            words = STAND_IN
        progress = f'<span class="soft">{_progress(stage)}</span>'
        items.append(f"<li><b>{escape(title)}</b> {progress}<br>{words}</li>")
    last = history.runs[-1]
    settings = ((words, chosen_or_planned(last, key)) for key, words in CHOICES.items())
    chosen = [f"{words} {escape(readable(value))}" for words, value in settings if value is not None]
    if last.plan.get("device"):
        chosen.append(f"computed on {escape(readable(last.plan['device']))}")
    names = ", ".join(escape(structure.name) for structure in study.structures)
    ended = f"The last run {ENDED.get(last.state, last.state)}"
    message = f": {escape(last.message)}" if last.state == "failed" and last.message else "."
    steps = f'<ol class="steps">{"".join(items)}</ol>' if items else ""
    asked = f"<p class='soft'>Chosen for the last run: {'; '.join(chosen)}.</p>" if chosen else ""
    when = f" The last run began on {moment(last.started)}." if last.started else ""
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in last.reasons)
    if reasons:
        asked += f"<details><summary>What was chosen, and why</summary><ul>{reasons}</ul></details>"
    return (
        f'<section><h2>What was run</h2><div class="box"><p>Structures: <b>{names}</b>.{when} '
        f"{ended}{message}</p>{steps}{asked}</div></section>"
    )


def chosen_or_planned(run: RunRecord, key: str) -> Any:
    """A setting of a run; where it was left open, what the program chose."""
    value = run.settings.get(key)
    return run.plan.get(key) if value is None else value


def curves(history: History) -> str:
    """The loss of each stage that trains."""
    boxes = []
    for stage in history.stages:
        steps, series = stage.curves()
        if len(steps):
            title = STAGES.get(stage.stage, (stage.stage, ""))[0]
            named = {name.replace("_", " "): values for name, values in series.items()}
            uri = curve_picture(steps, named, total=float(stage.total))
            image = picture(uri, f"Loss of {stage.stage}")
            boxes.append(f'<div class="box"><h3>{escape(title)}</h3>{image}</div>')
        for name, points in stage.metrics.items():
            words = METRICS.get(name, name.replace("_", " "))
            image = picture(fraction_picture(points, label="fraction", total=float(stage.total)), words)
            boxes.append(f'<div class="box"><h3>{escape(words)}</h3>{image}</div>')
    if not boxes:
        return ""
    return (
        '<section><h2>How training went</h2><p class="soft">The loss says how far the model is from what it '
        "should say: it should fall and then level off. The strong line is the trend.</p>"
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
    boxes = "".join(f'<div class="box"><h3>{t}</h3>{picture(uri, t)}</div>' for t, uri in pictures)
    return (
        '<section><h2>How sure the model is</h2><p class="soft">Each bar counts cases. Mean confidence is '
        "dominated by the background, so go by the expected Dice.</p>"
        f'<div class="grid">{boxes}</div></section>'
    )


def scores_section(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Of each kind of result: means over cases of each structure, then each case."""
    boxes = [_score_box(SOURCES[kind], table) for kind, table in tables.items()]
    if not any(boxes):
        return ""
    return (
        "<section><h2>Measured against references</h2><p>Scored on cases with a reference label, which "
        "training never reads. Dice and Jaccard: 1 is perfect. Distances between the surfaces: 0 is "
        "perfect.</p>"
        f"{''.join(boxes)}</section>"
    )


def _score_box(title: str, scores: Mapping[str, Any]) -> str:
    structures = scores.get("structures") or {}
    cases = scores.get("cases") or {}
    if not structures and not cases:
        return ""
    unit = "mm" if scores.get("unit") == "mm" else "voxels"
    distances = ("asd", "hd95")
    head = ["Structure"] + [f"{title} ({unit})" if key in distances else title for key, title, _ in SCORES]
    means = [[escape(name), *_score_cells(values)] for name, values in structures.items()]
    per_case = [
        [f'{escape(id)} <span class="soft">{escape(name)}</span>', *_score_cells(values)]
        for id, case in cases.items()
        for name, values in (case.get("structures") or {}).items()
    ]
    counts = [number(values.get("undefined_distances")) for values in structures.values()]
    undefined = int(sum(n for n in counts if math.isfinite(n)))
    note = ""
    if undefined:
        note = (
            f'<p class="soft">{count(undefined, "distance is", "distances are")} left out of the means, '
            "because one of the two outlines was empty.</p>"
        )
    heading = f"{title[0].upper()}{title[1:]}, {count(len(cases), 'case')}"
    return (
        f'<div class="box"><h3>{escape(heading)}</h3>{table(head, means)}'
        f"{note}<details><summary>Each case</summary>{table(['Case', *head[1:]], per_case)}</details></div>"
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
    return " &middot; ".join(part.replace(" ", "&nbsp;") for part in parts)
