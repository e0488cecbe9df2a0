"""Background jobs seen from outside: start one, follow it, stop it, and learn how it ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import SFRCore
from SFRCore.errors import DiskFull, InputError
from SFRCore.runtime.events import EventFollower, EventLog, read_events
from SFRCore.runtime.files import is_disk_full, write_json, write_text
from SFRCore.runtime.processes import kill_tree
from SFRCore.runtime.runs import RunFolder, State, boot_id, new_run_id, run_folders
from SFRCore.runtime.worker import Worker

__all__ = ["Job", "State", "Worker", "new_run_id"]

_SIGKILL = -9
_Events = list[dict[str, Any]]
_started: dict[str, subprocess.Popen[bytes]] = {}


class Job:
    """One run of a study: a process of its own, perhaps started by somebody else, perhaps on another host.

    Nothing is kept between calls but the files of the run, so a job outlives whoever started it. Raises
    `InputError` where the study has no such run.
    """

    module_command: ClassVar[tuple[str, ...]] = ("-m", "SFRCore")

    def __init__(self, study_root: Path | str, run: str) -> None:
        self.folder = RunFolder(study_root, run)
        self.study_root = self.folder.study_root
        self.run = run
        self.run_dir = self.folder.path
        if not self.folder.exists():
            raise InputError(
                f"{self.study_root} has no run '{run}'.", hint="`sfr jobs` lists the runs of a study."
            )

    @classmethod
    def start(
        cls,
        study_root: Path | str,
        args: Sequence[str],
        *,
        python: str | None = None,
        env: Mapping[str, str | None] | None = None,
    ) -> Job:
        """Run ``python -m SFRCore ARGS`` on its own; it goes on when this process ends.

        `python` is the interpreter (else SFR_PYTHON, else this one). `env` changes the environment: None
        removes a variable. What it prints goes to worker.log. Raises `InputError` where the study has a
        running job or the interpreter cannot be started.
        """
        root = Path(study_root)
        if not root.is_dir():
            raise InputError(f"{root} is not a folder.", hint="Check the study folder you chose.")
        running = cls.running(root)
        if running is not None:
            command = running.info.get("command", "a job")
            raise InputError(
                f"{root} already has a running job ('{command}').",
                hint="Wait until it is done, or cancel it, and try again.",
                code="in_use",
            )
        program = python or os.environ.get("SFR_PYTHON") or sys.executable
        folder = RunFolder(root, new_run_id())
        launch = {
            "run": folder.run,
            "pid": None,
            "host": socket.gethostname(),
            "start": time.time(),
            "boot": boot_id(),
            "command": " ".join(args[:1]),
            "args": list(args),
            "python": program,
        }
        write_json(folder.launch_file, launch)
        try:
            with open(folder.log_file, "ab") as log:
                process = subprocess.Popen(
                    [program, *cls.module_command, *args],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=_environment(folder.run, env),
                    **_detached(),
                )
        except OSError as error:
            shutil.rmtree(folder.path, ignore_errors=True)
            if is_disk_full(error):
                raise DiskFull(
                    f"{folder.log_file} could not be made because the disk is full.",
                    hint="Free some space and start it again.",
                ) from error
            reason = error.strerror or "no reason given"
            raise InputError(
                f"The Python interpreter {program} could not be started: {reason}.",
                hint="Check SFR_PYTHON, or repair the installation.",
            ) from error
        _started[folder.run] = process
        write_json(folder.launch_file, {**launch, "pid": process.pid})
        return cls(root, folder.run)

    @classmethod
    def list(cls, study_root: Path | str) -> list[Job]:
        """All jobs of a study, oldest first."""
        return [cls(study_root, folder.run) for folder in run_folders(study_root)]

    @classmethod
    def running(cls, study_root: Path | str) -> Job | None:
        """The job of a study that runs or is about to, else None."""
        for folder in reversed(run_folders(study_root)):
            job = cls(study_root, folder.run)
            if job.state in ("queued", "running"):
                return job
        return None

    @property
    def info(self) -> dict[str, Any]:
        """What is known: run, pid, host, start (epoch seconds), command, config, python, version, end."""
        return self.folder.info()

    @property
    def state(self) -> State:
        """How it stands now. "failed" gave a reason, "died" did not; see `error`."""
        self._returncode()
        return self.folder.state()

    @property
    def log_file(self) -> Path:
        """What the worker logged and printed, tracebacks among it."""
        return self.folder.log_file

    def events(self) -> _Events:
        """All events so far, oldest first."""
        return read_events(self.folder.events_file)

    def follower(self) -> EventFollower:
        """A reader of the events from the first on."""
        return EventFollower(self.folder.events_file)

    def cancel(self) -> None:
        """Ask it to stop; it does so at its next step and keeps what was done. Works from any host."""
        write_text(self.folder.stop_file, f"asked by {socket.gethostname()} at {time.time():.0f}\n")

    def kill(self, timeout: float = 5.0) -> bool:
        """End it at once with all the processes it started; True when none is left after `timeout` seconds.

        Raises `InputError` for a job of another host.
        """
        info = self.info
        if info.get("host") != socket.gethostname():
            raise InputError(
                f"The job runs on {info.get('host')} and can only be ended there.",
                hint="Cancel it instead: it stops at its next step.",
            )
        pid = int(info.get("pid") or 0)
        if pid == os.getpid():
            raise InputError(
                "The job runs inside this program and cannot be ended without it.",
                hint="Cancel it instead: it stops at its next step.",
            )
        self.cancel()
        if self.state not in ("queued", "running"):
            return kill_tree(pid, timeout=timeout, run=self.run)
        gone = kill_tree(pid, timeout=timeout)
        self._returncode()
        if gone and self.folder.end() is None:
            end = {"state": "cancelled", "time": time.time(), "forced": True}
            write_json(self.folder.job_file, {**self.info, "end": end})
            EventLog(self.folder.events_file, self.run).emit("cancelled", forced=True)
        return gone

    def wait(self, timeout: float | None = None) -> State:
        """Wait until it has ended, at most `timeout` seconds; returns the state at that moment."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.02
        while (state := self.state) in ("queued", "running"):
            if deadline is not None and time.monotonic() >= deadline:
                return state
            time.sleep(pause)
            pause = min(1.5 * pause, 0.5)
        process = _started.get(self.run)
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
        return state

    def error(self) -> dict[str, Any] | None:
        """Code, message and hint of a job that failed or died; None for every other."""
        state = self.state
        if state not in ("failed", "died"):
            return None
        end = self.folder.end()
        if end is not None:
            return {key: end.get(key, "") for key in ("code", "message", "hint")}
        said = self.folder.log_tail()
        hint = f"The details are in {self.folder.log_file}."
        if state == "failed":
            words = f": {said}" if said else "."
            return {"code": "not_started", "message": f"The job ended before it began{words}", "hint": hint}
        info = self.info
        if info.get("host") == socket.gethostname() and info.get("boot", "") != boot_id():
            message = "The job ended because the computer was switched off or restarted."
            return {"code": "died", "message": message, "hint": "Run again to continue."}
        code = self._returncode()
        if code is None or code == _SIGKILL:
            return {
                "code": "out_of_memory",
                "message": "The job was ended by the system, probably out of memory.",
                "hint": "Close other programs or choose a smaller foundation model, then run again.",
            }
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"code": "died", "message": f"The job crashed ({how}).", "hint": hint}

    def _returncode(self) -> int | None:
        """The exit code where this process started the job and it has ended; negative for a signal."""
        process = _started.get(self.run)
        return None if process is None else process.poll()


def _environment(run: str, changes: Mapping[str, str | None] | None) -> dict[str, str]:
    env = dict(os.environ)
    for name, value in (changes or {}).items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    # Without it `python -m` would import from the current folder, which may be anybody's.
    env.update(SFR_RUN=run, PYTHONUNBUFFERED="1", PYTHONUTF8="1", PYTHONSAFEPATH="1")
    package_home = Path(SFRCore.__file__).resolve().parents[1]
    if package_home.name not in ("site-packages", "dist-packages"):
        path = [part for part in env.get("PYTHONPATH", "").split(os.pathsep) if part]
        env["PYTHONPATH"] = os.pathsep.join([*path, str(package_home)])
    return env


def _detached() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}
