"""One Slicer-like environment per process; every test starts with an empty scene and must end without a
complaint.
"""

import gc
import os
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Slicer puts the folder of each module on the path.
sys.path[:0] = [str(HERE), str(ROOT / "SFRSegmentation")]

import headless  # noqa: E402

environment = headless.start()

import slicer  # noqa: E402
from event_loop import said  # noqa: E402
from headless import qt_rules, scripted  # noqa: E402

MODULE = ROOT / "SFRSegmentation" / "SFRSegmentation.py"
started = environment.errors.drain()
if started:
    raise RuntimeError(f"the environment did not start cleanly: {started}")


def pytest_terminal_summary(terminalreporter):
    """What the tests measured, also where all of them passed."""
    if said:
        terminalreporter.section("measured")
        for text in said:
            terminalreporter.line(text)


@pytest.fixture(autouse=True)
def slicerState():
    """An empty scene before, and no VTK error, slot exception or Qt warning after the test."""
    slicer.mrmlScene.Clear(0)
    slicer.app.processEvents()
    for complaints in (environment.errors, qt_rules.slotErrors, qt_rules.qtMessages):
        complaints.clear()
    yield environment
    slicer.app.processEvents()
    assert qt_rules.slotErrors == []
    assert qt_rules.qtMessages == []
    assert environment.errors.drain() == []


@pytest.fixture(autouse=True)
def ownFolders(tmp_path_factory, monkeypatch):
    """Checkpoints, settings and caches of a test go to its own folder; no folder of the user is touched."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("SFR_CHECKPOINTS", str(home / "checkpoints"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    sys.modules["qt"].QSettings().clear()


@pytest.fixture
def waitFor():
    """waitFor(condition, seconds=10): let the event loop turn until the condition holds."""

    def wait(condition, seconds=10.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "timed out"
            slicer.app.processEvents()
            time.sleep(0.005)

    return wait


@pytest.fixture
def widget():
    """The module's panel, entered: made once, then reloaded for each test as the Reload button does."""
    name = MODULE.stem
    if name not in slicer.app.moduleManager().modulesNames():
        scripted.loadScriptedModule(str(MODULE))
        panel = slicer.util.getModuleWidget(name)
    else:
        slicer.util.reloadScriptedModule(name)
        panel = slicer.util.getModuleWidget(name)
    panel.parent.enter()
    yield panel
    panel = slicer.util.getModuleWidget(name)
    panel.logic.closeStudy()
    panel.parent.exit()


@pytest.fixture
def ownHeap():
    """For tests that measure: garbage is searched for only among what the test makes. VTK's wrappers and what
    earlier tests left are some 300,000 objects, and going through them takes 0.1 to 0.3 s at any moment.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def logic(widget):
    """The panel's logic."""
    return widget.logic


@pytest.fixture(scope="session")
def workerPython():
    """A Python that can compute (torch and the rest), named by SFR_PYTHON; without one the test skips."""
    python = os.environ.get("SFR_PYTHON") or str(ROOT / ".venv" / "bin" / "python")
    if not Path(python).exists():
        pytest.skip(f"needs a Python with torch for the worker: set SFR_PYTHON ({python} is not there)")
    return python
