"""The worker's packages in a private folder: what is there, how they get there, and how they go.

They are installed by ``pip install --target`` into a folder of their own, which stands first on the worker's
PYTHONPATH and which Slicer itself never sees: nothing of Slicer's is replaced, nothing has to be restarted,
and removing the folder removes everything. ``--target`` installs every package again, also those that Slicer
ships (numpy, scipy, SimpleITK, requests, pydicom, packaging; about 0.5 GB on the disk). That is kept so on
purpose: another extension that changes Slicer's packages cannot break the worker. The versions are pinned to
the ones that Slicer ships wherever these are new enough, so that panel and worker read and write with the
same libraries; only where pip finds no solution that way are the pins dropped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

import SFRCore
from SFRCore.errors import DiskFull, InputError, SFRError
from SFRCore.runtime.files import free_space, process_mark, read_json, sweep_temporary, write_json
from SFRCore.runtime.leases import change_lock, refuse_users
from SFRCore.runtime.locks import FileLock, is_held

from .pip_process import Check, PipError, Say
from .pip_target import fill
from .requirements import Gap, find_gaps, incomplete_packages, installed_versions
from .torch_build import TorchBuild

State = Literal["missing", "installing", "outdated", "broken", "ready"]

RECORD = "sfr-installation.json"


@dataclass(frozen=True)
class Installation:
    """How a private folder stands, with what it lacks and the build of PyTorch in it.

    ``missing``: nothing is there; ``installing``: a process is at it; ``outdated``: made for other
    requirements; ``broken``: begun and not ended, or damaged since; ``ready``.
    """

    folder: Path
    state: State
    gaps: tuple[Gap, ...] = ()
    build: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def examine(folder: Path, requirements: list[Requirement]) -> Installation:
    """How the private folder stands, from what its packages say of themselves; a few milliseconds each."""
    if _is_being_changed(folder):
        return Installation(folder, "installing")
    if not folder.is_dir() or not any(folder.iterdir()):
        return Installation(folder, "missing", tuple(find_gaps(folder, requirements)))
    gaps = tuple(find_gaps(folder, requirements))
    versions = installed_versions(folder)
    try:
        record = read_json(folder / RECORD)
        build, was_for = str(record["build"]), sorted(record["requirements"])
    except (SFRError, KeyError, TypeError):
        return Installation(folder, "broken", gaps, versions=versions)
    if not gaps:
        return Installation(folder, "ready", build=build, versions=versions)
    other = was_for != sorted(map(str, requirements))
    return Installation(folder, "outdated" if other else "broken", gaps, build, versions)


def fingerprint(folder: Path) -> tuple[int, int, bool]:
    """Changes whenever ``examine`` may say something else; quick enough to be asked at every turn."""
    times = [path.stat().st_mtime_ns if path.exists() else 0 for path in (folder, folder / RECORD)]
    return times[0], times[1], _is_being_changed(folder)


def space_needed(build: TorchBuild, wheels: Path | None) -> int:
    """Bytes that an installation takes while it runs: the packages, and what is downloaded on the way."""
    if wheels is None:
        return build.disk + build.download
    total = 0
    for path in wheels.glob("*.whl"):
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            total += sum(entry.file_size for entry in archive.infolist())
    return total


def install(
    folder: Path,
    requirements: list[Requirement],
    build: TorchBuild,
    *,
    python: str,
    wheels: Path | None = None,
    say: Say = lambda line: None,
    check: Check = lambda: None,
) -> Installation:
    """Install the requirements into ``folder``, in place of what is there; whole or not at all.

    ``wheels`` is a folder of wheels to use instead of the network. ``say`` gets pip's lines; what ``check``
    raises ends it, with nothing left behind. Raises InputError (no pip, no wheels, folder not writable, used
    by a job, installed at the same time by another Slicer), DiskFull, PipError.
    """
    if wheels is not None and not any(wheels.glob("*.whl")):
        raise InputError(
            f"{wheels} holds no packages (files ending in .whl).",
            hint="Choose the folder into which they were downloaded.",
        )
    with _own(folder):
        needed = space_needed(build, wheels)
        if free_space(folder) < needed:
            raise DiskFull(
                f"There is not enough room for the packages: {needed / 1e9:.1f} GB are needed in "
                f"{folder.parent}, {free_space(folder) / 1e9:.1f} GB are free.",
                hint="Free some space, or name another folder with the variable SFR_DATA.",
            )
        work = _temporary(folder, "new")
        try:
            finished = fill(work, requirements, build, python=python, wheels=wheels, say=say, check=check)
            _verify(finished, requirements)
            record = {
                "sfr": SFRCore.__version__,
                "python": sys.version.split()[0],
                "build": build.name,
                "requirements": [str(requirement) for requirement in requirements],
                "time": time.time(),
            }
            write_json(finished / RECORD, record)
            check()
            _put_in_place(finished, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        say(f"Installed in {folder}.")
    return examine(folder, requirements)


def remove(folder: Path) -> int:
    """Remove the packages, also those of half-ended installations; returns the bytes that were freed.

    Raises InputError where a running job or another Slicer uses them.
    """
    if not folder.exists():
        return 0
    with _own(folder):
        size = folder_size(folder)
        gone = _temporary(folder, "old")
        _rename(folder, gone / "packages")
        shutil.rmtree(gone, ignore_errors=True)
    return size


def anything_to_remove(folder: Path) -> bool:
    """Whether ``remove`` would find something, here or of another version of Python."""
    return folder.exists() or bool(other_installations(folder))


def other_installations(folder: Path) -> list[Path]:
    """Private folders of other versions of Python, left by an earlier Slicer."""
    if not folder.parent.is_dir():
        return []
    return sorted(p for p in folder.parent.iterdir() if p != folder and (p / RECORD).is_file())


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if not p.is_dir())


@contextlib.contextmanager
def _own(folder: Path) -> Iterator[None]:
    """The right to change the folder, and no rest of a killed installation beside it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder.parent):
            pass
    except OSError as error:
        raise InputError(
            f"The folder {folder.parent} for the packages cannot be written.",
            hint="Name another one with the variable SFR_DATA and start Slicer again.",
        ) from error
    with FileLock(change_lock(folder), timeout=1.0, purpose="installation of SFR's packages"):
        refuse_users(folder)
        sweep_temporary(folder.parent)
        yield


