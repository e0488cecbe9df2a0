"""What a job has said so far, folded from its events: stages, remaining time, the loss curve, warnings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LARGEST_CURVE = 600
"""Points kept of one curve; beyond it every second one is dropped."""


@dataclass
class StageProgress:
    """``step`` of ``total`` (0 where unknown), ``remaining`` in seconds or None; ``doing`` says what within
    it.
    """

    name: str
    state: str = "running"
    step: int = 0
    total: int = 0
    remaining: float | None = None
    doing: str = ""
    message: str = ""

    @property
    def fraction(self) -> float:
        """How much is done, 0 to 1."""
        if self.state != "running":
            return 1.0
        return min(1.0, self.step / self.total) if self.total else 0.0


@dataclass
class JobProgress:
    """The stages in the order they began, the loss by stage as (step, loss), and what was said once."""

    stages: dict[str, StageProgress] = field(default_factory=dict)
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    estimate: dict[str, Any] = field(default_factory=dict)
    _every: dict[str, int] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict)

    def take(self, events: Iterable[Mapping[str, Any]]) -> bool:
        """Take in what was said; True where it tells more than that the job lives. Odd events are passed
        over.
        """
        news = False
        for event in events:
            try:
                news = self._take(event) or news
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
                continue
        return news

    @property
    def current(self) -> StageProgress | None:
        """The stage that is being computed."""
        running = [stage for stage in self.stages.values() if stage.state == "running"]
        return running[-1] if running else None

    def _take(self, event: Mapping[str, Any]) -> bool:
        kind, name = event.get("event"), str(event.get("stage") or "")
        if kind == "heartbeat":
            return False
        if kind == "progress":
            self._progress(self._stage(name), event)
        elif kind == "skipped":
            stage = self._stage(name)
            stage.state, stage.message = "skipped", str(event.get("message") or "")
        elif kind == "finished_stage":
            self._finish(self._stage(name))
        elif kind == "warning":
            text = str(event.get("message") or "")
            if text and text not in self.warnings:
                self.warnings.append(text)
        elif kind == "case":
            self.cases.append(str(event.get("id")))
        elif kind in ("plan", "estimate"):
            setattr(self, str(kind), dict(event))
        elif kind == "finished":
            for stage in self.stages.values():
                if stage.state == "running":
                    self._finish(stage)
        return True

    def _stage(self, name: str) -> StageProgress:
        for other in self.stages.values():
            if other.name != name and other.state == "running":
                self._finish(other)
        return self.stages.setdefault(name, StageProgress(name))

    @staticmethod
    def _finish(stage: StageProgress) -> None:
        stage.state, stage.remaining = "done", None
        stage.step = stage.total

    def _progress(self, stage: StageProgress, event: Mapping[str, Any]) -> None:
        stage.state = "running"
        stage.step, stage.total = int(event.get("step") or 0), int(event.get("total") or 0)
        remaining = event.get("eta_s")
        stage.remaining = float(remaining) if remaining is not None else None
        stage.doing = str(event.get("doing") or "")
        loss = event.get("loss")
        if isinstance(loss, (int, float)) and math.isfinite(loss):
            self._draw(stage.name, stage.step, float(loss))

    def _draw(self, name: str, step: int, loss: float) -> None:
        curve = self.curves.setdefault(name, [])
        every, seen = self._every.setdefault(name, 1), self._seen.get(name, 0)
        self._seen[name] = seen + 1
        if seen % every == 0:
            curve.append((step, loss))
        if len(curve) >= LARGEST_CURVE:
            del curve[1::2]
            self._every[name] = every * 2
