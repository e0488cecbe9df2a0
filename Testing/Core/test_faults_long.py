"""The fault tests at every place and at many moments; minutes to an hour, run by `make test-long`."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from SFRCore.runtime.jobs import Job
from SFRCore.synthetic import make_synthetic_cohort
from Testing.Core.faults import Done, Server, check_whole, served, start_worker, temporary_files
from Testing.Core.strikes import FAULTS, fault_at
from Testing.Core.test_faults import (
    COMMANDS,
    LABELED,
    NOT_RENAMED,
    RUN,
    STUDENT,
    TEST,
    UNLABELED,
    check_struck,
    copied,
    init,
    strike,
    strike_init,
    words_of,
)
from Testing.Core.test_faults import finished as finished
from Testing.Core.test_faults import more as more
from Testing.Core.test_faults import scans as scans

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the faults are injected into forked processes"),
]
KILLS = 20
VARIANTS: dict[str, tuple[str, str, tuple[str, ...], list[str]]] = {
    "sfr_plus": ("--recipe sfr_plus", "sfr_plus-mean_teacher/student", ("foundation/foundation",), []),
    "aslseg": (
        "--recipe aslseg --recipe-option rounds=1 --recipe-option corruptions=2 --recipe-option agreement=0 "
        "--recipe-option certainty=0",
        "aslseg-mean_teacher/student",
        ("aslseg/prompted/foundation", "aslseg/adaptation/student", "aslseg-mean_teacher/round-1/student"),
        ["case_02"],
    ),
    "self_training": ("--recipe baseline --ssl self_training", "baseline-self_training/student", (), []),
    "decoder": ("--tuning decoder", "sfr-mean_teacher/student", ("foundation/foundation",), ["case_02"]),
}
"""Options of a run, the student that it ends with, its other models, and which cases it pseudo-labels."""
KEPT_MEANWHILE = {"aslseg": ["corruptions"], "self_training": ["rounds"], "decoder": ["embeddings"]}
"""What else a run writes into the cache."""


@pytest.fixture(scope="module")
def sfr(tmp_path_factory: pytest.TempPathFactory):
    with served(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def fresh(sfr: Server, scans: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of five cases, nothing computed; to be copied, not changed."""
    root = tmp_path_factory.mktemp("fresh") / "study"
    made = init(sfr, scans, root)
    assert made.code == 0, made.err
    return root


@pytest.fixture(scope="module")
def undisturbed(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    """The student's weights of a real worker that was left alone, and the seconds that it took."""
    root = copied(fresh, tmp_path_factory.mktemp("undisturbed"))
    begin = time.monotonic()
    assert start_worker(root, *RUN, small=False).wait(1000) == 0
    return (root / STUDENT).read_bytes(), time.monotonic() - begin


@pytest.mark.parametrize("number", range(KILLS))
def test_a_worker_killed_at_any_moment(
    fresh: Path, undisturbed: tuple[bytes, float], tmp_path: Path, number: int
) -> None:
    weights, seconds = undisturbed
    root = copied(fresh, tmp_path)
    moment = random.Random(number).uniform(number, number + 1) / KILLS * seconds
    worker = start_worker(root, *RUN, small=False)
    time.sleep(moment)
    worker.kill()
    assert worker.wait() in (-9, 0)
    assert start_worker(root, *RUN, small=False).wait(1000) == 0
    check_whole(root, labels=2, pseudo=UNLABELED, predicted=UNLABELED + TEST)
    assert (root / STUDENT).read_bytes() == weights
    shutil.rmtree(root)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpoints"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_with_a_fault_at_every_write(
    sfr: Server, fresh: Path, finished: Path, tmp_path: Path, fault: str, checkpoints: bool
) -> None:
    counted = copied(fresh, tmp_path, "counted")
    count = len(sfr.run("run", counted, *RUN, checkpoints=checkpoints).writes)
    assert count > 70
    for at in range(1, count + 1):
        root = copied(fresh, tmp_path, str(at))
        check_struck(sfr.run("run", root, *RUN, fault=fault, at=at, checkpoints=checkpoints), fault)
        done = sfr.run("run", root, *RUN)
        assert done.code == 0, (at, done.err)
        check_whole(root, labels=2, pseudo=UNLABELED, predicted=UNLABELED + TEST)
        assert (root / STUDENT).read_bytes() == (finished / STUDENT).read_bytes(), at
        shutil.rmtree(root)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_continues_with_a_fault_at_every_write(
    sfr: Server, finished: Path, tmp_path: Path, fault: str
) -> None:
    """A case was accepted: models are continued from their weights, and results are replaced."""
    begin = copied(finished, tmp_path, "begin")
    assert sfr.run("review", begin, "--accept", "case_03").code == 0
    counted = copied(begin, tmp_path, "counted")
    count = len(sfr.run("run", counted, *RUN).writes)
    for at in range(1, count + 1):
        root = copied(begin, tmp_path, str(at))
        check_struck(sfr.run("run", root, *RUN, fault=fault, at=at), fault)
        done = sfr.run("run", root, *RUN)
        assert done.code == 0, (at, done.err)
        check_whole(root, labels=3, pseudo=UNLABELED[1:], predicted=UNLABELED[1:] + TEST)
        shutil.rmtree(root)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("files", [False, True], ids=["", "in a folder with files"])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_init_with_a_fault_at_every_write(
    sfr: Server, scans: tuple[Path, Path], tmp_path: Path, fault: str, files: bool
) -> None:
    if files:
        (tmp_path / "counted").mkdir()
        (tmp_path / "counted/notes.txt").write_text("mine")
    count = len(init(sfr, scans, tmp_path / "counted").writes)
    for at in range(1, count + 1):
        strike_init(sfr, scans, tmp_path / str(at), fault, at, files=files)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_with_a_fault_at_every_write(
    sfr: Server, finished: Path, more: Path, tmp_path: Path, command: str, fault: str
) -> None:
    counted = copied(finished, tmp_path)
    count = len(sfr.run(*words_of(command, counted, more)).writes)
    assert count
    for at in range(1, count + 1):
        strike(sfr, finished, more, tmp_path / str(at), command, fault, at)


