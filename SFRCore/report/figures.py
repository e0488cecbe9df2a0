"""The drawings of the report, as small palette PNGs in data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from SFRCore.report.slices import Array, SliceView

LONG_SIDE = 380
BAR_WIDTH = 72
DPI = 100
INK, GRID, GREY = "#33414f", "#dde3e8", "#404040"
SERIES = ("#1f6f8b", "#c8553d", "#588157", "#8a5a9e", "#b8860b", "#4a6fa5")

Color = tuple[int, int, int]


def outline_picture(view: SliceView, colors: Mapping[int, Color]) -> str:
    """The slice with each structure outlined in its colour (0..255), and the reference dashed in white."""
    figure, axes = _slice_axes(view, extra=0)
    shades = {value: tuple(channel / 255 for channel in color) for value, color in colors.items()}
    _draw_outlines(axes, view.label, shades, width=2.2)
    _draw_outlines(axes, view.reference, dict.fromkeys(colors, "white"), width=1.2, dashed=True)
    return data_uri(figure)


def doubt_picture(view: SliceView, values: Iterable[int], largest: float) -> str:
    """The slice under its doubt, with thin white outlines and a scale from 0 to ``largest`` (1 - 1/C)."""
    if view.doubt is None:
        raise ValueError("The view has no doubt to draw.")
    figure, axes = _slice_axes(view, extra=BAR_WIDTH)
    shown = axes.imshow(
        view.doubt,
        cmap=doubt_colors(),
        vmin=0.0,
        vmax=largest,
        aspect=view.spacing[0] / view.spacing[1],
        interpolation="nearest",
    )
    _draw_outlines(axes, view.label, dict.fromkeys(values, "white"), width=1.2)
    width, height = figure.get_size_inches() * DPI
    bar = figure.add_axes((1 - (BAR_WIDTH - 12) / width, 8 / height, 12 / width, 1 - 40 / height))
    bar.set_facecolor("#202020")
    scale = figure.colorbar(shown, cax=bar, ticks=[0.0, largest / 2, largest])
    scale.ax.set_yticklabels([f"{tick:.2f}".rstrip("0").rstrip(".") for tick in (0.0, largest / 2, largest)])
    scale.ax.tick_params(labelsize=10, color=GREY, labelcolor=GREY, length=2)
    scale.ax.set_title("doubt", fontsize=10, color=GREY, pad=10, loc="left")
    return data_uri(figure, colors=80)


def doubt_colors() -> ListedColormap:
    """Transparent where the model is sure, yellow to red where it doubts."""
    ramp = colormaps["autumn_r"](np.linspace(0.0, 1.0, 256))
    ramp[:, 3] = np.clip(np.linspace(-0.04, 1.0, 256) * 1.5, 0.0, 0.8)
    return ListedColormap(ramp, name="doubt")


def curve_picture(
    steps: NDArray[np.float64], series: Mapping[str, NDArray[np.float64]], *, total: float | None
) -> str:
    """Losses of one stage over its steps: each series faint, its running median strong."""
    figure = Figure(figsize=(5.2, 2.7), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for color, (name, values) in zip(SERIES * (len(series) // len(SERIES) + 1), series.items(), strict=False):
        finite = np.isfinite(values)
        if not finite.any():
            continue
        x, y = steps[finite], values[finite]
        axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(
            x, running_median(y), color=color, linewidth=1.7, label=name, marker="o" if len(x) == 1 else ""
        )
    axes.set_xlim(0, max(float(steps.max(initial=1.0)), total or 0.0))
    low, high = axes.get_ylim()
    axes.set_ylim(min(0.0, low), high + 0.05 * (high - low))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    _quiet(axes)
    return data_uri(figure, greys=16)


def fraction_picture(points: Sequence[tuple[int, float]], *, label: str, total: float) -> str:
    """A number between 0 and 1 over the (step, value) points of a stage of ``total`` steps."""
    figure = Figure(figsize=(5.2, 2.0), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    steps, values = (np.array(column, float) for column in zip(*points, strict=True))
    axes.plot(steps, values, color=SERIES[0], alpha=0.25, linewidth=0.8)
    axes.plot(
        steps, running_median(values), color=SERIES[0], linewidth=1.7, marker="o" if len(steps) == 1 else ""
    )
    axes.set_xlim(0, max(float(steps.max()), total))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    _quiet(axes)
    return data_uri(figure, greys=16)


def histogram_picture(groups: Mapping[str, Sequence[float]], *, label: str, low: float = 0.0) -> str:
    """How many cases have which value (``low`` to 1), one colour a group, stacked."""
    figure = Figure(figsize=(5.2, 2.3), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    values = [np.clip(np.asarray(group, float), low, 1.0) for group in groups.values()]
    axes.hist(
        values,
        bins=np.linspace(low, 1.0, 21).tolist(),
        stacked=True,
        color=list(SERIES[: len(values)]),
        label=list(groups),
        edgecolor="white",
        linewidth=0.6,
    )
    axes.set_xlim(low, 1.0)
    axes.set_xlabel(label)
    axes.set_ylabel("cases")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(groups) > 1:
        axes.legend(frameon=False, fontsize=8)
    _quiet(axes)
    return data_uri(figure, greys=16)


def running_median(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Median over a window of a fifteenth of the curve (at least 5 values), shorter at both ends."""
    half = max(2, len(values) // 30)
    return np.array([np.median(values[max(i - half, 0) : i + half + 1]) for i in range(len(values))])


def data_uri(figure: Figure, *, greys: int = 40, colors: int = 56) -> str:
    """The figure as ``data:image/png;base64,...`` with a palette of ``greys`` and at most ``colors``
    colours.

    Colours have a part of the palette to themselves: a thin outline would be averaged away by so many
    greys.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    coloured = pixels[np.ptp(pixels.astype(int), axis=-1) > 12]
    table = np.repeat(np.linspace(0, 255, greys).round().astype(np.uint8), 3).tobytes()
    if len(coloured):
        strip = Image.fromarray(coloured[None]).quantize(colors=colors, method=Image.Quantize.MEDIANCUT)
        table += bytes(strip.getpalette() or [])[: 3 * colors]
    palette = Image.new("P", (1, 1))
    palette.putpalette(table)
    small = Image.fromarray(pixels).quantize(palette=palette, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def slice_size(view: SliceView) -> tuple[int, int]:
    """(width, height) in pixels of the slice's picture: true proportions, 380 on the longer side."""
    height_mm, width_mm = (n * s for n, s in zip(view.image.shape, view.spacing, strict=True))
    scale = LONG_SIDE / max(height_mm, width_mm)
    return max(60, round(width_mm * scale)), max(60, round(height_mm * scale))


def _slice_axes(view: SliceView, *, extra: int) -> tuple[Figure, Axes]:
    """A figure of the slice's true proportions plus ``extra`` pixels on the right."""
    width, height = slice_size(view)
    width_mm = view.image.shape[1] * view.spacing[1]
    figure = Figure(figsize=((width + extra) / DPI, height / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, width / (width + extra), 1.0))
    axes.set_axis_off()
    axes.imshow(
        view.image,
        cmap="gray",
        vmin=view.window[0],
        vmax=view.window[1],
        aspect=view.spacing[0] / view.spacing[1],
        interpolation="bilinear",
    )
    halo = [Stroke(linewidth=2, foreground="black"), Normal()]
    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.985, "center", "top"),
        (0.5, 0.015, "center", "bottom"),
    )
    for letter, (x, y, horizontal, vertical) in zip(view.edges, places, strict=True):
        axes.text(
            x, y, letter, transform=axes.transAxes, ha=horizontal, va=vertical,
            color="white", fontsize=11, alpha=0.85, path_effects=halo,
        )  # fmt: skip
    bar = max((mm for mm in (1, 2, 5, 10, 20, 50, 100) if mm <= width_mm / 3), default=1)
    start = 0.03
    axes.plot(
        [start, start + bar / width_mm], [0.03, 0.03], transform=axes.transAxes, color="white", linewidth=2
    )
    axes.text(
        start, 0.042, f"{bar} mm", transform=axes.transAxes, ha="left", va="bottom",
        color="white", fontsize=10, path_effects=halo,
    )  # fmt: skip
    axes.set_xlim(-0.5, view.image.shape[1] - 0.5)
    axes.set_ylim(view.image.shape[0] - 0.5, -0.5)
    return figure, axes


def _draw_outlines(
    axes: Axes, label: Array | None, colors: Mapping[int, Any], *, width: float, dashed: bool = False
) -> None:
    """Outline each value of ``label`` (rows, columns); dashes get no dark rim: what is below shows."""
    for value, color in colors.items():
        mask = np.pad(label == value, 1) if label is not None else np.zeros((1, 1), bool)
        if not mask.any():
            continue
        rows, columns = np.arange(mask.shape[0]) - 1, np.arange(mask.shape[1]) - 1
        style = "dashed" if dashed else "solid"
        outline = axes.contour(
            columns,
            rows,
            mask.astype(float),
            levels=[0.5],
            colors=[color],
            linewidths=width,
            linestyles=style,
        )
        if not dashed:
            outline.set(path_effects=[Stroke(linewidth=width + 1, foreground="#00000080"), Normal()])


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set(color=INK, fontsize=9)
