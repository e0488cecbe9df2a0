"""Starting the worker: which Python, which environment, and the words of its command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import slicer

import SFRCore
from SFRCore.runtime.jobs import Job

from .chores import Chore
from .places import packages_folder
from .worker_python import WorkerPython, applied, find_worker_python, worker_environment

COMMANDS = ("run", "finetune", "pseudolabel", "retrain", "predict")


def worker_changes(worker: WorkerPython) -> dict[str, str | None]:
    """How the worker's environment differs from Slicer's, for the interpreter that was found. SFR_PACKAGES
    tells the worker which folder is not to be replaced while it runs.
    """
    if worker.own:
        return worker_environment(worker, None, startup=slicer.util.startupEnvironment())
    folder = packages_folder()
    return {**worker_environment(worker, folder), "SFR_PACKAGES": str(folder)}


def start_job(study_root: Path | str, command: str, options: Mapping[str, Any]) -> Job:
    """Start ``sfr COMMAND STUDY`` with ``options`` (names as in SFRCore.settings.Settings) in the background.

    Raises InputError where the study has a running job or the interpreter cannot be started.
    """
    return start_words(study_root, [command, str(study_root), *words_of(options)])


def start_words(study_root: Path | str, words: Sequence[str]) -> Job:
    """Start a job by the words of its command line, as ``start_job``."""
    worker = find_worker_python()
    return Job.start(study_root, words, python=worker.program, env=worker_changes(worker))


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options as the words of a command line: ``{"iterations_retrain": 5}`` as ``--iterations-retrain 5``.

    True gives the bare flag, None and False give nothing, a sequence of numbers is written 96,96,64 and a
    mapping (``method_options``, ``recipe_options``) once for each NAME=VALUE.
    """
    words: list[str] = []
    for name, value in options.items():
        if name == "fast":
            name, value = "dense", not value
        if value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        if value is True:
            words.append(flag)
        elif isinstance(value, Mapping):
            one = flag.removesuffix("s")  # --method-option, --recipe-option
            for key, part in value.items():
                words += [one, f"{key}={_text(part)}"]
        else:
            words += [flag, _text(value)]
    return words


def _text(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, (list, tuple)) else str(value)


def start_command(words: Sequence[str]) -> Chore:
    """Start ``sfr WORDS --json`` by the worker's Python; ``result`` is then the document that it prints.

    Raises InputError where the interpreter is not found or cannot be started.
    """
    worker = find_worker_python()
    env = applied(worker_changes(worker))
    core = str(Path(SFRCore.__file__).resolve().parents[1])
    env["PYTHONPATH"] = os.pathsep.join([*([env["PYTHONPATH"]] if env.get("PYTHONPATH") else []), core])
    return Chore(words[0], [worker.program, "-m", "SFRCore", *words, "--json"], env, json_lines=False)
