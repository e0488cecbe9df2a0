"""What an installed extension holds: the CMake build with stand-ins for Slicer's macros, metadata, icons."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = "lib/Slicer-5.12/qt-scripted-modules"
sys.path.insert(0, str(ROOT / "Testing"))

import cmake_lists  # noqa: E402

cmake_here = pytest.mark.skipif(
    shutil.which("cmake") is None or not any(map(shutil.which, ("cc", "gcc", "clang"))),
    reason="needs cmake and a C compiler, which CMake asks for at project()",
)


def metadata() -> dict[str, str]:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return dict(re.findall(r'^set\(EXTENSION_(\w+) "(.*)"\)$', text, re.MULTILINE))


@pytest.mark.parametrize("folder", cmake_lists.LISTS)
def test_every_file_is_named_in_cmake(folder):
    """A file that is not named is left out of the package without a word."""
    assert cmake_lists.in_cmake(folder) == cmake_lists.on_disk(folder), "python Testing/cmake_lists.py"


def test_lists_are_written_from_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(cmake_lists, "ROOT", tmp_path)
    home = tmp_path / "SFRCore"
    (home / "part" / "__pycache__").mkdir(parents=True)
    for name in ("a.py", "part/b.py", "py.typed", "part/__pycache__/b.pyc", ".hidden"):
        (home / name).write_text("")
    (home / "CMakeLists.txt").write_text("set(SFRCore_SCRIPTS gone.py)\nset(SFRCore_RESOURCES\n)\nother(1)\n")
    cmake_lists.write("SFRCore")
    assert cmake_lists.in_cmake("SFRCore") == {
        "SFRCore_SCRIPTS": ["a.py", "part/b.py"], "SFRCore_RESOURCES": ["py.typed"]
    }  # fmt: skip
    assert (home / "CMakeLists.txt").read_text().endswith("other(1)\n")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """Folders of the build and of the installation."""
    build, installed = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("installed")
    options = [
        f"-DSlicer_DIR={ROOT / 'Testing' / 'Slicer' / 'cmake'}", f"-DCMAKE_INSTALL_PREFIX={installed}",
        "-DBUILD_TESTING=ON", "-DCMAKE_C_COMPILER_FORCED=1", "-DCMAKE_CXX_COMPILER_FORCED=1",
    ]  # fmt: skip
    env = {**os.environ, "SFR_TEST_PACKAGES": str(build)}
    for words in (
        ["-S", str(ROOT), "-B", str(build), *options],
        ["--build", str(build)],
        ["--install", str(build)],
    ):
        done = subprocess.run(["cmake", *words], capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build, installed


@cmake_here
@pytest.mark.parametrize("tree", [0, 1], ids=["build", "installed"])
def test_all_files_land_where_slicer_looks_for_them(built, tree):
    home = built[tree] / MODULES
    for folder, lands in (("SFRCore", home / "SFRCore"), ("SFRSegmentation", home)):
        for names in cmake_lists.in_cmake(folder).values():
            assert len(names) > 0 and [name for name in names if not (lands / name).is_file()] == []
    # Every .py at the top of a module path is taken for a module.
    assert [path.name for path in home.glob("*.py")] == ["SFRSegmentation.py"]
    assert not (home / "__init__.py").exists() and not (ROOT / "SFRSegmentation" / "__init__.py").exists()


@cmake_here
def test_the_installed_extension_imports_and_knows_its_requirements(built):
    """As Slicer does: the folder of modules is on sys.path, nothing else of SFR."""
    home = built[1] / MODULES
    show = (
        "import SFRCore, SFRCore.study, SFRCore.volumes, SFRCore.runtime.jobs\n"
        "from SFRSegmentationLib import chores, requirements\n"
        "print(SFRCore.__file__, chores._MODULE_FOLDER, len(requirements.load_requirements()))\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", show],
        env={**env, "PYTHONPATH": str(home)},
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(home / "SFRCore" / "__init__.py"), str(home), "15"]


@cmake_here
def test_tests_are_registered(built):
    listed = subprocess.run(["ctest", "-N"], cwd=built[0], capture_output=True, text=True, check=True).stdout
    for name in (
        "py_nomainwindow_qSlicerSFRSegmentationModuleGenericTest",
        "py_SFRSegmentation",
        "py_run_in_slicer",
    ):
        assert name in listed


def test_the_source_tree_needs_no_installation():
    """As an additional module path only the module's folder is on sys.path: the module adds its parent."""
    text = (ROOT / "SFRSegmentation" / "SFRSegmentation.py").read_text(encoding="utf-8")
    assert 'find_spec("SFRCore") is None' in text
    assert re.search(r"class SFRSegmentation\(ScriptedLoadableModule\)", text)
    program = text[text.index("HERE =") : text.index("class SFRSegmentation(")]
    begin = "import importlib.util, sys\nfrom pathlib import Path\n__file__ = sys.argv[1]\n"
    show = f"{begin}{program}\nimport SFRCore\n"
    module = ROOT / "SFRSegmentation" / "SFRSegmentation.py"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", show, str(module)], env=env, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_metadata_of_the_catalogue():
    entry = json.loads((ROOT / "SFR.json").read_text(encoding="utf-8"))
    allowed = {"$schema", "build_dependencies", "build_subdirectory", "category", "scm_revision", "scm_type",
               "scm_url", "tier", "enabled", "dicom_support_rule"}  # fmt: skip
    assert set(entry) <= allowed and {"$schema", "category", "scm_url"} <= set(entry)
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.2.json#")
    values = metadata()
    assert entry["category"] == values["CATEGORY"]
    assert entry["scm_url"] == values["HOMEPAGE"] + ".git" and entry["scm_url"].startswith("https://")
    assert (ROOT / "LICENSE").is_file() and values["CONTRIBUTORS"] == "SFR contributors"
    assert b"\r" not in (ROOT / "SFR.json").read_bytes()
    assert "project(SFR)" in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def test_pictures_of_the_catalogue_are_in_the_repository():
    """The index asks for an icon and one screenshot or more, by addresses that lead to files of it."""
    values = metadata()
    raw = values["HOMEPAGE"].replace("github.com", "raw.githubusercontent.com") + "/main/"
    assert values["SCREENSHOTURLS"]
    for address in (values["ICONURL"], *values["SCREENSHOTURLS"].split()):
        assert address.startswith(raw) and (ROOT / address.removeprefix(raw)).is_file(), address


