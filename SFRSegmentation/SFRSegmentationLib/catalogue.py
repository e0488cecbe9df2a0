"""What a run can be made of, read from the source files: importing them would need the worker's packages."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import SFRCore

_CORE = Path(SFRCore.__file__).parent
_METHOD = re.compile(r"^METHOD = ", re.MULTILINE)
_NAME = re.compile(r'^    name = "(\w+)"', re.MULTILINE)
_RECIPE = re.compile(r'^RECIPE = Recipe\(\s*"(\w+)",\s*((?:"[^"]*"\s*)+),', re.MULTILINE)
_ABOUT = re.compile(r'"""\s*([^"\n]+)')
_TEXT = re.compile(r'"([^"]*)"')


@cache
def recipes() -> dict[str, str]:
    """The recipes by name, each with its summary; ``sfr`` first."""
    found = {}
    for _path, text in _files("recipes"):
        match = _RECIPE.search(text)
        if match:
            found[match[1]] = "".join(_TEXT.findall(match[2]))
    return dict(sorted(found.items(), key=lambda item: (item[0] != "sfr", item[0])))


@cache
def methods() -> dict[str, str]:
    """The semi-supervised methods by name, each with the first line of its text; ``mean_teacher`` first."""
    found = {}
    for _path, text in _files("ssl"):
        name = _NAME.search(text)
        if name and _METHOD.search(text):
            about = _ABOUT.search(text)
            found[name[1]] = about[1] if about else name[1]
    return dict(sorted(found.items(), key=lambda item: (item[0] != "mean_teacher", item[0])))


@cache
def students() -> list[str]:
    """The student networks; ``vnet`` first."""
    found = [match[1] for _path, text in _files("students") if (match := _NAME.search(text))]
    return sorted(found, key=lambda name: (name != "vnet", name))


def _files(package: str) -> list[tuple[Path, str]]:
    paths = sorted((_CORE / package).glob("*.py"))
    return [
        (path, path.read_text(encoding="utf-8", errors="replace"))
        for path in paths
        if path.name != "__init__.py"
    ]
