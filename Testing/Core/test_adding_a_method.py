"""The page on adding a method: its example is put into a package of methods as it stands, and run."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from SFRCore import api, ssl
from SFRCore.errors import InputError
from SFRCore.ssl import available_methods, get_method
from SFRCore.students import vnet
from SFRCore.study import Study

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-method.md"


@pytest.fixture
def with_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example's file in a folder that the package of methods also looks in."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "entropy.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(ssl, "__path__", [*ssl.__path__, str(tmp_path / "methods")])
    monkeypatch.setattr(vnet, "_CHANNELS", (2, 4, 4, 8, 8))
    ssl.scan.cache_clear()
    yield code
    sys.modules.pop("SFRCore.ssl.entropy", None)
    ssl.scan.cache_clear()


MISTAKES = {
    "b_syntax": ("def step(:\n", r"SyntaxError: .*b_syntax\.py, line 1\)\.$"),
    "b_raises": ("1 / 0\n", r"ZeroDivisionError: division by zero in b_raises\.py, line 1"),
    "b_nameless": (
        "from SFRCore.ssl.contract import Method\nclass Own(Method):\n    source = ''\nMETHOD = Own\n",
        "the class Own has no name and no description",
    ),
    "b_other": ("METHOD = 'entropy'\n", "METHOD is not a class made from"),
    "b_twice": (
        "from SFRCore.ssl.mean_teacher import MeanTeacher\nclass Own(MeanTeacher):\n    pass\nMETHOD = Own\n",
        "its method is called mean_teacher",
    ),
}


def test_a_file_that_cannot_be_used_is_named_and_stops_no_other(with_example: str) -> None:
    folder = Path(ssl.__path__[-1])
    for name, (code, _) in MISTAKES.items():
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    (folder / "c_without.py").write_text("HELPER = 1\n", encoding="utf-8")
    before = set(available_methods())
    importlib.invalidate_caches()
    ssl.scan.cache_clear()
    assert set(available_methods()) == before >= {"entropy", "supervised"}
    for name, (_, said) in MISTAKES.items():
        with pytest.raises(InputError, match=rf"SFRCore/ssl/{name}\.py cannot be used: .*{said}") as refused:
            get_method(name)
        assert "adding-a-method" in refused.value.hint
    assert get_method("mean_teacher").__name__ == "MeanTeacher"
    with pytest.raises(InputError, match=r"c_without\.py has no method"):
        get_method("c_without")
    with pytest.raises(InputError, match="'nothing' is not known") as unknown:
        get_method("nothing")
    assert "b_syntax.py" in unknown.value.hint and "entropy" in unknown.value.hint


def test_the_example_is_short_and_found(with_example: str) -> None:
    assert len(with_example.splitlines()) < 60
    assert get_method("entropy").defaults["weight"] == 0.1


def test_the_example_trains(with_example: str, tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    torch.manual_seed(0)
    study = Study.create(tmp_path / "study", structures={1: "Front", 2: "Back"})
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    study.add(images[0], label=labels[0])
    study.add(images[1])
    losses: list[dict[str, float]] = []

    def listen(event: dict[str, float]) -> None:
        if "entropy" in event:
            losses.append(event)

    settings = {"patch": (16, 16, 16), "iterations_retrain": 3, "device": "cpu", "recipe": "baseline"}
    api.run(study, ssl="entropy", on_event=listen, **settings)
    assert losses and all(0 < loss["entropy"] < 1.1 for loss in losses), (
        "the entropy of 3 classes is below ln 3"
    )
    assert study.result(study.unlabeled_cases()[0].id, "prediction") is not None
    with pytest.raises(InputError, match="cannot be negative"):
        api.run(study, ssl="entropy", method_options={"weight": -1.0}, **settings)
