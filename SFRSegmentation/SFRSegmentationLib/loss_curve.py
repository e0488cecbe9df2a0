"""The loss of each stage as a small picture in the panel: no chart nodes in the user's scene."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import qt
from slicer.i18n import tr as _

COLORS = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167))
"""Colours that the colour-blind tell apart, on light and on dark."""
HEIGHT, MARGIN, LEGEND = 120, 6, 16


def draw_curves(
    label: Any, curves: Mapping[str, Sequence[tuple[float, float]]], names: Mapping[str, str]
) -> None:
    """Paint (step, loss) of each stage, stretched over the width, on one logarithmic scale."""
    shown = {stage: points for stage, points in curves.items() if len(points) > 1}
    label.visible = bool(shown)
    if not shown:
        return
    width = max(120, label.width)
    picture = qt.QPixmap(width, HEIGHT)
    picture.fill(qt.QColor(0, 0, 0, 0))
    painter = qt.QPainter(picture)
    try:
        painter.setRenderHint(qt.QPainter.Antialiasing)
        values = [math.log10(max(loss, 1e-6)) for points in shown.values() for _step, loss in points]
        low, high = min(values), max(values)
        span = max(high - low, 1e-6)
        text = label.palette.color(qt.QPalette.WindowText)
        for number, (stage, points) in enumerate(shown.items()):
            color = qt.QColor(*COLORS[number % len(COLORS)])
            painter.setPen(qt.QPen(qt.QBrush(color), 1.6))
            first, last = points[0][0], points[-1][0]
            before: tuple[int, int] | None = None
            for step, loss in points:
                x = MARGIN + (width - 2 * MARGIN) * (step - first) / max(last - first, 1)
                part = (math.log10(max(loss, 1e-6)) - low) / span
                place = round(x), round(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN - LEGEND) * part)
                if before is not None:
                    painter.drawLine(*before, *place)
                before = place
            painter.drawText(
                MARGIN + number * (width - 2 * MARGIN) // len(shown), LEGEND - 4, names.get(stage, stage)
            )
        painter.setPen(qt.QPen(qt.QBrush(text), 1.0))
        painter.drawText(MARGIN, HEIGHT - 2, f"{10**low:.3g}")
    finally:
        painter.end()
    label.setPixmap(picture)
    told = [
        _("{stage}: loss {loss:.3f} at step {step:.0f}").format(
            stage=names.get(stage, stage), loss=points[-1][1], step=points[-1][0]
        )
        for stage, points in shown.items()
    ]
    label.toolTip = "\n".join([_("The loss of the training, on a logarithmic scale"), *told])
    label.accessibleDescription = "; ".join(told)
