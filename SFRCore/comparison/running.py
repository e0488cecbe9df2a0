"""Training and scoring the rows of a comparison, one after the other; what is done is kept."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from SFRCore.comparison.failures import ends_all, forget_checkpoints, reason_of
from SFRCore.comparison.plan import (
    COMMAND,
    DESCRIPTION,
    Row,
    comparison_folder,
    parse_rows,
    refuse_scoring,
    refuse_unknown_options,
    settings_of,
    snapshot,
)
from SFRCore.comparison.shown import Shown
from SFRCore.comparison.table import Comparison, result_path, write_tables
from SFRCore.errors import InputError, SFRError
from SFRCore.runtime.files import write_json
from SFRCore.runtime.jobs import Job
from SFRCore.runtime.worker import Worker
from SFRCore.settings import Settings
from SFRCore.study import Study

Listener = Callable[[dict[str, Any]], None]
STAGE = COMMAND
SHARED_STAGES = frozenset({"finetune", "pseudolabel", "prompt", "adapt"})
"""Stages whose result the rows of one seed have in common."""


def compare(
    study: Study,
    ssl: Sequence[str],
    *,
    seeds: int = 3,
    first_seed: int = 1,
    base: str | None = None,
    name: str = "methods",
    cases: str = "test",
    mode: str = "strict",
    on_event: Listener | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train every row with every seed on a snapshot of the study, score it, and write the table.

    ``ssl`` are methods, or "RECIPE/METHOD"; ``base`` is the row that differences are taken to (the first).
    ``options`` are the fields of :class:`SFRCore.settings.Settings` that all rows share; a row takes those
    that its recipe and method know. Everything is kept in STUDY/comparisons/NAME: a row that is done is not
    trained again, also when rows or seeds are added later, and one that was cut off goes on. A row that fails
    is said and left out of the table.

    Returns the table's ``rows``, its ``base``, ``folder`` and ``failed``. Raises InputError where nothing can
    be compared, a row does not fit the study, the study has changed since the comparison was begun, or (code
    "long_run") the whole would take more than 12 hours without ``yes``. Rows and seeds of before stay in the
    table; their base too, unless it is named or all rows are.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("A comparison runs in one process.", hint="Start it without accelerate launch.")
    if seeds < 1:
        raise InputError("A comparison needs at least one seed.")
    study.check_writable()
    settings = Settings.of(**options)
    rows = parse_rows(ssl, settings.recipe)
    refuse_unknown_options(rows, settings)
    refuse_scoring(cases, mode)
    folder = comparison_folder(study, name)
    shown = Shown.of(folder, rows, parse_rows([base], settings.recipe)[0] if base else None)
    if not any(case.reference for case in study.cases.values()):
        raise InputError(
            "No case has a reference to score against.", hint="Give references with 'sfr init --labels'."
        )
    wanted = [(row, seed) for seed in range(first_seed, first_seed + seeds) for row in rows]
    scored = f"{cases} cases, {mode} mode"
    failed: dict[str, str] = {}

    def table() -> Comparison:
        return shown.table(folder, _seeds(wanted), scored, failed)

    asked = {"rows": [row.key for row in rows], "seeds": seeds, "first_seed": first_seed, "cases": cases}
    asked |= {key: value for key, value in settings.to_dict().items() if key not in ("recipe", "ssl", "seed")}
    with Worker(study.root, STAGE, {"settings": asked}) as worker:
        worker.stage = STAGE
        tell = _teller(worker, on_event)
        begun = (folder / DESCRIPTION).is_file()
        copy = snapshot(study, folder, settings, scored)
        try:
            _refuse_long(copy, folder, wanted, settings, _watched(worker, copy, tell))
        except BaseException:
            if not begun:  # or its settings could not be changed any more
                shutil.rmtree(folder, ignore_errors=True)
            raise
        begin, trained = time.monotonic(), 0
        for number, (row, seed) in enumerate(wanted):
            worker.check()
            if not result_path(folder, row, seed).is_file() and row.key not in failed:
                watched = _watched(worker, copy, tell)
                try:
                    _train(copy, folder, row, settings_of(row, settings, seed), cases, mode, watched)
                except Exception as error:  # a method's own mistake is no reason to end the others
                    if ends_all(error):
                        raise
                    message, hint = reason_of(error, copy)
                    if not isinstance(error, SFRError):
                        forget_checkpoints(copy)
                    failed[row.key] = message
                    tell({"event": "warning", "message": f"{row.title} is left out: {message}", "hint": hint})
                trained += 1
            left = len(wanted) - number - 1
            eta = {"eta_s": (time.monotonic() - begin) / trained * left} if trained else {}
            tell({"event": "progress", "step": number + 1, "total": len(wanted), "doing": row.title, **eta})
            write_tables(folder, table(), shown.rows)
        whole = table()
    asked_for = [line for row, line in zip(shown.rows, whole.lines, strict=True) if row in rows]
    if failed and not any(line["seeds"] for line in asked_for):
        raise InputError(f"No row could be trained: {next(iter(failed.values()))}")
    return whole.to_dict() | {"folder": str(folder), "failed": failed}


def _refuse_long(
    copy: Study, folder: Path, wanted: Sequence[tuple[Row, int]], settings: Settings, listener: Listener
) -> None:
    """Raise InputError where what is left takes more than 12 hours; rows of one seed share a fine-tuning."""
    from SFRCore import api
    from SFRCore.recipes import get_recipe
    from SFRCore.stages.estimate import LONG_SECONDS, is_short

    lengths = settings.iterations_finetune, settings.iterations_retrain
    stages = {stage for row, _ in wanted for stage in get_recipe(row.recipe).stages}
    if settings.yes or is_short(settings, tuple(stages), lengths):
        return
    left: dict[Row, list[int]] = {}
    for row, seed in wanted:
        if not result_path(folder, row, seed).is_file():
            left.setdefault(row, []).append(seed)
    seconds, shared = 0.0, set[str]()
    for row, seeds in left.items():
        try:
            found = api.estimate(copy, on_event=listener, **vars(settings_of(row, settings, seeds[0])))
        except Exception as error:
            if ends_all(error):
                raise
            continue  # said when the row is trained
        new = {stage: took for stage, took in found["per_stage"].items() if stage not in shared}
        seconds += len(seeds) * sum(new.values())
        shared |= SHARED_STAGES & set(new)
        if seconds > LONG_SECONDS:
            raise InputError(
                f"This comparison would take more than {seconds / 3600:.0f} hours on {found['device']}.",
                hint="Use a computer with a GPU, fewer rows, seeds or iterations; or start it with --yes.",
                code="long_run",
            )


def _train(
    copy: Study, folder: Path, row: Row, settings: Settings, cases: str, mode: str, listener: Listener
) -> None:
    from SFRCore import api
    from SFRCore.recipes import get_recipe

    begin, shared = time.perf_counter(), SharedTime(get_recipe(row.recipe).stages, listener)
    done = api.run(copy, on_event=shared, **vars(settings))
    scores = api.evaluate(copy, cases=cases, mode=mode, recipe=row.recipe, ssl=row.ssl)
    result = {
        "row": row.key,
        "seed": settings.seed,
        "scores": scores,
        "seconds": time.perf_counter() - begin,
        "shared_seconds": shared.seconds,
        "stages": done["stages"],
    }
    write_json(result_path(folder, row, settings.seed), result)


class SharedTime:
    """Hands on what a run tells; ``seconds`` are those it spent in each shared stage of its recipe."""

    def __init__(self, stages: Sequence[str], listener: Listener) -> None:
        self.seconds = {stage: 0.0 for stage in stages if stage in SHARED_STAGES}
        self._listener, self._begin = listener, dict[str, float]()

    def __call__(self, event: dict[str, Any]) -> None:
        stage = event.get("stage", "")
        if stage in self.seconds:
            begin = self._begin.setdefault(stage, time.perf_counter())
            self.seconds[stage] = time.perf_counter() - begin
        self._listener(event)


def _seeds(wanted: Sequence[tuple[Row, int]]) -> list[int]:
    return sorted({seed for _, seed in wanted})


def _teller(worker: Worker, on_event: Listener | None) -> Listener:
    def tell(event: dict[str, Any]) -> None:
        fields = {"stage": STAGE, **event}
        worker.events.emit(**fields)
        if on_event is not None:
            on_event(fields)

    return tell


def _watched(worker: Worker, copy: Study, tell: Listener) -> Listener:
    """Hands on what a row's run tells, and hands it the wish to stop."""
    asked = False

    def listen(event: dict[str, Any]) -> None:
        nonlocal asked
        if event.get("event") in ("progress", "warning", "skipped"):
            tell(event)
        if not asked and worker.folder.stop_file.exists():
            asked = True
            job = Job.running(copy.root)
            if job is not None:
                job.cancel()

    return listen
