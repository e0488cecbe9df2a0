"""The demonstration's folder: what it makes, and what it never removes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from SFRCore import api, demo
from SFRCore.errors import Cancelled, InputError
from SFRCore.runtime.devices import choose_device
from SFRCore.settings import Settings
from SFRCore.stages.survey import plan_for
from SFRCore.study import Study


def written(study: Study) -> Path:
    page = study.reports_dir / "report.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text("done")
    return page


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    scores: dict[str, Any] = {"mean_dice": 0.9, "structures": {"Left": {"dice": 0.9}}}
    monkeypatch.setattr(api, "run", lambda study, **options: {"run": "r"})
    monkeypatch.setattr(api, "evaluate", lambda study, **options: scores)
    monkeypatch.setattr(api, "report", written)
    monkeypatch.setattr(demo, "SIZE", (24, 20, 12))
    monkeypatch.setattr(demo, "CASES", 6)
    monkeypatch.setattr(demo, "TEST", 2)


def test_crops_of_the_demonstration_are_not_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is as bright as the structures lies on the other side: mirrored, nothing would tell them apart."""
    seen: list[tuple[int, ...]] = []

    def planned(study: Study, **options: Any) -> dict[str, Any]:
        settings = Settings.of(**{name: value for name, value in options.items() if name != "on_event"})
        seen.append(plan_for(study, settings, choose_device("cpu", "fp32")).flip_axes)
        return {"run": "r"}

    monkeypatch.setattr(api, "run", planned)
    demo.demo(tmp_path / "demo")
    assert seen == [()]


def content(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_earlier_demonstration_is_replaced(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    assert demo.demo(output)["mean_dice"] == 0.9
    (output / "study" / "left.txt").write_text("from before")
    demo.demo(output, seed=5)
    assert content(output) == ["cohort", "demo.txt", "study"]
    assert not (output / "study" / "left.txt").exists()
    assert len(Study.open(output / "study").cases) == 6


def test_a_demonstration_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "demo"

    def cut_off(study: Study, **options: Any) -> dict[str, Any]:
        (study.root / "models").mkdir(exist_ok=True)
        (study.root / "models" / "half.txt").write_text("hours of work")
        raise Cancelled("The job was cancelled.")

    with monkeypatch.context() as patched:
        patched.setattr(api, "run", cut_off)
        with pytest.raises(Cancelled):
            demo.demo(output)
    demo.demo(output)
    assert (output / "study" / "models" / "half.txt").exists()
    demo.demo(output)
    assert not (output / "study" / "models" / "half.txt").exists(), "a finished one begins anew"


@pytest.mark.parametrize("text", [None, "", "my own notes on the demo\n"])
def test_a_folder_that_is_somebodys_own_is_left_alone(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "thesis.txt").write_text("years of work")
    if text is not None:
        (tmp_path / demo.MARK).write_text(text)
    with pytest.raises(InputError, match="is not empty"):
        demo.demo(tmp_path)
    assert (tmp_path / "study" / "thesis.txt").read_text() == "years of work"


def test_what_was_put_beside_a_demonstration_is_left_alone(tmp_path: Path) -> None:
    output = tmp_path / "demo"
    demo.demo(output)
    (output / "notes.txt").write_text("mine")
    before = content(output / "study")
    with pytest.raises(InputError, match="notes.txt"):
        demo.demo(output)
    assert (output / "notes.txt").read_text() == "mine" and content(output / "study") == before


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "demo", tmp_path / "elsewhere"
    demo.demo(output)
    (output / "cohort").rename(elsewhere)
    (output / "cohort").symlink_to(elsewhere)
    with pytest.raises(InputError, match="cohort"):
        demo.demo(output)
    assert content(elsewhere) == ["images", "labels"]
