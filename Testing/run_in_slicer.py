"""Inside a real Slicer: the test bodies of Testing/Slicer, with Slicer itself in place of the harness.

Started by Testing/run-in-slicer, or by ctest of the extension's build; the arguments go to pytest. The tests'
conftest asks a module ``headless`` for the environment: here that is this file, which has the few names that
the conftest uses. Tests of the harness itself are left out.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer

_ERROR = 0x40
"""ctkErrorLogLevel::Error; the levels above are worse."""

TESTS = Path(__file__).resolve().parent / "Slicer"


class Complaints(list):
    """What went wrong silently since the last look."""

    def drain(self) -> list[Any]:
        """Give what is there, and forget it."""
        found = list(self)
        self.clear()
        return found


class Environment:
    """Slicer, as the conftest knows the harness: ``errors`` are VTK's, seen in Slicer's own error log."""

    def __init__(self) -> None:
        self.errors = Complaints()
        log = slicer.app.errorLogModel()
        if log is not None:
            log.connect("entryAdded(ctkErrorLogLevel::LogLevel)", self._note)

    def _note(self, level: int) -> None:
        if level >= _ERROR and not _python_said_it():
            self.errors.append(f"an error of level {level} in Slicer's error log")


def _python_said_it() -> bool:
    """Python's own errors reach the tests in another way."""
    return bool(qt_rules.slotErrors)


def _load(path: str) -> None:
    """Load the module where Slicer has not done so, as for an additional module path it has."""
    name = Path(path).stem
    if not hasattr(slicer.modules, name.lower()):
        factory = slicer.app.moduleManager().factoryManager()
        factory.registerModule(path)
        factory.loadModules([name])


qt_rules = types.SimpleNamespace(slotErrors=Complaints(), qtMessages=Complaints())
scripted = types.SimpleNamespace(loadScriptedModule=_load)


def _note_exceptions(kind: type, value: BaseException, trace: Any) -> None:
    qt_rules.slotErrors.append(value)
    sys.__excepthook__(kind, value, trace)


def _needs_harness(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return "import headless" in text or "from headless" in text


def main(arguments: list[str]) -> int:
    """Run pytest; returns its exit code."""
    packages = os.environ.get("SFR_TEST_PACKAGES")
    if packages:
        sys.path.insert(0, packages)
    import pytest

    start: Callable[[], Environment] = Environment
    sys.modules["headless"] = types.ModuleType("headless")
    vars(sys.modules["headless"]).update(start=start, qt_rules=qt_rules, scripted=scripted)
    sys.excepthook = _note_exceptions
    left_out = [f"--ignore={path}" for path in sorted(TESTS.glob("test_*.py")) if _needs_harness(path)]
    for name in left_out:
        print(f"left out, for the harness alone: {name}")
    return int(pytest.main(["-p", "no:cacheprovider", "-ra", *left_out, *(arguments or [str(TESTS)])]))


if __name__ == "__main__":
    slicer.util.exit(main(sys.argv[1:]))
