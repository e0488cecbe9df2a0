"""The command line: studies for real on small volumes, computing with a stand-in for SFRCore.api."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from rich.console import Console
from typer.testing import CliRunner

import SFRCore
from SFRCore.cli import app, display
from SFRCore.cli.app import log_file
from SFRCore.cli.options import arguments_from, settings_from
from SFRCore.errors import Cancelled, DiskFull, InputError, OutOfMemory
from SFRCore.runtime.jobs import Job
from SFRCore.study import Study

ROOT = Path(__file__).parents[2]
STRUCTURES = "1=Anterior,2=Posterior"
COMMANDS = [
    "demo", "init", "add", "run", "finetune", "pseudolabel", "retrain", "predict", "evaluate", "review",
    "report", "export", "jobs", "cancel", "download", "relink", "pack", "doctor",
]  # fmt: skip


def sfr(*words: object, code: int = 0, input: str | None = None) -> Any:
    """Run a command in this process; its exit code must be ``code``."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=input)
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr, result.exception)
    return result


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def made(cohort: tuple[Path, Path], tmp_path: Path) -> Path:
    """A study of the six invented cases: 2 labeled, 2 unlabeled, 2 test."""
    study = tmp_path / "study"
    images, labels = cohort
    sfr("init", study, "--images", images, "--labels", labels, "--num-labeled", 2, "--test", 2,
        "--structures", STRUCTURES)  # fmt: skip
    return study


def write_result(study: Study, id: str, expected: float, kind: str = "prediction") -> None:
    image = sitk.ReadImage(str(study.image_path(id)))
    label = sitk.Image(image.GetSize(), sitk.sitkUInt16)
    label.CopyInformation(image)
    label[5, 5, 5] = 1
    confidence = sitk.Cast(label, sitk.sitkUInt8)
    numbers = {
        "mean_confidence": 0.9,
        "expected_dice": expected,
        "expected_dice_by_structure": {"1": expected, "2": 1.0},
        "volume_ml": {"1": 0.1, "2": 0.0},
        "slices": [{"index": 0, "mean_confidence": 0.9, "doubt": 0.1}],
        "doubtful_slice": 5,
        "made_by": {},
    }
    study.write_result(id, kind, label, confidence, numbers)


class FakeApi(types.SimpleNamespace):
    """Stands for SFRCore.api: notes each call, tells events, returns or raises what the test says."""

    def __init__(self) -> None:
        super().__init__(calls=[], events=[], answer={}, failures=[])

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in ("run", "run_stage", "evaluate", "predict_file", "report", "export", "demo", "doctor"):
            raise AttributeError(name)

        def call(
            *arguments: Any, on_event: Callable[[dict[str, Any]], None] | None = None, **settings: Any
        ) -> Any:
            self.calls.append((name, arguments, settings))
            for event in self.events:
                assert on_event is not None
                on_event(event)
            if self.failures:
                raise self.failures.pop(0)
            return self.answer

        return call


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    monkeypatch.setitem(sys.modules, "SFRCore.api", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(SFRCore, "api", fake, raising=False)
    return fake


# --- help and usage


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    text = flat(sfr(command, "--help").stdout)
    assert f"Example: sfr {command}" in text


def test_help_lists_every_command_and_usage_errors_are_2() -> None:
    text = sfr("--help").stdout
    assert all(f" {command} " in text for command in COMMANDS)
    assert sfr("--version").stdout.strip() == f"sfr {SFRCore.__version__}"
    sfr("segment", code=2)
    sfr("run", code=2)
    sfr("run", "study", "--seed", "many", code=2)


def test_help_of_run_names_every_choice() -> None:
    from SFRCore.presets import PRESETS
    from SFRCore.recipes import available_recipes
    from SFRCore.ssl import available_methods

    words = re.findall(r"[a-z0-9_]+", sfr("run", "--help").stdout)
    assert {*available_methods(), *PRESETS, *available_recipes()} <= set(words)


def test_real_process_gives_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "SFRCore", "review", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
    )
    assert result.returncode == 2
    assert "nowhere" in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == ""


# --- init


def test_init_gives_roles_in_sorted_order_and_keeps_references_apart(made: Path) -> None:
    study = Study.open(made)
    roles = {id: case.role for id, case in study.cases.items()}
    assert roles == {
        "case_01": "labeled", "case_02": "labeled", "case_03": "unlabeled", "case_04": "unlabeled",
        "case_05": "test", "case_06": "test",
    }  # fmt: skip
    for case in study.cases.values():
        assert (case.label is not None) == (case.role == "labeled")
        assert (case.reference is not None) == (case.role != "labeled")
    assert [structure.name for structure in study.structures] == ["Anterior", "Posterior"]


