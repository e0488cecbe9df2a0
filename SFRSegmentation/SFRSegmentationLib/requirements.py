"""What the worker needs, and what of it lies whole in a folder of packages."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

REQUIREMENTS_FILE = Path(__file__).resolve().parents[1] / "Resources" / "requirements.txt"
"""A mirror of the dependencies in pyproject.toml, which is not part of an installed extension."""


@dataclass(frozen=True)
class Gap:
    """A package that is missing (``found`` is None) or too old or new.

    ``asked_by`` is the package that needs it, or empty where SFR itself does.
    """

    requirement: str
    found: str | None
    asked_by: str = ""

    def __str__(self) -> str:
        return self.requirement if self.found is None else f"{self.requirement} (there is {self.found})"


def load_requirements(path: Path = REQUIREMENTS_FILE) -> list[Requirement]:
    """The requirements in a file, one a line; blank lines and comments are left out."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def installed_versions(folder: Path) -> dict[str, str]:
    """Name and version of every package in ``folder``, by normalised name."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions(path=[str(folder)]):
        name, version = distribution.metadata["Name"], distribution.metadata["Version"]
        if name and version:
            found[canonicalize_name(name)] = version
    return found


def find_gaps(folder: Path, requirements: list[Requirement]) -> list[Gap]:
    """What ``folder`` lacks of the requirements and of all that they need in turn. Starts no process."""
    there = {
        canonicalize_name(name): distribution
        for distribution in importlib.metadata.distributions(path=[str(folder)])
        if (name := distribution.metadata["Name"])
    }
    gaps: list[Gap] = []
    waiting = [(requirement, "") for requirement in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, asked_by = waiting.pop()
        if not _applies(requirement):
            continue
        name = canonicalize_name(requirement.name)
        distribution = there.get(name)
        version = None if distribution is None else distribution.metadata["Version"]
        if distribution is None or version is None or not _satisfies(version, requirement):
            gaps.append(Gap(_short(requirement), version, asked_by))
            continue
        key = (name, frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            waiting += [(child, name) for child in _children(distribution, requirement.extras)]
    return sorted(set(gaps), key=lambda gap: (gap.asked_by, gap.requirement))


def incomplete_packages(folder: Path) -> list[str]:
    """Packages of which a file is gone or has another size than was installed. Looks at every file."""
    wrong = []
    for distribution in importlib.metadata.distributions(path=[str(folder)]):
        for entry in distribution.files or []:
            path = folder / entry
            # Scripts lie elsewhere under --target, and byte code comes and goes.
            if entry.parts[0] == ".." or entry.suffix == ".pyc":
                continue
            try:
                whole = entry.size is None or path.stat().st_size == entry.size
            except OSError:
                whole = False
            if not whole:
                wrong.append(distribution.metadata["Name"] or path.parts[-1])
                break
    return sorted(wrong)


def constraints_of_slicer(requirements: list[Requirement]) -> list[str]:
    """Pins to the versions that this Python ships, for the required packages that it ships and that suit."""
    pins = []
    for requirement in requirements:
        try:
            version = importlib.metadata.version(requirement.name)
            published = not Version(version).local and not Version(version).is_devrelease
        except (importlib.metadata.PackageNotFoundError, InvalidVersion, TypeError):
            continue
        if published and _satisfies(version, requirement):
            pins.append(f"{requirement.name}=={version}")
    return pins


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _satisfies(version: str, requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False


def _short(requirement: Requirement) -> str:
    return f"{requirement.name}{requirement.specifier}"


def _children(distribution: importlib.metadata.Distribution, extras: set[str]) -> list[Requirement]:
    children = []
    for text in distribution.requires or []:
        try:
            child = Requirement(text)
        except InvalidRequirement:
            continue
        wanted = [{"extra": extra} for extra in ("", *extras)]
        if child.marker is None or any(child.marker.evaluate(environment) for environment in wanted):
            child.marker = None
            children.append(child)
    return children
