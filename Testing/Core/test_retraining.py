"""Re-training in the real trainer: what is cut off, continued, begun again, and what memory leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from SFRCore import api
from SFRCore.errors import Cancelled
from SFRCore.runtime import loop
from SFRCore.students import registry
from SFRCore.study import Study
from Testing.Core.pyramid_student import Pyramid

SETTINGS: dict[str, Any] = {
    "recipe": "baseline",
    "patch": (16, 16, 16),
    "iterations_retrain": 4,
    "device": "cpu",
    "seed": 3,
}


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "student_types", lambda: {"vnet": Pyramid})


@pytest.fixture
def study(tmp_path: Path, cohort: tuple[Path, Path]) -> Study:
    """Two labeled cases, two without a label."""
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    made = Study.create(tmp_path / "study", structures={1: "Front", 2: "Back"})
    for index in range(4):
        made.add(images[index], label=labels[index] if index < 2 else None)
    return made


def retrain(study: Study, ssl: str, **changes: Any) -> dict[str, Any]:
    done: dict[str, Any] = api.run_stage(study, "retrain", ssl=ssl, **(SETTINGS | changes))
    return done["stages"]["retrain"]


def stop_at(step: int) -> Any:
    def listen(event: dict[str, Any]) -> None:
        if (event["event"], event.get("step")) == ("progress", step) and "loss" in event:
            raise Cancelled("stopped by the test")

    return listen


def test_a_student_that_is_finished_leaves_another_s_checkpoints(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", 0.0)
    with pytest.raises(Cancelled):
        retrain(study, "mean_teacher", on_event=stop_at(2))
    assert retrain(study, "supervised")["continued_at"] == 0
    assert retrain(study, "mean_teacher")["continued_at"] == 2
    assert not list(study.runs_dir.glob("*/checkpoints/*.pt"))


class Large(Pyramid):
    """A student whose activations do not fit where they are kept."""

    def encode(self, images: Tensor) -> list[Tensor]:
        if torch.is_grad_enabled() and not self.checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode(images)


def test_every_round_of_self_training_saves_memory_once_it_ran_out(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "student_types", lambda: {"vnet": Large})
    events: list[dict[str, Any]] = []
    assert retrain(study, "self_training", on_event=events.append)["iterations"] == 4
    told = [event["code"] for event in events if (event["event"], event["stage"]) == ("warning", "retrain")]
    assert told == ["memory"]
