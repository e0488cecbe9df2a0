"""Every consistency method for two steps in the real trainer, on a small study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from SFRCore import api
from SFRCore.students import registry
from SFRCore.study import Study
from Testing.Core.pyramid_student import Pyramid

NAMES = ("acmt", "acmt_mu", "acmt_serr", "acmt_perr", "ua_mt", "cps", "ict", "urpc", "cct", "dtc")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, cohort: tuple[Path, Path]) -> Study:
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    made = Study.create(tmp_path_factory.mktemp("training") / "study", structures={1: "Front", 2: "Back"})
    for index in range(4):
        made.add(images[index], label=labels[index] if index < 2 else None)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_in_the_real_trainer(study: Study, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "student_types", lambda: {"vnet": Pyramid})
    events: list[dict[str, Any]] = []
    done = api.run_stage(
        study,
        "retrain",
        recipe="baseline",
        ssl=name,
        patch=(16, 16, 16),
        iterations_retrain=2,
        device="cpu",
        on_event=events.append,
    )
    assert done["stages"]["retrain"]["iterations"] == 2
    steps = [event for event in events if event["event"] == "progress" and "consistency" in event]
    assert [event["step"] for event in steps] == [1, 2]
    assert all(event["loss"] > 0 and event["consistency"] >= 0 for event in steps)
