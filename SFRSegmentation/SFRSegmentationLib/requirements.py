"""What the worker needs, and what of it lies whole in a folder of packages."""

from __future__ import annotations

import contextlib
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


@dataclass(frozen=True)
class _Package:
    version: str
    requires: tuple[str, ...]


def load_requirements(path: Path = REQUIREMENTS_FILE) -> list[Requirement]:
    """The requirements in a file, one a line; blank lines and comments are left out."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def installed_versions(folder: Path) -> dict[str, str]:
    """Name and version of every package in ``folder``, by normalised name."""
    return {name: package.version for name, package in _packages(folder).items()}


def find_gaps(folder: Path, requirements: list[Requirement]) -> list[Gap]:
    """What ``folder`` lacks of the requirements and of all that they need in turn. Starts no process."""
    there = _packages(folder)
    gaps: set[Gap] = set()
    waiting = [(requirement, "") for requirement in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, asked_by = waiting.pop()
        if not _applies(requirement):
            continue
        name = canonicalize_name(requirement.name)
        package = there.get(name)
        if package is None or not _satisfies(package.version, requirement):
            found = None if package is None else package.version
            gaps.add(Gap(f"{requirement.name}{requirement.specifier}", found, asked_by))
            continue
        key = (name, frozenset(requirement.extras))
        if key not in seen:
            seen.add(key)
            waiting += [(child, name) for child in _children(package, requirement.extras)]
    return sorted(gaps, key=lambda gap: (gap.asked_by, gap.requirement))


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


def _packages(folder: Path) -> dict[str, _Package]:
    """Every package in ``folder`` by normalised name, from the heads of their descriptions.

    importlib.metadata would parse the whole of each several times, which takes too long for the panel.
    """
    found: dict[str, _Package] = {}
    for path in folder.glob("*.dist-info/METADATA"):
        fields: dict[str, list[str]] = {"name": [], "version": [], "requires-dist": []}
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                if not line.strip():
                    break
                field, _, value = line.partition(":")
                if field.lower() in fields:
                    fields[field.lower()].append(value.strip())
        if fields["name"] and fields["version"]:
            package = _Package(fields["version"][0], tuple(fields["requires-dist"]))
            found[canonicalize_name(fields["name"][0])] = package
    return found


def _children(package: _Package, extras: set[str]) -> list[Requirement]:
    children = []
    for text in package.requires:
        if not extras and "extra ==" in text:
            continue
        try:
            child = Requirement(text)
        except InvalidRequirement:
            continue
        wanted = [{"extra": extra} for extra in ("", *extras)]
        if child.marker is None or any(child.marker.evaluate(environment) for environment in wanted):
            child.marker = None
            children.append(child)
    return children
