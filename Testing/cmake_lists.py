"""The files that CMakeLists.txt of the extension name: ``python Testing/cmake_lists.py`` writes them anew.

Slicer's build packs only files that are named, and silently leaves out the others; a test compares the lists
with what lies on the disk.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTS = {
    "SFRCore": ("SFRCore_SCRIPTS", "SFRCore_RESOURCES"),
    "SFRSegmentation": ("MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES"),
}
"""For each folder the variable of its scripts and the one of everything else."""

_LEFT_OUT = ("__pycache__", "CMakeLists.txt")


def on_disk(folder: str) -> dict[str, list[str]]:
    """The files of a folder by variable, sorted, as paths relative to it."""
    home = ROOT / folder
    files = sorted(
        path.relative_to(home).as_posix()
        for path in home.rglob("*")
        if path.is_file() and not any(part in _LEFT_OUT or part.startswith(".") for part in path.parts[-3:])
    )
    scripts, others = LISTS[folder]
    return {
        scripts: [name for name in files if name.endswith(".py")],
        others: [name for name in files if not name.endswith(".py")],
    }


def in_cmake(folder: str) -> dict[str, list[str]]:
    """The files that the folder's CMakeLists.txt names, by variable."""
    text = (ROOT / folder / "CMakeLists.txt").read_text(encoding="utf-8")
    return {name: re.findall(r"[^\s()]+", _block(text, name)[1]) for name in LISTS[folder]}


def write(folder: str) -> None:
    """Bring the lists of a folder's CMakeLists.txt to what lies on the disk."""
    path = ROOT / folder / "CMakeLists.txt"
    text = path.read_text(encoding="utf-8")
    for name, files in on_disk(folder).items():
        whole, _ = _block(text, name)
        text = text.replace(whole, f"set({name}\n" + "".join(f"  {file}\n" for file in files) + ")")
    path.write_text(text, encoding="utf-8")


def _block(text: str, name: str) -> tuple[str, str]:
    found = re.search(rf"set\({name}\b([^)]*)\)", text)
    if found is None:
        raise ValueError(f"no set({name} …) in the CMakeLists.txt")
    return found[0], found[1]


if __name__ == "__main__":
    for each in LISTS:
        write(each)
