"""Chores: what takes seconds or minutes and must not block the panel, as processes that are followed.

A chore is a process, not a thread: it goes on when Slicer is busy, its end can be forced, and a crash in it
harms nothing. It writes one JSON object a line to a file, which the panel reads from a timer.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import SFRCore
from SFRCore.errors import Cancelled, InputError, SFRError
from SFRCore.runtime.processes import kill_tree

from .places import chores_folder
from .worker_python import WorkerPython, applied, find_slicer_python, worker_environment

State = Literal["running", "done", "failed", "cancelled"]

SECONDS_TO_STOP = 10.0
"""How long a chore may take to stop by itself before its processes are ended."""

_MODULE_FOLDER = Path(__file__).resolve().parents[1]
_CORE_FOLDER = Path(SFRCore.__file__).resolve().parents[1]
_DAYS_KEPT = 7


class Chore:
    """One process, followed by ``poll``.

    ``lines`` are what it said, ``progress`` (done, total) in bytes or whatever it counts, ``result`` what it
    returned, ``error`` why it failed or that it was cancelled.
    """

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], *, json_lines: bool
    ) -> None:
        """Start ``command``. Its output is one JSON object a line, or with ``json_lines`` False one document.

        Raises InputError where the folder for its output cannot be written or it cannot be started.
        """
        self.name = name
        self.lines: list[str] = []
        self.progress: tuple[int, int] | None = None
        self.result: Any = None
        self.error: SFRError | None = None
        self.state: State = "running"
        self._json_lines = json_lines
        self._offset = 0
        self._asked = 0.0
        self._killing: threading.Thread | None = None
        home = chores_folder()
        try:
            home.mkdir(parents=True, exist_ok=True)
            _forget_old(home)
            self.folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=home))
            self._output, self._log = self.folder / "output", self.folder / "log"
            with open(self._output, "wb") as output, open(self._log, "wb") as log:
                self._process = subprocess.Popen(
                    [part.replace("{folder}", str(self.folder)) for part in command],
                    cwd=self.folder,
                    env={**env, "PYTHONSAFEPATH": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=log,
                    **_detached(),
                )
        except OSError as error:
            raise InputError(
                f"{command[0]} could not be started: {error.strerror or error}.",
                hint=f"Check that {home} can be written, and repair Slicer or the variable SFR_PYTHON.",
            ) from error

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop and has not ended yet."""
        return self.state == "running" and self._asked > 0

    def poll(self) -> list[str]:
        """Read what is new; returns the new lines. Never waits for the process."""
        if self.state != "running":
            return []
        code = self._process.poll()
        if code is None and self._asked and time.monotonic() - self._asked > SECONDS_TO_STOP:
            self._kill()
        before = len(self.lines)
        if self._json_lines:
            self._read_lines()
        if code is not None:
            self._end(code)
        return self.lines[before:]

    def cancel(self) -> None:
        """Ask it to stop; the second time its processes are ended at once."""
        if self.state != "running":
            return
        if self._asked or not self._json_lines:
            self._kill()
        self._asked = self._asked or time.monotonic()
        (self.folder / "stop").touch()

    def wait(self, timeout: float) -> State:
        """Wait for its end, at most ``timeout`` seconds: for scripts and tests, never for the panel."""
        deadline = time.monotonic() + timeout
        while self.state == "running" and time.monotonic() < deadline:
            time.sleep(0.02)
            self.poll()
        return self.state

    def _kill(self) -> None:
        """End its processes, in a thread: that may take seconds."""
        if self._killing is None or not self._killing.is_alive():
            self._killing = threading.Thread(target=kill_tree, args=(self._process.pid,), daemon=True)
            self._killing.start()

    def _read_lines(self) -> None:
        with open(self._output, "rb") as stream:
            stream.seek(self._offset)
            *whole, rest = stream.read().split(b"\n")
            self._offset = stream.tell() - len(rest)
        for raw in whole:
            try:
                message = json.loads(raw)
            except ValueError:  # a library printed something
                message = {"say": raw.decode("utf-8", "replace")}
            if "say" in message:
                self.lines.append(message["say"])
            if "done" in message:
                self.progress = (message["done"], message["total"])
            if "result" in message:
                self.result = message["result"]
            if "error" in message:
                said = message["error"]
                kind = Cancelled if said["code"] == Cancelled.default_code else SFRError
                self.error = kind(said["message"], hint=said["hint"], code=said["code"])

    def _end(self, code: int) -> None:
        log = self._log.read_text(encoding="utf-8", errors="replace").strip()
        if not self._json_lines and code == 0:
            try:
                self.result = json.loads(self._output.read_text(encoding="utf-8"))
            except ValueError:
                code = 1
        if self._asked and code:
            self.state, self.error = "cancelled", Cancelled("Cancelled; nothing was changed.")
        elif code == 0 and self.error is None:
            self.state = "done"
        else:
            self.state = "failed"
            last = log.splitlines()[-1] if log else f"exit code {code}"
            self.error = self.error or SFRError(
                f"The {self.name} ended unexpectedly: {last}.", hint="The log has the details."
            )
            self.lines += log.splitlines()
        shutil.rmtree(self.folder, ignore_errors=True)


def start_chore(name: str, /, **arguments: Any) -> Chore:
    """Start a chore of ``chore_process`` with Slicer's own Python. Raises InputError as ``Chore`` does."""
    python = find_slicer_python()
    env = applied(worker_environment(WorkerPython(python), _CORE_FOLDER))
    env["PYTHONPATH"] = os.pathsep.join([str(_MODULE_FOLDER), env["PYTHONPATH"]])
    words = ["-m", "SFRSegmentationLib.chore_process", name, json.dumps(arguments), "{folder}"]
    return Chore(name, [python, *words], env, json_lines=True)


def _forget_old(home: Path) -> None:
    """Remove what chores left whose Slicer was closed before they ended."""
    oldest = time.time() - _DAYS_KEPT * 24 * 3600
    for folder in home.iterdir():
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def _detached() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}
