"""What pip is asked to do so that the right packages come to lie in a folder of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from .pip_process import Check, PipError, Say, pip_environment, pip_version, run_pip
from .requirements import constraints_of_slicer
from .torch_build import TorchBuild

_TORCH = ("torch", "torchvision")


def fill(
    work: Path,
    requirements: list[Requirement],
    build: TorchBuild,
    *,
    python: str,
    wheels: Path | None,
    say: Say,
    check: Check,
) -> Path:
    """Install everything into ``packages`` within the folder ``work``, and return it.

    The versions are pinned to those that this Python ships; where that has no solution, once more without.
    The arguments, and what is raised, are those of ``installation.install``.
    """
    temporary = work / "tmp"
    temporary.mkdir()
    env = pip_environment(temporary)
    version = pip_version(python, env)
    common = ["--only-binary=:all:", "--no-cache-dir", *_source(wheels)]
    # A bar drawn with carriage returns is no line; "raw" is one, and pip has it since 24.1.
    common += ["--progress-bar", "raw" if version >= (24, 1) else "off"]
    wanted = [str(requirement) for requirement in requirements]
    pins = constraints_of_slicer(requirements)
    torch_pins: list[str] = []
    extra: list[str] = []
    if wheels is None and build.indexes:
        torch_pins, extra = _torch_of(build, requirements, python, env, work, say, check)
    for attempt in ([*pins, *torch_pins], torch_pins):
        constraints = work / "constraints.txt"
        constraints.write_text("\n".join(attempt) + "\n", encoding="utf-8")
        target = ["--target", str(work / "packages"), "--constraint", str(constraints)]
        try:
            run_pip(python, ["install", *common, *extra, *target, *wanted], env, say, check)
            break
        except PipError as error:
            if not error.retry or not pins or attempt == torch_pins:
                raise
            say("With the versions that Slicer ships this cannot be solved: trying without them.")
            shutil.rmtree(work / "packages", ignore_errors=True)
    return work / "packages"


def _source(wheels: Path | None) -> list[str]:
    return [] if wheels is None else ["--no-index", "--find-links", str(wheels)]


def _torch_of(
    build: TorchBuild,
    requirements: list[Requirement],
    python: str,
    env: dict[str, str],
    work: Path,
    say: Say,
    check: Check,
) -> tuple[list[str], list[str]]:
    """Pins to the newest torch and torchvision of the first index that has them, and the index as an option.

    With two indexes pip takes the higher version of either, which may be the other build: hence the pins.
    """
    wanted = [str(requirement) for requirement in requirements if requirement.name in _TORCH]
    report = work / "report.json"
    for index in build.indexes:
        say(f"Looking for PyTorch in {index}")
        options = ["--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
        try:
            run_pip(
                python,
                ["install", *options, "--quiet", "--report", str(report), "--index-url", index, *wanted],
                env,
                say,
                check,
            )
        except PipError as error:
            if not error.retry or index == build.indexes[-1]:
                raise
            continue
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        named = [entry["metadata"] for entry in found["install"]]
        return [f"{entry['name']}=={entry['version']}" for entry in named], ["--extra-index-url", index]
    raise AssertionError("a build has at least one index here")
