"""The comparisons of a study, as the report shows them."""

from __future__ import annotations

from html import escape

from matplotlib.figure import Figure

from SFRCore.comparison.plan import Row
from SFRCore.comparison.table import Comparison
from SFRCore.report.figures import GREY, GRID, INK, SERIES, data_uri
from SFRCore.report.history import without_paths
from SFRCore.report.markup import picture, table


def comparison_section(comparisons: list[Comparison]) -> str:
    """A table and a drawing of each comparison; empty where there is none."""
    parts = [_one(comparison) for comparison in comparisons if comparison.lines]
    return f"<h2>Methods compared</h2>{''.join(parts)}" if parts else ""


def _one(comparison: Comparison) -> str:
    heads = [escape(head) for head in comparison.heads()]
    rows = [[escape(cell) for cell in comparison.cells(line)] for line in comparison.lines]
    notes = "".join(f'<p class="soft">{escape(without_paths(note))}</p>' for note in comparison.notes())
    drawn = picture(seeds_picture(comparison), "Dice of every method: a dot a seed, a bar at their mean")
    return (
        f'<div class="box"><h3>{escape(comparison.name)}</h3><p class="soft">Scored: '
        f"{escape(comparison.scored)}. Mean ± standard deviation over seeds; differences are paired by case, "
        "with a 95 % bootstrap interval and Wilcoxon's signed-rank test.</p>"
        f"{table(heads, rows)}{notes}{drawn}</div>"
    )


def seeds_picture(comparison: Comparison) -> str:
    """Dice in % of each row: a dot for each seed, a bar at their mean."""
    lines = [line for line in comparison.lines if line["dice"] is not None]
    figure = Figure(figsize=(7.2, 0.9 + 0.34 * max(1, len(lines))), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for place, line in enumerate(lines):
        color = SERIES[0] if Row(line["recipe"], line["ssl"]).title == comparison.base else SERIES[1]
        values = [100 * value for value in line["dice_by_seed"] if value is not None]
        axes.plot(values, [place] * len(values), "o", color=color, alpha=0.55, markersize=6)
        axes.plot([100 * line["dice"]] * 2, [place - 0.28, place + 0.28], color=color, linewidth=3)
    axes.set_yticks(range(len(lines)), [line["row"] for line in lines], color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("Dice (%)", color=GREY, fontsize=9)
    axes.tick_params(colors=GREY, labelsize=9, length=0)
    axes.grid(axis="x", color=GRID)
    for side in axes.spines.values():
        side.set_visible(False)
    return data_uri(figure)