def test_init_takes_named_cases_and_a_file_of_test_cases(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = cohort
    listed = tmp_path / "test.txt"
    listed.write_text("case_01\ncase_02.nrrd\n\n")
    result = sfr(
        "init", tmp_path / "s", "--images", images, "--labels", labels, "--labeled", "case_06, case_04",
        "--test", listed, "--structures", STRUCTURES, "--json",
    )  # fmt: skip
    summary = json.loads(result.stdout)
    assert summary["labeled"] == ["case_04", "case_06"]
    assert summary["test"] == ["case_01", "case_02"]
    assert summary["unlabeled"] == ["case_03", "case_05"]
    assert summary["left_out"] == {}
    assert set(Study.open(tmp_path / "s").cases) == {f"case_{n:02d}" for n in range(1, 7)}


def test_names_that_are_no_case_are_not_counted_as_left_out(
    cohort: tuple[Path, Path], tmp_path: Path
) -> None:
    words = ["--images", cohort[0], "--labels", cohort[1], "--structures", STRUCTURES, "--num-labeled", 2]
    result = sfr("init", tmp_path / "s", *words, "--test", "case_06,case_99")
    assert "0 files left out" in flat(result.stdout) and "case_99" in flat(result.stderr)
    result = sfr("init", tmp_path / "t", *words, "--test", "case_06,case_99", "--json")
    summary = json.loads(result.stdout)
    assert summary["left_out"] == {} and summary["unknown"] == ["case_99"] and summary["test"] == ["case_06"]
    unreadable = tmp_path / "list.bin"
    unreadable.write_bytes(b"\xff\xfe\x00\xd8case")
    assert "list of cases" in flat(sfr("init", tmp_path / "u", *words, "--test", unreadable, code=2).stderr)


def test_a_study_without_labels_names_the_command_that_gives_one(
    cohort: tuple[Path, Path], tmp_path: Path
) -> None:
    study = tmp_path / "a study"
    result = sfr("init", study, "--images", cohort[0], "--structures", STRUCTURES)
    assert "No case is labeled" in flat(result.stderr)
    assert f"sfr review '{study}' --label case_01=FILE" in flat(result.stdout)
    sfr("review", study, "--label", f"case_01={cohort[1] / 'case_01.nrrd'}")
    assert Study.open(study).case("case_01").role == "labeled"


def test_init_leaves_a_copy_of_an_image_out(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    images = Path(shutil.copytree(cohort[0], tmp_path / "images"))
    shutil.copy(images / "case_01.nrrd", images / "copy.nrrd")
    words = ["--images", images, "--structures", STRUCTURES, "--test"]
    result = sfr("init", tmp_path / "s", *words, "copy")
    assert "copy.nrrd cannot be a test case, because its image is that of case case_01" in flat(result.stderr)
    sfr("init", tmp_path / "t", *words, 2)
    roles = {id: case.role for id, case in Study.open(tmp_path / "t").cases.items()}
    assert len(roles) == 6 and [id for id, role in roles.items() if role == "test"] == ["case_05", "case_06"]


def test_init_in_a_folder_that_is_not_empty_is_whole_or_begun_anew(
    cohort: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed half-way: nothing of Python runs any more, so the mark is all that tells."""
    study = tmp_path / "kept"
    study.mkdir()
    (study / "notes.txt").write_text("mine")
    words = ["init", study, "--images", cohort[0], "--labels", cohort[1], "--structures", STRUCTURES]
    script = (
        "import os, sys\nfrom SFRCore.study import Study\nadd = Study.add\n"
        "def dying(self, *a, **k):\n    if len(self.cases) == 3: os._exit(9)\n    return add(self, *a, **k)\n"
        "Study.add = dying\nfrom SFRCore.cli import main\nmain()"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert killed.returncode == 9 and (study / "study.json").is_file()
    assert "not a whole study" in flat(sfr("review", study, code=2).stderr)
    sfr(*words)
    assert len(Study.open(study).cases) == 6 and (study / "notes.txt").read_text() == "mine"
    assert not (study / ".making").exists()
    assert "is a study already" in flat(sfr(*words, code=2).stderr)
    assert len(Study.open(study).cases) == 6


def test_init_with_images_alone_and_with_every_label(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = cohort
    sfr("init", tmp_path / "a", "--images", images, "--structures", STRUCTURES)
    assert {case.role for case in Study.open(tmp_path / "a").cases.values()} == {"unlabeled"}
    sfr(
        "init",
        tmp_path / "b",
        "--images",
        images,
        "--labels",
        labels,
        "--structures",
        STRUCTURES,
        "--test",
        1,
    )
    roles = [case.role for case in Study.open(tmp_path / "b").cases.values()]
    assert roles == ["labeled"] * 5 + ["test"]
    assert Study.open(tmp_path / "b").case("case_06").reference is not None


@pytest.fixture
def flawed(cohort: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The cohort with an empty first image, an undeclared value in label 02 and a damaged last image."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    for source, target in zip(cohort, (images, labels), strict=True):
        target.mkdir()
        for path in source.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
    (images / "case_01.nrrd").write_bytes(b"")
    label = sitk.ReadImage(str(labels / "case_02.nrrd"))
    label[3, 3, 3] = 9
    sitk.WriteImage(label, str(labels / "case_02.nrrd"))
    whole = (images / "case_06.nrrd").read_bytes()
    (images / "case_06.nrrd").write_bytes(whole[: len(whole) // 2])
    return images, labels


def test_bad_cases_are_warned_of_once_and_left_out(flawed: tuple[Path, Path], tmp_path: Path) -> None:
    result = sfr(
        "init", tmp_path / "s", "--images", flawed[0], "--labels", flawed[1], "--num-labeled", 2,
        "--test", 1, "--structures", STRUCTURES,
    )  # fmt: skip
    roles = {id: case.role for id, case in Study.open(tmp_path / "s").cases.items()}
    assert roles == {"case_03": "labeled", "case_04": "labeled", "case_05": "test"}
    assert result.stderr.count("Warning:") == 3
    text = flat(result.stderr)
    for name in ("case_01.nrrd", "case_02.nrrd", "case_06.nrrd"):
        assert text.count(name) >= 1
    assert text.count("Add these structures to the study") == 1
    assert "9" in text and "3 files left out" in flat(result.stdout)


def test_other_values_can_be_background(flawed: tuple[Path, Path], tmp_path: Path) -> None:
    sfr("init", tmp_path / "s", "--images", flawed[0], "--labels", flawed[1], "--num-labeled", 1,
        "--structures", STRUCTURES, "--other-as-background")  # fmt: skip
    study = Study.open(tmp_path / "s")
    assert study.case("case_02").role == "labeled"
    assert 9 not in sitk.GetArrayFromImage(sitk.ReadImage(str(study.label_path("case_02"))))


def test_several_values_can_be_one_structure(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    sfr("init", tmp_path / "s", "--images", cohort[0], "--labels", cohort[1], "--num-labeled", 1,
        "--structures", "1+2=Hippocampus")  # fmt: skip
    study = Study.open(tmp_path / "s")
    for path, name in (
        (study.label_path("case_01"), "case_01"),
        (study.reference_path("case_06"), "case_06"),
    ):
        given, kept = (
            sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (cohort[1] / f"{name}.nrrd", path)
        )
        assert set(np.unique(given)) == {0, 1, 2} and np.array_equal(kept, given > 0)
    again = sfr("init", tmp_path / "t", "--images", cohort[0], "--labels", cohort[1],
                "--structures", "1+2=A,2=B", code=2)  # fmt: skip
    assert "The value 2 is given twice" in flat(again.stderr)


def test_nothing_usable_is_2_and_leaves_no_study(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "scan.nrrd").write_text("no image")
    result = sfr("init", tmp_path / "s", "--images", images, "--structures", STRUCTURES, code=2)
    assert result.stderr.count("scan.nrrd") >= 1 and "None of the images" in flat(result.stderr)
    assert not (tmp_path / "s").exists()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "notes.txt").write_text("mine")
    sfr("init", kept, "--images", images, "--structures", STRUCTURES, code=2)
    assert (kept / "notes.txt").read_text() == "mine" and not (kept / "study.json").exists()
    sfr("init", tmp_path / "s", "--images", tmp_path / "nowhere", "--structures", STRUCTURES, code=2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-labeled", "2", "--labeled", "case_01"], "together"),
        (["--num-labeled", "5", "--test", "2"], "more than the 6"),
        (["--labeled", "case_01", "--test", "case_01,case_02"], "both labeled and a test case"),
        (["--labeled", "scan_99"], "None of the cases named"),
        (["--num-labeled", "2", "--test", "tset.txt"], "there is no file of that name"),
        (["--num-labeled", "2", "--test", "lists/none.txt"], "there is no file of that name"),
        (["--num-labeled", "2", "--preset", "kidney"], "no preset"),
    ],
)
def test_contradictions_are_refused(
    cohort: tuple[Path, Path], tmp_path: Path, words: list[str], said: str
) -> None:
    start = ["init", tmp_path / "s", "--images", cohort[0], "--labels", cohort[1], "--structures", STRUCTURES]
    result = sfr(*start, *words, code=2)
    assert said in flat(result.stderr)
    assert not (tmp_path / "s").exists()


def test_bad_structures_and_an_existing_study_are_refused(cohort: tuple[Path, Path], made: Path) -> None:
    before = (made / "study.json").read_bytes()
    words = ["init", made, "--images", cohort[0]]
    sfr(*words, "--structures", "Anterior", code=2)
    result = sfr(*words, "--structures", STRUCTURES, "--json", code=2)
    assert json.loads(result.stdout)["error"]["code"]
    assert (made / "study.json").read_bytes() == before


# --- add, review, relink, pack


def test_add_a_file_with_its_label_and_a_folder(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = cohort
    study = tmp_path / "study"
    sfr("init", study, "--images", images, "--structures", STRUCTURES)
    words = ["add", study, images / "case_01.nrrd", "--label", labels / "case_01.nrrd"]
    sfr(*words, code=2)
    assert "first" in Study.open(study).cases or sfr(*words, "--id", "first").exit_code == 0
    assert Study.open(study).case("first").role == "labeled"

    more = tmp_path / "more"
    more.mkdir()
    for n in (3, 4):
        sitk.WriteImage(sitk.ReadImage(str(images / f"case_0{n}.nrrd")) + 1, str(more / f"new_{n}.nrrd"))
        (more / f"new_{n}_seg.nrrd").write_bytes((labels / f"case_0{n}.nrrd").read_bytes())
    (more / "bad.nrrd").write_bytes(b"")
    result = sfr("add", study, more, "--role", "test", "--json")
    summary = json.loads(result.stdout)
    assert summary["added"] == {"new_3": "test", "new_4": "test"}
    assert list(summary["left_out"]) == [str(more / "bad.nrrd")]
    assert result.stderr.count("Warning:") == 1
    case = Study.open(study).case("new_3")
    assert case.reference and not case.label


def test_add_refuses_what_cannot_be_used(made: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.nrrd"
    bad.write_bytes(b"NRRD0004\n")
    before = (made / "study.json").read_bytes()
    result = sfr("add", made, bad, code=2)
    assert "bad.nrrd" in flat(result.stderr) and "Warning" not in result.stderr
    sfr("add", made, bad, bad, "--id", "x", code=2)
    assert (made / "study.json").read_bytes() == before


def test_review_shows_the_most_doubtful_first_and_takes_decisions(
    made: Path, cohort: tuple[Path, Path]
) -> None:
    assert "Nothing to review" in sfr("review", made).stdout
    study = Study.open(made)
    write_result(study, "case_03", 0.8)
    write_result(study, "case_04", 0.3)
    rows = json.loads(sfr("review", made, "--json").stdout)
    assert [row["id"] for row in rows] == ["case_04", "case_03"]
    assert rows[0]["expected_dice"] == pytest.approx(0.3) and rows[0]["doubtful_slice"] == 5
    text = sfr("review", made).stdout
    assert text.index("case_04") < text.index("case_03") and "0.300" in text

    sfr("review", made, "--accept", "case_03", "--correct", f"case_04={cohort[1] / 'case_04.nrrd'}")
    study.reload()
    assert (study.case("case_03").label_origin, study.case("case_03").review) == ("accepted", "accepted")
    assert (study.case("case_04").label_origin, study.case("case_04").review) == ("corrected", "corrected")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(cohort[1] / "case_04.nrrd")))
    kept = sitk.GetArrayFromImage(sitk.ReadImage(str(study.label_path("case_04"))))
    np.testing.assert_array_equal(kept, expected)


def test_review_rejects_and_takes_back(made: Path) -> None:
    write_result(Study.open(made), "case_03", 0.5)
    assert json.loads(sfr("review", made, "--reject", "case_03", "--json").stdout) == []
    assert Study.open(made).case("case_03").review == "rejected"
    assert len(json.loads(sfr("review", made, "--unreject", "case_03", "--json").stdout)) == 1


def test_review_sets_roles_labels_and_references(made: Path, cohort: tuple[Path, Path]) -> None:
    label = cohort[1] / "case_03.nrrd"
    sfr("review", made, "--role", "ignored=case_04,case_05", "--label", f"case_03={label}")
    listed = {row["id"]: row for row in json.loads(sfr("review", made, "--all", "--json").stdout)}
    assert listed["case_04"]["role"] == listed["case_05"]["role"] == "ignored"
    assert listed["case_03"]["role"] == "labeled" and listed["case_03"]["label"] == "expert"
    assert "case_06" in sfr("review", made, "--all").stdout


def test_review_changes_nothing_when_a_case_is_unknown(made: Path) -> None:
    before = (made / "study.json").read_bytes()
    result = sfr("review", made, "--role", "test=case_03", "--reject", "case_99", code=2)
    assert "case_99" in flat(result.stderr)
    assert (made / "study.json").read_bytes() == before
    assert "ID=FILE" in flat(sfr("review", made, "--correct", "case_03", code=2).stderr)


def test_two_decisions_on_one_case_are_refused(made: Path) -> None:
    first = sorted(Study.open(made).cases)[0]
    said = sfr("review", made, "--accept", first, "--reject", first, code=2).stderr
    assert "two decisions at once" in flat(said)
    assert Study.open(made).case(first).review == "unseen"


def test_decisions_are_confirmed_and_repeated_ones_told_apart(made: Path, cohort: tuple[Path, Path]) -> None:
    study = Study.open(made)
    write_result(study, "case_03", 0.8)
    write_result(study, "case_04", 0.3)
    text = flat(sfr("review", made, "--accept", "case_03").stdout)
    assert "case_03: accepted" in text and "case_04" in text
    again = flat(sfr("review", made, "--accept", "case_03").stdout)
    assert "case_03: already accepted" in again
    assert len(Study.open(made).history("case_03")) == 1
    done = flat(sfr("review", made, "--reject", "case_04").stdout)
    assert "case_04: rejected" in done and "Every case is reviewed: 1 accepted, 1 rejected" in done
    assert "--ssl supervised" in done
    assert "case_04: back in the queue" in sfr("review", made, "--unreject", "case_04").stdout
    label = cohort[1] / "case_04.nrrd"
    assert "is its label now" in flat(sfr("review", made, "--correct", f"case_04={label}").stdout)
    replaced = sfr("review", made, "--accept", "case_04")
    assert "had a label by hand" in flat(replaced.stderr) and "001-corrected.nrrd" in flat(replaced.stderr)
    assert "case_05: unlabeled now" in sfr("review", made, "--role", "unlabeled=case_05").stdout
    json.loads(sfr("review", made, "--role", "test=case_05", "--json").stdout)


def test_empty_labels_are_warned_of(made: Path, cohort: tuple[Path, Path], tmp_path: Path) -> None:
    study = Study.open(made)
    image = sitk.ReadImage(str(study.image_path("case_03")))
    blank = sitk.Image(image.GetSize(), sitk.sitkUInt8)
    blank.CopyInformation(image)
    write_result(study, "case_03", 0.0)
    sitk.WriteImage(sitk.Cast(blank, sitk.sitkUInt16), str(study.result("case_03", "prediction").label_path))
    accepted = flat(sfr("review", made, "--accept", "case_03").stderr)
    assert "case_03 is empty" in accepted and "ignored=case_03" in accepted
    assert sfr("review", made, "--label", f"case_04={cohort[1] / 'case_04.nrrd'}").stderr.strip("\n") == ""

    images, labels = tmp_path / "images", tmp_path / "labels"
    for source, target in zip(cohort, (images, labels), strict=True):
        target.mkdir()
        for path in sorted(source.iterdir())[:3]:
            (target / path.name).write_bytes(path.read_bytes())
    first = sitk.ReadImage(str(images / "case_01.nrrd"))
    empty = sitk.Image(first.GetSize(), sitk.sitkUInt8)
    empty.CopyInformation(first)
    sitk.WriteImage(empty, str(labels / "case_01.nrrd"))
    said = sfr("init", tmp_path / "s", "--images", images, "--labels", labels, "--structures", STRUCTURES)
    assert flat(said.stderr).count("label of case case_01 is empty") == 1 and "case_02" not in said.stderr
    said = sfr(
        "add", tmp_path / "s", images / "case_01.nrrd", "--label", labels / "case_01.nrrd", "--id", "again"
    )
    assert flat(said.stderr).count("label of case again is empty") == 1


def test_a_new_test_case_that_a_running_job_may_know_is_said(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "running" not in sfr("review", made, "--role", "test=case_02").stderr
    monkeypatch.setattr(Job, "running", classmethod(lambda cls, root: object()))
    assert "case_01 already" in flat(sfr("review", made, "--role", "test=case_01").stderr)
    assert sfr("review", made, "--role", "test=case_03").stderr.strip("\n") == ""


def test_relink_and_pack(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    images = tmp_path / "scans"
    images.mkdir()
    for path in cohort[0].iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    study = tmp_path / "study"
    sfr("init", study, "--images", images, "--structures", STRUCTURES)
    images.rename(tmp_path / "moved")
    sfr("pack", study, code=2)
    found = json.loads(sfr("relink", study, tmp_path / "moved", "--json").stdout)
    assert found["missing"] == {} and len(found["found"]) == 6
    assert found["found"]["case_01"] == str(tmp_path / "moved" / "case_01.nrrd")
    packed = json.loads(sfr("pack", study, "--json").stdout)["copied"]
    assert len(packed) == 6 and Study.open(study).outside_files() == []
    assert Study.open(study).image_path("case_02").read_bytes() == (cohort[0] / "case_02.nrrd").read_bytes()


# --- computing


def test_run_hands_on_only_what_was_given(api: FakeApi, tmp_path: Path) -> None:
    sfr("run", tmp_path)
    assert api.calls == [("run", (tmp_path,), {"yes": False})]
    sfr(
        "run", tmp_path, "--recipe", "sfr", "--ssl", "mean_teacher", "--preset", "auto",
        "--foundation", "vit_b", "--tuning", "lora",
        "--student", "vnet", "--pseudo-labels", "online", "--device", "cpu", "--seed", 0,
        "--iterations-finetune", 5, "--iterations-retrain", 7, "--patch", "96x64,32", "--dense", "--yes",
        "--method-option", "rounds=3", "--method-option", "hard=true", "--precision", "fp32",
    )  # fmt: skip
    assert api.calls[1][2] == {
        "recipe": "sfr", "ssl": "mean_teacher", "preset": "auto", "foundation": "vit_b", "tuning": "lora",
        "student": "vnet", "pseudo_labels": "online", "device": "cpu", "seed": 0, "iterations_finetune": 5,
        "iterations_retrain": 7, "patch": (96, 64, 32), "fast": False, "precision": "fp32", "yes": True,
        "method_options": {"rounds": 3, "hard": True},
    }  # fmt: skip
    for stage in ("finetune", "pseudolabel", "retrain"):
        sfr(stage, tmp_path, "--seed", 3)
        assert api.calls[-1] == ("run_stage", (tmp_path, stage), {"seed": 3, "yes": False})
    sfr("predict", tmp_path, "--device", "cpu")
    assert api.calls[-1] == ("run_stage", (tmp_path, "predict"), {"device": "cpu", "yes": False})
    for wrong in (["--patch", "96,96"], ["--method-option", "rounds"]):
        sfr("run", tmp_path, *wrong, code=2)


def test_every_setting_of_a_run_is_an_option() -> None:
    from dataclasses import fields

    from SFRCore.settings import Settings

    text = sfr("run", "--help").stdout
    renamed = {"method_options": "method-option", "recipe_options": "recipe-option", "fast": "dense"}
    for item in fields(Settings):
        assert "--" + renamed.get(item.name, item.name.replace("_", "-")) in text


def test_result_is_one_json_document_and_messages_go_to_stderr(api: FakeApi, tmp_path: Path) -> None:
    api.answer = {"stages": {"finetune": {"loss": math.nan, "path": Path("models/a"), "n": np.int64(3)}}}
    api.events = [
        {"event": "started", "stage": "finetune"},
        {
            "event": "plan",
            "stage": "",
            "device": "cpu",
            "preset": "auto",
            "patch": [32, 32, 16],
            "reasons": ["small"],
        },
        {
            "event": "estimate",
            "seconds": 8000,
            "memory_bytes": 3.2e9,
            "per_stage": {"finetune": 3000, "retrain": 5000},
        },
        *({"event": "warning", "stage": "finetune", "message": "case_03 was left out."} for _ in range(3)),
        {"event": "progress", "stage": "finetune", "step": 1, "total": 2, "doing": "reading labeled volumes"},
        {"event": "progress", "stage": "finetune", "step": 120, "total": 6000, "loss": 0.2123, "eta_s": 840},
        {"event": "heartbeat"},
        {"event": "skipped", "stage": "predict", "message": "Every case has a prediction."},
        {"event": "finished_stage", "stage": "finetune"},
    ]
    result = sfr("run", tmp_path, "--json")
    assert json.loads(result.stdout) == {"stages": {"finetune": {"loss": None, "path": "models/a", "n": 3}}}
    said = flat(result.stderr)
    assert said.count("Warning: case_03 was left out.") == 1
    assert "about 2 h 13 min (finetune 50 min, retrain 83 min) and 3.2 GB of memory" in said
    assert "finetune: step 120 of 6000, loss 0.212, 14 min left" in said
    assert "finetune: reading labeled volumes, 1 of 2 finetune:" in said
    assert "finetune: done after 0 s, loss 0.212" in said
    assert "32 x 32 x 16" in said and "small" in said and "Every case has a prediction." in said
    assert "finetune:" in sfr("run", tmp_path).stdout


def test_a_terminal_gets_bars_with_loss_and_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=110, color_system=None)
    monkeypatch.setattr(display, "console", console)
    with display.Display() as shown:
        for step in (1, 60):
            shown(
                {"event": "progress", "stage": "retrain", "step": step, "total": 60, "loss": 0.5, "eta_s": 61}
            )
        shown.warn("[red]not markup[/red]")
        shown({"event": "finished_stage", "stage": "retrain"})
    text = screen.getvalue()
    assert "retrain" in text and "60/60" in text and "done" in text
    assert "[red]not markup[/red]" in text


def test_a_very_long_run_asks_on_a_terminal_only(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long() -> InputError:
        return InputError("This would take 3 days.", hint="Use a GPU.", code="long_run")

    api.failures = [too_long()]
    assert "3 days" in flat(sfr("run", tmp_path, code=2).stderr)
    monkeypatch.setattr("SFRCore.cli.computing.can_ask", lambda: True)
    api.calls.clear()
    api.failures = [too_long()]
    result = sfr("run", tmp_path, input="y\n")
    assert [settings["yes"] for _, _, settings in api.calls] == [False, True]
    assert "Start anyway?" in result.stderr and "Use a GPU." in result.stderr
    api.failures = [too_long()]
    sfr("run", tmp_path, input="n\n", code=3)
    assert len(api.calls) == 3


@pytest.mark.parametrize(
    ("failure", "code", "word"),
    [
        (InputError("scan.nrrd is empty.", hint="Export it again."), 2, "input"),
        (Cancelled("The job was cancelled."), 3, "cancelled"),
        (OutOfMemory("The memory of the GPU ran out."), 4, "out_of_memory"),
        (DiskFull("The disk is full."), 4, "disk_full"),
        (MemoryError(), 4, "out_of_memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 4, "out_of_memory"),
        (
            RuntimeError("DefaultCPUAllocator: not enough memory: you tried to"),
            4,
            "out_of_memory",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 4, "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left on device", "weights"), 4, "disk_full"),
        (KeyboardInterrupt(), 3, "cancelled"),
        (ZeroDivisionError("division by zero"), 1, "error"),
    ],
)
def test_each_failure_has_its_exit_code_and_sentence(
    api: FakeApi, tmp_path: Path, failure: BaseException, code: int, word: str
) -> None:
    api.failures = [failure]
    result = sfr("run", tmp_path, "--json", code=code)
    error = json.loads(result.stdout)["error"]
    assert error["code"] == word and error["message"] in flat(result.stderr)
    assert "Traceback" not in result.stdout + result.stderr
    if isinstance(failure, ZeroDivisionError):
        assert "Traceback" in log_file().read_text() and "ZeroDivisionError" in log_file().read_text()
        assert str(log_file()) in result.stderr.replace("\n", "")


def test_predict_takes_a_study_or_one_volume(api: FakeApi, tmp_path: Path) -> None:
    api.answer = {"expected_dice": 0.91}
    words = ["predict", "--model", tmp_path / "m", "--image", "a.nrrd", "--output", "b.nrrd"]
    result = sfr(*words, "--confidence", "c.nrrd", "--dense", "--json")
    assert json.loads(result.stdout) == {"expected_dice": 0.91}
    name, arguments, settings = api.calls[0]
    assert (name, arguments) == ("predict_file", (tmp_path / "m", Path("a.nrrd"), Path("b.nrrd")))
    assert settings == {"confidence": Path("c.nrrd"), "fast": False}
    assert "--output" in flat(sfr("predict", "--model", "m", "--image", "a.nrrd", code=2).stderr)
    assert "--image" in flat(sfr("predict", tmp_path, "--image", "a.nrrd", code=2).stderr)
    sfr("predict", code=2)
    assert len(api.calls) == 1


def test_predict_names_a_model_folder_that_a_run_makes() -> None:
    assert "STUDY/models/sfr-mean_teacher" in flat(sfr("predict", "--help").stdout)


@pytest.mark.parametrize(
    ("output", "confidence", "said"),
    [
        ("scan.nrrd", None, "named twice"),
        ("sub/../scan.nrrd", None, "named twice"),
        ("seg.nrrd", "seg.nrrd", "named twice"),
        ("seg.nrrd", "scan.nrrd", "named twice"),
        ("seg.png", None, "file type"),
        ("seg.nrrd", "sure", "file type"),
    ],
)
def test_predict_refuses_its_outputs_before_it_computes(
    tmp_path: Path, output: str, confidence: str | None, said: str
) -> None:
    """The model is missing too: what is said first shows what was looked at first."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "scan.nrrd").write_bytes(b"the patient's only scan")
    words = ["--model", tmp_path / "none", "--image", tmp_path / "scan.nrrd", "--output", tmp_path / output]
    words += ["--confidence", tmp_path / confidence] if confidence else []
    assert said in flat(sfr("predict", *words, code=2).stderr)
    assert (tmp_path / "scan.nrrd").read_bytes() == b"the patient's only scan"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ssl", "supervised"], "cannot use pseudo-labels"),
        (["--method-option", "ramp=40"], "ramp=40"),
        (["--method-option", "consistency=abc"], "consistency=abc"),
        (["--device", "cuda:x"], "cuda:x"),
    ],
)
@pytest.mark.parametrize("command", ["run", "retrain"])
def test_what_does_not_fit_is_refused_before_anything_is_measured(
    made: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: list[str], said: str
) -> None:
    from SFRCore import api as real

    def never(*_: object) -> None:
        raise AssertionError("measured, or computed")

    monkeypatch.setattr(real, "_tell_estimate", never)
    assert said in flat(sfr(command, made, "--device", "cpu", *words, code=2).stderr)


def test_evaluate_prints_scores_as_json_and_table(api: FakeApi, tmp_path: Path) -> None:
    row = {"dice": 0.8123, "jaccard": 0.7, "asd": 1.5, "hd95": math.nan}
    api.answer = {
        "mean_dice": 0.8123,
        "structures": {"Anterior": row},
        "cases": {"case_05": {"kind": "prediction", "structures": {"Anterior": row}}},
    }
    scores = json.loads(sfr("evaluate", tmp_path, "--json").stdout)
    assert scores["mean_dice"] == 0.8123 and scores["structures"]["Anterior"]["hd95"] is None
    text = sfr("evaluate", tmp_path, "--kind", "pseudo_label", "--mode", "official", "--millimetres").stdout
    assert "Mean Dice: 0.8123 over 1 case" in text and "ASD (mm)" in text and "case_05: Anterior" in text
    assert all(settings.pop("on_problem") is not None for _, _, settings in api.calls)
    newest = {"recipe": None, "ssl": None}
    plain = {"kind": "prediction", "cases": "test", "mode": "strict", "millimetres": False, **newest}
    other = {"kind": "pseudo_label", "cases": "unlabeled", "mode": "official", "millimetres": True, **newest}
    assert [settings for _, _, settings in api.calls] == [plain, other]


def test_report_export_demo_and_doctor(api: FakeApi, tmp_path: Path) -> None:
    api.answer = tmp_path / "report.html"
    assert sfr("report", tmp_path).stdout.strip() == str(tmp_path / "report.html")
    sfr("report", tmp_path, "--output", "r.html")
    assert api.calls[-1][1] == (tmp_path, Path("r.html"))
    api.answer = {
        "folder": "out",
        "files": {"onnx": {"file": "m.onnx", "bytes": 38295824, "largest_difference": 1e-6}},
        "made_by": {"method": "x"},
    }
    text = sfr("export", tmp_path, "--format", "onnx", "--output", "out").stdout
    assert "largest_difference: 1e-06" in text and "size: 38 MB" in text and "made_by" not in text
    assert json.loads(sfr("export", tmp_path, "--json").stdout)["made_by"] == {"method": "x"}
    sfr("export", tmp_path, "--format", "onnx", "--output", "out")
    assert api.calls[-1][1] == (tmp_path, Path("out"), ("onnx",))
    sfr("demo", "--output", tmp_path / "d", "--seed", 4)
    assert api.calls[-1] == ("demo", (tmp_path / "d",), {"seed": 4})
    api.answer = {
        "devices": [{"name": "cpu", "free_bytes": 8e9}],
        "lost": {},
        "packages": ["torch 2.8"],
        "whole": True,
    }
    text = sfr("doctor").stdout
    assert "devices:\n  1:\n    name: cpu\n    free: 8.0 GB\nlost: none\n" in text
    assert "packages: torch 2.8" in text and "whole: yes" in text


def test_download_lists_checkpoints_and_refuses_unknown_names() -> None:
    rows = json.loads(sfr("download", "--json").stdout)
    assert {row["name"]: row["downloaded"] for row in rows} == {
        "vit_b": False,
        "vit_l": False,
        "vit_h": False,
    }
    assert "375 MB" in sfr("download").stdout
    assert "vit_x" in flat(sfr("download", "vit_x", code=2).stderr)


# --- jobs

ENDLESS = """
import sys, time
from SFRCore.runtime.jobs import Worker
with Worker(sys.argv[2], sys.argv[1], {"words": sys.argv[3:]}) as worker:
    worker.events.emit("warning", stage="finetune", message="a small warning")
    for step in range(int(sys.argv[-1])):
        worker.check()
        worker.events.emit("progress", stage="finetune", step=step + 1, total=400, loss=0.5, eta_s=9)
        time.sleep(0.02)
"""


def test_a_background_job_is_listed_and_cancelled(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No runs yet" in sfr("jobs", made).stdout
    monkeypatch.setattr(Job, "module_command", ("-c", ENDLESS))
    started = json.loads(sfr("run", made, "--background", "--json", "--seed", 4000).stdout)
    try:
        assert started["state"] in ("queued", "running")
        assert "already" in flat(sfr("run", made, "--background", "--seed", 1, code=2).stderr)
        listed = json.loads(sfr("jobs", made, "--json").stdout)
        assert [(row["run"], row["command"]) for row in listed] == [(started["run"], "run")]
    finally:
        stopped = json.loads(sfr("cancel", made, "--json").stdout)
    assert stopped == {"run": started["run"], "state": "cancelled"}
    assert "cancelled" in sfr("jobs", made).stdout
    sfr("cancel", made, code=2)
    assert Job(made, started["run"]).info["config"]["words"] == ["--seed", "4000"]


def test_following_a_job_shows_its_events_until_it_ends(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "module_command", ("-c", ENDLESS))
    sfr("finetune", made, "--background", "--seed", 20)
    result = sfr("jobs", made, "--follow")
    assert "finished" in result.stdout
    assert result.stderr.count("a small warning") == 1 and "finetune: step" in result.stderr
    sfr("jobs", made, "--follow", code=2)


def test_a_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    message = "The volume " + "very " * 60 + "long."
    display.print_table(["Run", "Message"], [["a" * 60, message]])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and message in lines[1]


def test_a_job_that_cannot_begin_says_why(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "module_command", ("-c", "raise SystemExit('no such package')"))
    run = json.loads(sfr("run", made, "--background", "--json").stdout)["run"]
    Job(made, run).wait(20)
    (row,) = json.loads(sfr("jobs", made, "--json").stdout)
    assert row["state"] == "failed" and "no such package" in row["message"]


# --- small parts


def test_words_of_a_background_job_mean_the_same() -> None:
    options = {"ssl": "mean_teacher", "seed": 0, "faithful": True, "dense": False, "patch": None,
               "method_option": ["a=1", "b=x"]}  # fmt: skip
    words = arguments_from(options)
    assert words == ["--ssl", "mean_teacher", "--seed", "0", "--faithful", "--method-option", "a=1",
                     "--method-option", "b=x"]  # fmt: skip
    assert settings_from(options)["method_options"] == {"a": 1, "b": "x"}
    assert settings_from(options)["seed"] == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89, "89 s"), (100, "2 min"), (840, "14 min"), (7500, "2 h 5 min"), (7200, "2 h"),
     (400000, "5 days"), (math.inf, "unknown time")],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    assert display.duration(seconds) == words


def test_sizes_in_words() -> None:
    assert [display.size(n) for n in (5, 5000, 375_042_383, 2_564_550_879)] == [
        "5 bytes",
        "5.0 kB",
        "375 MB",
        "2.6 GB",
    ]