def test_one_address_everywhere():
    """The repository's address is a placeholder until it is known: it is changed by replacing one string."""
    home = metadata()["HOMEPAGE"]
    owner = home.removeprefix("https://github.com/")
    places = ["CMakeLists.txt", "SFR.s4ext", "SFR.json", "README.md", "SFRSegmentation/SFRSegmentation.py"]
    places += [str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")]
    for place in places:
        text = (ROOT / place).read_text(encoding="utf-8")
        for found in re.findall(r"(?:github\.com|githubusercontent\.com)/([\w.-]+/Slicer[\w-]+)", text):
            assert found in (owner, "Slicer/Slicer"), place


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("SFR.png", (128, 128)),
        ("SFRSegmentation/Resources/Icons/SFRSegmentation.png", (128, 128)),
        ("SFRSegmentation/Resources/Icons/SFRInvented.png", (260, 280)),
        ("SFRSegmentation/Resources/Icons/SFRLeftAtrium.png", (260, 280)),
    ],
)
def test_icons_have_the_size_that_is_asked_for(path, size):
    data = (ROOT / path).read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == size
    assert len(data) < 100_000


def test_the_script_for_a_real_slicer_explains_itself():
    script = ROOT / "Testing" / "run-in-slicer"
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Testing/run-in-slicer /path/to/Slicer" in done.stderr
    compile((ROOT / "Testing" / "run_in_slicer.py").read_text(encoding="utf-8"), "run_in_slicer.py", "exec")
