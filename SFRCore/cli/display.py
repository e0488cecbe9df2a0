"""What a command prints: progress with remaining time, warnings once, tables, JSON. Messages go to stderr."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from SFRCore.runtime.files import json_text

if TYPE_CHECKING:
    from rich.progress import TaskID

console = Console(stderr=True, highlight=False)
WIDEST = 10_000
"""Characters of a line of a table that no terminal shows."""
LINE_EVERY = 30.0
"""Seconds between two lines of a stage where there is no terminal to draw bars on."""


class Display:
    """Shows a job's events while it runs; the object itself is the ``on_event`` of SFRCore.api.

    On a terminal every stage has a bar with its loss and remaining time; elsewhere a line every half minute.
    A warning is printed once, however often it comes.
    """

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._said: set[str] = set()
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._line_due: dict[tuple[str, str], float] = {}
        self._began: dict[str, float] = {}
        self._last: dict[str, str] = {}
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind, stage = event.get("event"), str(event.get("stage") or "")
        self._began.setdefault(stage, time.monotonic())
        if kind == "progress":
            self._progress(stage, event)
        elif kind == "warning":
            self.warn(str(event.get("message", "")), hint=str(event.get("hint") or ""))
        elif kind == "estimate":
            self.say(describe_estimate(event))
        elif kind == "plan":
            self.say(describe_plan(event))
        elif kind == "skipped":
            self.say(f"{stage}: {event.get('message') or 'done already'}")
        elif kind == "finished_stage":
            self._finish(stage, event)

    def say(self, message: str, style: str = "") -> None:
        """One message above the bars."""
        console.print(message, style=style or None, markup=False, soft_wrap=True)

    def warn(self, message: str, *, hint: str = "") -> None:
        """One warning, once, and after it what to do, once as well however many warnings have it."""
        if message not in self._said:
            self._said.add(message)
            self.say(f"Warning: {message}", "yellow")
            if hint and hint not in self._said:
                self._said.add(hint)
                self.say(f"  {hint}")

    def _progress(self, stage: str, event: Mapping[str, Any]) -> None:
        step, total = int(event.get("step") or 0), int(event.get("total") or 0)
        doing = str(event.get("doing") or "")
        parts = [doing] if doing else []
        if isinstance(event.get("loss"), (int, float)):
            parts.append(f"loss {event['loss']:.3f}")
        if isinstance(event.get("eta_s"), (int, float)):
            parts.append(f"{duration(event['eta_s'])} left")
        note = ", ".join(parts)
        if (stage, doing) not in self._tasks:
            self._tasks[stage, doing] = self._bars.add_task(
                stage or "working", total=total or None, note=note
            )
        self._bars.update(self._tasks[stage, doing], completed=step, total=total or None, note=note)
        if "loss" in event:
            self._last[stage] = f", loss {event['loss']:.3f}"
        now = time.monotonic()
        if not console.is_terminal and now >= self._line_due.get((stage, doing), 0.0):
            self._line_due[stage, doing] = now + LINE_EVERY
            what = f"{doing}," if doing else "step" if "loss" in event else "case"
            self.say(", ".join([f"{stage}: {what} {step} of {total}", *parts[bool(doing) :]]))

    def _finish(self, stage: str, event: Mapping[str, Any]) -> None:
        if not console.is_terminal:
            took = duration(time.monotonic() - self._began.pop(stage, time.monotonic()))
            cases = f", {event['cases']} cases" if "cases" in event else ""
            self.say(f"{stage}: done after {took}{cases}{self._last.pop(stage, '')}")
        for (name, doing), task in self._tasks.items():
            if name == stage:
                total = next(item.total for item in self._bars.tasks if item.id == task)
                self._bars.update(task, completed=total or 0, note=f"{doing} done".strip())


def can_ask() -> bool:
    """Whether a person sits at a terminal and can answer a question."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "14 min", "2 h 5 min", "3 days"."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{round(hours / 24)} days"


def size(count: float) -> str:
    """Bytes in words, in powers of ten: "375 MB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def describe_estimate(event: Mapping[str, Any]) -> str:
    """The estimate of a run in a sentence: ``seconds``, ``memory_bytes``, ``per_stage`` as far as known."""
    text = f"This will take about {duration(float(event.get('seconds') or 0))}"
    stages = event.get("per_stage")
    if isinstance(stages, Mapping) and len(stages) > 1:
        named = [
            f"{name} {duration(float(value))}"
            for name, value in stages.items()
            if isinstance(value, (int, float))
        ]
        text += f" ({', '.join(named)})" if named else ""
    if event.get("memory_bytes"):
        text += f" and {size(float(event['memory_bytes']))} of memory"
    return text + "."


def describe_plan(event: Mapping[str, Any]) -> str:
    """What a run is going to do it with: device, preset, student, patch, and why they were chosen so."""
    patch = " x ".join(str(number) for number in event.get("patch") or ())
    facts = {name: event.get(name) for name in ("device", "preset", "student")} | {"patch": patch}
    text = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return "\n".join([text[:1].upper() + text[1:], *(f"  {reason}" for reason in event.get("reasons") or ())])


def plain(value: Any) -> Any:
    """The value as JSON has it: numbers that are not finite become null, paths text, NumPy's plain."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item() if getattr(value, "size", 1) == 1 else plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json_text(plain(value), indent=2))


def show_result(result: Any, *, json: bool) -> None:
    """A command's result on stdout: one JSON document, or lines for a person."""
    if json:
        print_json(result)
    elif isinstance(result, dict):
        print_lines(result)


def print_lines(value: Mapping[str, Any], *, indent: int = 0) -> None:
    """A result for a person, on stdout: one "name: value" a line, nested ones indented."""
    for key, item in value.items():
        name = " " * indent + str(key)
        if isinstance(item, Mapping) and item:
            typer.echo(f"{name}:")
            print_lines(item, indent=indent + 2)
        elif isinstance(item, (list, tuple)) and any(isinstance(part, Mapping) for part in item):
            typer.echo(f"{name}:")
            print_lines({f"{number}": part for number, part in enumerate(item, start=1)}, indent=indent + 2)
        elif isinstance(item, (list, tuple, Mapping)):
            typer.echo(f"{name}: {', '.join(_text(part) for part in item) or 'none'}")
        elif name.endswith("bytes") and isinstance(item, (int, float)):
            named = name.removesuffix("bytes").rstrip("_")
            typer.echo(f"{named if named.strip() else named + 'size'}: {size(item)}")
        else:
            typer.echo(f"{name}: {_text(item)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(Text(_text(item)) for item in row))
    shown = Console(highlight=False, soft_wrap=False)
    if not shown.is_terminal:  # for a pipe or a file nothing is cut or folded
        shown = Console(highlight=False, width=WIDEST)
        for part in table.columns:
            part.no_wrap = True
    shown.print(table)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
