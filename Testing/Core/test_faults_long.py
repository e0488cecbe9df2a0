"""The fault tests at every place and at many moments; minutes to an hour, run by `make test-long`."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from Testing.Core.faults import FAULTS, Server, check_whole, served, start_worker, temporary_files
from Testing.Core.test_faults import (
    COMMANDS,
    LABELED,
    RUN,
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
STUDENT = "models/sfr-mean_teacher/student.safetensors"


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
    assert count > 40
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
@pytest.mark.parametrize("fault", FAULTS)
def test_an_init_with_a_fault_at_every_write(
    sfr: Server, scans: tuple[Path, Path], tmp_path: Path, fault: str
) -> None:
    count = len(init(sfr, scans, tmp_path / "counted").writes)
    for at in range(1, count + 1):
        strike_init(sfr, scans, tmp_path / str(at), fault, at)


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


def test_a_study_cut_off_fifty_times_has_every_label(
    sfr: Server, fresh: Path, more: Path, tmp_path: Path
) -> None:
    """Labels are accepted between runs that die: none is lost, and the last run uses all of them."""
    root = copied(fresh, tmp_path)
    rng = random.Random(5)
    accepted = 0
    for attempt in range(50):
        sfr.run("run", root, *RUN, fault=FAULTS[attempt % 3], at=rng.randint(4, 12))
        if attempt % 10 == 9:
            done = sfr.run("review", root, "--label", f"case_01={root / 'labels/case_01/001-expert.nrrd'}")
            assert done.code == 0, done.err
            accepted += 1
    assert sfr.run("run", root, *RUN).code == 0
    check_whole(root, labels=len(LABELED) + accepted, pseudo=UNLABELED, predicted=UNLABELED + TEST)
    assert temporary_files(root) == []