@pytest.fixture(scope="module")
def small(sfr: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labeled, an unlabeled and a test case, nothing computed; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("small")
    scans = make_synthetic_cohort(folder, cases=3, size=(20, 20, 12), seed=4)
    made = init(sfr, scans, folder / "study", labeled=1)
    assert made.code == 0, made.err
    return folder / "study"


def sweep(
    sfr: Server,
    begin: Path,
    tmp_path: Path,
    words: Callable[[Path], list[str]],
    check: Callable[[Path], bytes],
) -> Done:
    """Strike every write of a command, also those of checkpoints, the kinds of fault taking turns; given
    again, it ends each time with what ``check`` finds where none strikes. Returns how it ended undisturbed.
    """
    root = copied(begin, tmp_path, "undisturbed")
    undisturbed = sfr.run(*words(root), checkpoints=True)
    assert undisturbed.code == 0, undisturbed.err
    expected = check(root)
    for at in range(1, len(undisturbed.writes) + 1):
        fault = fault_at(at)
        root = copied(begin, tmp_path, str(at))
        struck = sfr.run(*words(root), fault=fault, at=at, checkpoints=True)
        check_struck(struck, fault)
        done = sfr.run(*words(root))
        assert done.code == 0, (at, fault, struck.last, done.err)
        assert check(root) == expected, (at, fault, struck.last)
        shutil.rmtree(root)
    return undisturbed


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("variant", VARIANTS)
def test_another_run_with_a_fault_at_every_write(
    sfr: Server, small: Path, tmp_path: Path, variant: str
) -> None:
    words, student, others, pseudo = VARIANTS[variant]

    def check(root: Path) -> bytes:
        models = [student, *others]
        check_whole(root, labels=1, pseudo=pseudo, predicted=["case_02", "case_03"], models=models)
        if variant == "aslseg":
            reliable = root / "models/aslseg-mean_teacher/round-1/reliable.json"
            assert json.loads(reliable.read_text())["cases"] == ["case_02"]
        return (root / f"models/{student}.safetensors").read_bytes()

    done = sweep(sfr, small, tmp_path, lambda root: ["run", str(root), *RUN, *words.split()], check)
    assert {Path(path).name for path in done.made if ".sfr-tmp-" not in path} == NOT_RENAMED
    written = {Path(path).relative_to(tmp_path / "undisturbed").parts[:2] for path in done.writes}
    assert written >= {("cache", name) for name in KEPT_MEANWHILE.get(variant, ())}


@pytest.mark.timeout(7200)
def test_a_comparison_with_a_fault_at_every_write(sfr: Server, small: Path, tmp_path: Path) -> None:
    rows = ["supervised", "mean_teacher"]

    def words(root: Path) -> list[str]:
        asked = ["--recipe", "baseline", "--ssl", ",".join(rows), "--seeds", "1"]
        return ["compare", str(root), *RUN, *asked]

    def check(root: Path) -> bytes:
        folder = root / "comparisons/methods"
        check_whole(
            folder / "study",
            labels=1,
            pseudo=[],
            predicted=["case_02", "case_03"],
            models=[f"baseline-{row}/student" for row in rows],
        )
        assert temporary_files(root) == []
        assert not [job.run for job in Job.list(root) if job.state in ("queued", "running")]
        lines = json.loads((folder / "table.json").read_text())["rows"]
        assert [(line["row"], line["seeds"]) for line in lines] == [(row, [1]) for row in rows]
        for name in ("table.md", "table.csv", "cases.csv"):
            assert all(row in (folder / name).read_text() for row in rows)
        return json.dumps([line | {"minutes": 0} for line in lines]).encode()

    sweep(sfr, small, tmp_path, words, check)


def test_a_study_cut_off_fifty_times_has_every_label(
    sfr: Server, fresh: Path, more: Path, tmp_path: Path
) -> None:
    """Labels are accepted between runs that die: none is lost, and the last run uses all of them."""
    root = copied(fresh, tmp_path)
    rng = random.Random(5)
    accepted = 0
    for attempt in range(50):
        sfr.run("run", root, *RUN, fault=FAULTS[attempt % 3], at=rng.randint(7, 20))
        if attempt % 10 == 9:
            done = sfr.run("review", root, "--label", f"case_01={root / 'labels/case_01/001-expert.nrrd'}")
            assert done.code == 0, done.err
            accepted += 1
    assert sfr.run("run", root, *RUN).code == 0
    check_whole(root, labels=len(LABELED) + accepted, pseudo=UNLABELED, predicted=UNLABELED + TEST)
    assert temporary_files(root) == []
