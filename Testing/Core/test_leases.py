"""A folder that is used is not replaced, and one that is being replaced is not used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from SFRCore.errors import InputError
from SFRCore.runtime.leases import change_lock, in_use, refuse_users
from SFRCore.runtime.locks import FileLock

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "packages" / "cp312"
    made.mkdir(parents=True)
    return made


def test_any_number_may_use_it_and_the_last_one_frees_it(folder: Path) -> None:
    with in_use(folder, "one"):
        with in_use(folder, "two"), pytest.raises(InputError, match="is in use by (one|two) on"):
            refuse_users(folder)
        with pytest.raises(InputError, match="is in use by one on"):
            refuse_users(folder)
        refuse_users(folder.with_name("cp3"))
    refuse_users(folder)
    assert os.listdir(folder.parent) == ["cp312"]


def test_it_is_not_used_while_it_is_changed(folder: Path) -> None:
    with FileLock(change_lock(folder)):
        with pytest.raises(InputError, match="is being changed"), in_use(folder, "one"):
            pass
        refuse_users(folder)
    with in_use(folder, "one"):
        pass


def test_a_place_where_nothing_can_be_written_is_used_all_the_same(tmp_path: Path) -> None:
    with in_use(tmp_path / "none" / "cp312", "one"):
        pass
    refuse_users(tmp_path / "none" / "cp312")


def test_a_command_uses_the_packages_that_it_was_started_with(folder: Path) -> None:
    env = {**os.environ, "SFR_PACKAGES": str(folder)}
    command = [sys.executable, "-m", "SFRCore", "jobs", str(folder)]
    with FileLock(change_lock(folder)):
        done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == InputError.exit_code and "is being changed" in done.stderr
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "is being changed" not in done.stderr
