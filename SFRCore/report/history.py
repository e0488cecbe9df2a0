"""What was run in a study, read from its runs and models: stages, curves, settings and warnings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from SFRCore.comparison.plan import COMMAND
from SFRCore.errors import InputError
from SFRCore.report.markup import moment
from SFRCore.runtime.events import read_events
from SFRCore.runtime.files import read_json
from SFRCore.runtime.runs import RunFolder, run_folders

PRIVATE_KEYS = {"pid", "host", "hostname", "user", "python", "argv", "env", "cwd", "path", "log", "boot"}
NOT_A_LOSS = {"time", "step", "total", "eta_s", "rate", "step_in_phase", "phase_total"}
MOST_POINTS = 800
ABSOLUTE_PATH = re.compile(
    r"(?:[A-Za-z]:[\\/]|\\\\|(?<![\w.])~?/(?=\S))"  # C:\ or C:/, \\server, / or ~/
    r"(?:[^\n]*[\\/])?(?:[^\n\\/]*\.(?:nrrd|nii|gz|mha|mhd|dcm|ima|json|png|txt)\b|[^\s'\"\\/]*)"
)

Event = Mapping[str, Any]


@dataclass
class StageRecord:
    """The newest pass of one stage; ``seconds`` is time spent, ``steps`` and ``points`` its loss curves.

    ``metrics`` are numbers told besides: (step, value) by name.
    """

    stage: str
    started: float
    ended: float
    seconds: float = 0.0
    state: str = "running"
    step: int = 0
    total: int = 0
    cases: int = 0
    steps: list[int] = field(default_factory=list)
    points: list[dict[str, float]] = field(default_factory=list)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def curves(self) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """(N,) steps and each series (N,), NaN where it was not told, thinned to 800 points."""
        chosen = np.unique(np.linspace(0, max(len(self.steps) - 1, 0), MOST_POINTS).round().astype(int))
        chosen = chosen[: len(self.steps)]
        names = sorted(
            {name for point in self.points for name in point}, key=lambda name: (name != "loss", name)
        )
        series = {n: np.array([self.points[i].get(n, math.nan) for i in chosen], float) for n in names}
        return np.array([self.steps[i] for i in chosen], float), series


@dataclass(frozen=True)
class RunRecord:
    """One run: what was asked (``command``, ``settings``), when (epoch seconds), how it stands or ended.

    ``plan`` is what the program chose by itself (patch, canvas, device), ``reasons`` says why in words.
    """

    name: str
    command: str
    settings: dict[str, Any]
    started: float
    state: str
    message: str
    plan: dict[str, Any]
    reasons: list[str]


@dataclass(frozen=True)
class History:
    """Runs oldest first, stages in the order in which they last began, warnings without repeats."""

    runs: list[RunRecord]
    stages: list[StageRecord]
    warnings: list[str]


def read_history(study_root: Path, run: str | None = None, *, known_paths: Iterable[str] = ()) -> History:
    """Read every run of a study, or only ``run``; ``known_paths`` are taken out of all messages.

    Raises InputError if there is no run of that name.
    """
    known = list(known_paths)
    folders = run_folders(study_root)
    if run is not None:
        folders = [folder for folder in folders if folder.run == run]
        if not folders:
            raise InputError(f"This study has no run '{run}'.", hint="`sfr jobs` lists the runs of a study.")
    records = []
    for folder in folders:
        events = read_events(folder.events_file)
        records.append((_run_record(folder, events, known), events))
    records.sort(key=lambda record: record[0].started)
    stages: dict[str, StageRecord] = {}
    warnings: dict[str, None] = {}
    for record, events in records:
        if record.command != COMMAND:  # its stages are of the comparison's models, not of the study's
            _follow(stages, events, record.state)
        for event in events:
            if event.get("event") == "warning" and event.get("message"):
                said = f"{event['message']} {event.get('hint') or ''}".strip()
                warnings[without_paths(said, known)] = None
    worked = (stage for stage in stages.values() if stage.points or stage.cases)
    ordered = sorted(worked, key=lambda stage: stage.started)
    return History([record for record, _ in records], ordered, list(warnings))


def read_models(models_dir: Path) -> dict[str, dict[str, str]]:
    """The JSON beside each model, flattened to readable rows; one that cannot be read is left out."""
    models: dict[str, dict[str, str]] = {}
    for path in sorted(models_dir.rglob("*.json")) if models_dir.is_dir() else []:
        try:
            content = read_json(path)
        except InputError:
            continue
        if isinstance(content, Mapping):
            models[path.relative_to(models_dir).as_posix()] = dict(readable_rows(content))
    return models


def readable_rows(content: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """(key, value) texts of nested settings, without anything that names a machine, a person or a folder."""
    for key, value in content.items():
        name = f"{prefix}{key}".replace("_", " ")
        if str(key).lower() in PRIVATE_KEYS or value is None:
            continue
        if isinstance(value, Mapping):
            yield from readable_rows(value, f"{prefix}{key} / ")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            names = [str(item.get("name", "")) for item in value if isinstance(item, Mapping)]
            yield name, ", ".join(n for n in names if n) or f"{len(value)} entries"
        elif isinstance(value, list | tuple):
            yield name, ", ".join(readable(item) for item in value)
        elif key == "time" and _is_number(value):
            yield name, moment(value)
        else:
            yield name, readable(value)


def without_paths(text: str, known: Iterable[str] = ()) -> str:
    """``text`` without any of the ``known`` paths nor anything else that looks like an absolute path.

    Folders and files may be named after a patient. A path may hold spaces, so rather too much is taken out.
    """
    for path in sorted(known, key=len, reverse=True):
        text = text.replace(path, "the file") if path else text
    return ABSOLUTE_PATH.sub("the file", text)


def readable(value: Any) -> str:
    """A setting as a short text; of a path only its last part."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return PurePath(text).name if re.match(r"^(?:/|~|[A-Za-z]:[\\/]|\\\\)", text) else text


