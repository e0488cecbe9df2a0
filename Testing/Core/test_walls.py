"""What may import what, checked by importing with the rest blocked and by reading the source."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "SFRCore"
MODULES = sorted(PACKAGE.rglob("*.py"))
LIGHT_ROOTS = (
    "SFRCore",
    "SFRCore.errors",
    "SFRCore.study",
    "SFRCore.volumes",
    "SFRCore.runtime.files",
    "SFRCore.runtime.locks",
    "SFRCore.runtime.events",
    "SFRCore.runtime.jobs",
    "SFRCore.foundation.download",
    *(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for part in ("study", "volumes")
        for path in sorted((PACKAGE / part).glob("[!_]*.py"))
    ),
)
SHIPPED_BY_SLICER = {"numpy", "scipy", "SimpleITK", "requests", "pydicom", "packaging"}
BROUGHT_BY_REQUESTS = {"urllib3", "idna", "certifi", "charset_normalizer", "chardet"}
HEAVY = ("torch", "peft", "accelerate", "transformers", "typer", "rich", "safetensors", "matplotlib")
STAGES = {"finetune", "pseudolabel", "retrain", "predict", "evaluate"}
MEASURES_STAGES = "estimate.py"
AT_HOME = {
    "segment_anything": ("foundation",),
    "peft": ("foundation",),
    "transformers": (),
    "typer": ("cli",),
    "rich": ("cli",),
    "medpy": (),
}

IMPORT_WITH_THE_REST_BLOCKED = """
import importlib, json, sys
allowed, names = json.loads(sys.argv[1])
class Wall:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names and not top.startswith("_"):
            raise ImportError(f"{name} is not on a bare Slicer")
sys.meta_path.insert(0, Wall())
for name in names:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120
    )


def import_blocked(names: tuple[str, ...], allowed: set[str]) -> subprocess.CompletedProcess[str]:
    return run_python("-c", IMPORT_WITH_THE_REST_BLOCKED, json.dumps([sorted(allowed), names]))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth; ``from a import b`` gives a and a.b."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)


@pytest.fixture(scope="module")
def light_modules() -> set[str]:
    """What is in memory after the light parts were imported with everything else blocked."""
    result = import_blocked(LIGHT_ROOTS, {"SFRCore", *SHIPPED_BY_SLICER, *BROUGHT_BY_REQUESTS})
    assert result.returncode == 0, result.stderr
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_light_parts_import_on_a_bare_slicer(light_modules: set[str]) -> None:
    assert set(LIGHT_ROOTS) <= light_modules
    assert not {name.partition(".")[0] for name in light_modules} & set(HEAVY)


def test_light_parts_name_nothing_heavy_anywhere(light_modules: set[str]) -> None:
    """Not inside a function either: the panel runs these functions."""
    allowed = {"SFRCore", *SHIPPED_BY_SLICER, *sys.stdlib_module_names}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in MODULES
        if module_name(path) in light_modules
        for name in imported(path)
        if name.partition(".")[0] not in allowed
    ]
    assert not wrong


def test_the_wall_of_this_test_holds() -> None:
    result = import_blocked(("torch",), {"SFRCore", *SHIPPED_BY_SLICER})
    assert result.returncode == 1 and "torch is not on a bare Slicer" in result.stderr


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_knows_nothing_of_slicer(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imported(path)}
    assert not tops & {"slicer", "qt", "ctk", "vtk", "PythonQt", "SFRSegmentation", "SFRSegmentationLib"}


@pytest.mark.parametrize(
    "path",
    sorted(path for path in (PACKAGE / "stages").glob("*.py") if path.name != MEASURES_STAGES),
    ids=lambda path: path.name,
)
def test_stages_do_not_call_each_other(path: Path) -> None:
    others = {f"SFRCore.stages.{stage}" for stage in STAGES - {path.stem}}
    assert not others & set(imported(path))
    above = ("SFRCore.api", "SFRCore.cli", *(["SFRCore.recipes"] if path.stem in STAGES else []))
    assert not any(name.startswith(above) for name in imported(path))


@pytest.mark.parametrize("library", AT_HOME)
def test_a_library_is_used_where_it_belongs(library: str) -> None:
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in MODULES
        if any(name.partition(".")[0] == library for name in imported(path))
    }
    assert users <= set(AT_HOME[library])


def test_command_line_starts_without_anything_heavy() -> None:
    show = "import sys, SFRCore.cli; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    result = run_python("-c", show)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert "typer" in loaded
    assert not loaded & {"torch", "peft", "matplotlib", "scipy", "SimpleITK", "numpy", "requests"}


@pytest.mark.parametrize("missing", [("torch", "accelerate"), ("accelerate",)])
def test_doctor_works_where_packages_are_missing(missing: tuple[str, ...]) -> None:
    program = """
import json, sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1:]:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Wall())
from SFRCore import api
print(json.dumps(api.doctor()["devices"]))
"""
    result = run_python("-c", program, *missing)
    assert result.returncode == 0, result.stderr
    devices = json.loads(result.stdout.splitlines()[-1])
    if "torch" in missing:
        assert devices == []
    else:
        assert devices and not any("chosen" in device for device in devices)


def test_scan_sees_relative_and_nested_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "SFRCore" / "stages" / "finetune.py"
    file.parent.mkdir(parents=True)
    file.write_text("from . import retrain\nfrom ..recipes import sfr\ndef f():\n    import vtk.util\n")
    assert {"SFRCore.stages.retrain", "SFRCore.recipes.sfr", "vtk.util"} <= set(imported(file))


def test_extension_description_agrees_with_cmake() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    variables = dict(re.findall(r'^set\(EXTENSION_(\w+) "(.*)"\)$', cmake, re.MULTILINE))
    lines = (ROOT / "SFR.s4ext").read_text(encoding="utf-8").splitlines()
    entry = {key: rest for key, _, rest in (line.partition(" ") for line in lines if line and line[0] != "#")}
    for key in (
        "homepage",
        "category",
        "contributors",
        "description",
        "iconurl",
        "depends",
        "screenshoturls",
    ):
        assert entry[key] == variables[key.upper()], key
    assert "project(SFR)" in cmake and ";" not in variables["DESCRIPTION"]
