"""The Python that computes: which one it is, and the environment it is started in."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from SFRCore.errors import InputError

_OF_SLICER = ("PYTHONHOME", "PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONSTARTUP")


@dataclass(frozen=True)
class WorkerPython:
    """An interpreter; ``own`` where the user named it with SFR_PYTHON: nothing is installed for it."""

    program: str
    own: bool = False


def find_slicer_python() -> str:
    """Slicer's interpreter, without the launcher where possible: a killed launcher would leave it running.

    Outside Slicer, and in PythonSlicer, it is the running one. Raises InputError where there is none.
    """
    for name in ("python-real", "PythonSlicer"):
        found = shutil.which(name)
        if found:
            return found
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable
    raise InputError(
        "Slicer's own Python (python-real, PythonSlicer) was not found.",
        hint="Repair or reinstall Slicer, or name an interpreter with the variable SFR_PYTHON.",
    )


def find_worker_python() -> WorkerPython:
    """SFR_PYTHON where it is set, else Slicer's. Raises InputError where neither can be started."""
    named = os.environ.get("SFR_PYTHON")
    if not named:
        return WorkerPython(find_slicer_python())
    found = shutil.which(str(Path(named).expanduser()))
    if found is None:
        raise InputError(
            f"SFR_PYTHON names {named}, which is not a program.",
            hint="Correct the variable, or remove it to use Slicer's own Python, and start Slicer again.",
        )
    return WorkerPython(found, own=True)


def python_tag() -> str:
    """Python version and platform, as ``cp312-linux_x86_64``: packages of one do not suit another."""
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return f"cp{sys.version_info.major}{sys.version_info.minor}-{platform}"


def worker_environment(
    worker: WorkerPython,
    packages: Path | None,
    *,
    startup: Mapping[str, str] | None = None,
) -> dict[str, str | None]:
    """What the worker's environment has otherwise than this process's; None removes a variable.

    Slicer's Python keeps PYTHONHOME and the library paths that Slicer made, gets ``packages`` (the private
    folder) first on PYTHONPATH, and never sees the user's site-packages. A Python of the user's own gets
    nothing of Slicer's: its environment is ``startup``, the one that Slicer was started in
    (``slicer.util.startupEnvironment()``), or without it this one less Python's variables.
    Meant for ``SFRCore.runtime.jobs.Job.start(env=…)``, which adds the folder of SFRCore.
    """
    changes: dict[str, str | None] = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    if worker.own:
        if startup is not None:
            changes.update({name: startup.get(name) for name in os.environ if name not in startup})
            changes.update({name: value for name, value in startup.items() if os.environ.get(name) != value})
        changes.update(dict.fromkeys(_OF_SLICER))
        return changes
    inherited = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    first = [str(packages)] if packages is not None else []
    changes["PYTHONPATH"] = os.pathsep.join([*first, *(part for part in inherited if part not in first)])
    changes["PYTHONNOUSERSITE"] = "1"
    return changes


def applied(changes: Mapping[str, str | None]) -> dict[str, str]:
    """This process's environment with ``changes`` made."""
    merged = {**os.environ, **changes}
    return {name: value for name, value in merged.items() if value is not None}