def _run_record(folder: RunFolder, events: list[dict[str, Any]], known: list[str]) -> RunRecord:
    info = folder.info()
    config = info.get("config")
    settings = config.get("settings", config) if isinstance(config, dict) else {}
    began = info.get("start")
    end = folder.end(info) or {}
    planned: Event = next((e for e in reversed(events) if e.get("event") == "plan"), {})
    about = ("time", "run", "stage", "event", "reasons")
    reasons = planned.get("reasons")
    return RunRecord(
        name=folder.run,
        command=str(info.get("command") or ""),
        settings=settings if isinstance(settings, dict) else {},
        started=float(began) if isinstance(began, int | float) else 0.0,
        state=folder.state(),
        message=without_paths(str(end.get("message") or ""), known),
        plan={key: value for key, value in planned.items() if key not in about},
        reasons=[without_paths(str(r), known) for r in reasons] if isinstance(reasons, list) else [],
    )


def _follow(stages: dict[str, StageRecord], events: list[dict[str, Any]], run_state: str) -> None:
    """Add the events of one run: a stage that was cut off goes on, one that was finished starts anew."""
    previous: float | None = None
    touched: list[StageRecord] = []
    again: list[StageRecord] = []
    for event in events:
        name, now = event.get("stage"), event.get("time")
        if not isinstance(now, int | float) or not name:
            continue
        record = stages.setdefault(str(name), StageRecord(str(name), now, now))
        if record not in touched:
            touched.append(record)
            if record.state == "finished":
                again.append(record)
            record.state = "running"
            previous = None
        if event.get("event") == "started" and record in again:
            again.remove(record)
            record.started, record.seconds, record.cases = now, 0.0, 0
            previous = None
        if previous is not None:
            record.seconds += max(0.0, now - previous)
        previous, record.ended = now, now
        if event.get("event") == "case":
            record.cases += 1
        elif event.get("event") == "metric" and _is_number(event.get("step")):
            _add_metrics(record, event)
        elif event.get("event") == "progress" and _is_number(event.get("loss")):
            _add_point(record, event, now)
    for record in touched:
        whole = record.total > 0 and record.step >= record.total
        record.state = "finished" if record is not touched[-1] or whole else run_state


def _add_point(record: StageRecord, event: Event, now: float) -> None:
    step, total = int(event.get("step") or 0), int(event.get("total") or 0)
    if record.total != total or (record.steps and step <= record.steps[0]):
        record.steps, record.points, record.cases, record.metrics = [], [], 0, {}
        record.started, record.seconds = now, 0.0
    while record.steps and record.steps[-1] >= step:
        record.steps.pop()
        record.points.pop()
    numbers = {
        key: float(value)
        for key, value in event.items()
        if key not in NOT_A_LOSS and not key.endswith(("weight", "rate")) and _is_number(value)
    }
    parts = event.get("parts")
    if isinstance(parts, Mapping):
        numbers |= {str(key): float(value) for key, value in parts.items() if _is_number(value)}
    record.step, record.total = step, total
    record.steps.append(step)
    record.points.append(numbers)


def _add_metrics(record: StageRecord, event: Event) -> None:
    step = int(event["step"])
    for name, value in event.items():
        if name not in NOT_A_LOSS and _is_number(value):
            told = record.metrics.setdefault(name, [])
            while told and told[-1][0] >= step:
                told.pop()
            told.append((step, float(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
