"""A picture of each case, the most doubtful first."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

from SFRCore.report.cases import DOUBTFUL, SOURCES, CasePictures, CaseRow, draw_case
from SFRCore.report.figures import BAR_WIDTH, LONG_SIDE
from SFRCore.report.markup import fixed, picture, rated, swatch, table
from SFRCore.study import Study

REVIEWS = {
    "unseen": "not looked at yet",
    "accepted": "accepted",
    "corrected": "corrected",
    "rejected": "rejected",
}
CONFIDENT = 0.9


@dataclass
class Gallery:
    """The pictures' HTML; ``anchors`` leads from a case id to its card, ``places`` says which slice is
    shown.
    """

    html: str = ""
    anchors: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)


def gallery(
    study: Study,
    rows: list[CaseRow],
    *,
    most: int,
    stack_axis: int | None = None,
    window: tuple[float, float] | None = None,
) -> Gallery:
    """Draw up to ``most`` cases: those that wait for review, then other results, then labeled cases."""
    segmented = [row for row in rows if row.result is not None and row.case.role != "labeled"]
    segmented.sort(key=lambda row: not row.is_open)
    labeled = [row for row in rows if row.case.role == "labeled" and row.case.label is not None]
    made = Gallery()
    sections = (
        ("Segmented cases, the most doubtful first", _how_to_read(study), "cards", segmented[:most]),
        ("Labeled cases", "", "cards small", labeled[: max(0, most - len(segmented))]),
    )
    for title, words, kind, chosen in sections:
        if not chosen:
            continue
        cards, dashed = [], False
        for row in chosen:
            drawn = draw_case(study, row, stack_axis=stack_axis, window=window)
            dashed = dashed or drawn.has_reference
            anchor = f"case-{len(made.anchors) + 1}"
            made.anchors[row.case.id] = anchor
            if drawn.outline:
                made.places[row.case.id] = f"{drawn.plane} slice {drawn.number} of {drawn.count}"
            cards.append(_card(row, drawn, anchor))
        body = f'{_legend(study, dashed)}<div class="{kind}">{"".join(cards)}</div>'
        made.html += f"<section><h2>{title}</h2>{words}{body}</section>"
    return made


def _how_to_read(study: Study) -> str:
    classes = len(study.structures) + 1
    return (
        '<p class="soft">Of each case the slice with the most doubt is shown: first the outlines in '
        "colour, then where the model doubts them, from yellow to red. "
        f"With {classes} classes doubt cannot exceed {1 - 1 / classes:.2f}, where the scale ends.</p>"
    )


def _legend(study: Study, dashed: bool) -> str:
    parts = [f"<span>{swatch(s.color)}{escape(s.name)}</span>" for s in study.structures]
    if dashed:
        parts.append('<span><span class="dash"></span>reference</span>')
    return f'<div class="legend">{"".join(parts)}</div>'


def _card(row: CaseRow, drawn: CasePictures, anchor: str) -> str:
    case = row.case
    chips = [case.role]
    if row.result is None or case.role == "labeled":
        chips.append(f"label: {case.label_origin}" if case.label_origin else "no label")
    else:
        chips.append(SOURCES[row.result.kind])
        if case.role == "unlabeled":
            chips.append(REVIEWS[case.review])
    labels = "".join(f'<span class="chip">{escape(chip)}</span>' for chip in chips)
    score = ""
    if case.role != "labeled" and math.isfinite(row.expected_dice):
        score = f"<span>expected Dice {rated(row.expected_dice, low=DOUBTFUL, high=CONFIDENT)}</span>"
    return (
        f'<article class="card" id="{anchor}"><div class="head"><h3>{escape(case.id)}</h3>{score}</div>'
        f"{labels}{_pictures(case.id, drawn)}{_numbers(row)}</article>"
    )


def _pictures(id: str, drawn: CasePictures) -> str:
    if not drawn.outline:
        return f'<p class="soft">No picture: {escape(drawn.problem)}</p>'
    shown = f"{id}: {drawn.plane} slice {drawn.number}"
    images = picture(drawn.outline, f"{shown} with outlines", share=drawn.width)
    caption = f"{drawn.plane.capitalize()} slice {drawn.number} of {drawn.count}"
    if drawn.doubt:
        images += picture(drawn.doubt, f"{shown} with doubt", share=drawn.width + BAR_WIDTH)
        caption += ", the most doubtful one"
    limit = (drawn.width * 2 + BAR_WIDTH + 8) if drawn.doubt else drawn.width
    return (
        f'<figure><div class="pictures" style="max-width:{max(limit, LONG_SIDE)}px">{images}</div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _numbers(row: CaseRow) -> str:
    if row.result is None or row.case.role == "labeled":
        return ""
    measured = any(math.isfinite(s.dice) for s in row.structures)
    head = ["Structure", "Expected Dice", "Volume (ml)"] + (["Measured Dice"] if measured else [])
    lines: Iterable[list[str]] = (
        [
            f"{swatch(s.color)}{escape(s.name)}",
            '<span class="low">not found</span>'
            if s.expected_dice == 0
            else rated(s.expected_dice, low=DOUBTFUL, high=CONFIDENT),
            fixed(s.volume_ml, 1 if not s.volume_ml < 10 else 2),
            *([fixed(s.dice)] if measured else []),
        ]
        for s in row.structures
    )
    return table(head, lines)