def _is_being_changed(folder: Path) -> bool:
    try:
        return is_held(change_lock(folder))
    except InputError:  # a drive without locks: that is said when something is to be installed
        return False


def _temporary(folder: Path, what: str) -> Path:
    """A new folder beside ``folder``, on the same disk, that a later sweep knows by its name."""
    count = {"new": 0, "old": 1}[what]
    path = folder.with_name(f".{folder.name}.sfr-tmp-{process_mark()}n{count}")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


def _verify(packages: Path, requirements: list[Requirement]) -> None:
    gaps, spoilt = find_gaps(packages, requirements), incomplete_packages(packages)
    if gaps or spoilt:
        names = ", ".join([*map(str, gaps), *spoilt])
        raise PipError(f"The installation is not complete: {names}.", hint="Install again.")


def _put_in_place(finished: Path, folder: Path) -> None:
    if folder.exists():
        gone = _temporary(folder, "old")
        _rename(folder, gone / "packages")
        try:
            _rename(finished, folder)
        except BaseException:
            os.replace(gone / "packages", folder)
            raise
        shutil.rmtree(gone, ignore_errors=True)
    else:
        _rename(finished, folder)


def _rename(source: Path, target: Path) -> None:
    """Rename a folder; on Windows a virus scanner may hold a file for a moment, a running job for longer."""
    for wait in (0.2, 0.5, 1.0, 2.0, 0.0):
        try:
            os.replace(source, target)
            return
        except OSError as error:
            if os.name != "nt" or not wait:
                raise InputError(
                    f"{source} cannot be replaced: a job may be using it.",
                    hint="Wait until running jobs are done, or cancel them, and try again.",
                ) from error
            time.sleep(wait)
