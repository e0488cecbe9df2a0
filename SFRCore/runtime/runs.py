"""The folder of one run, as the worker leaves it and as others read it: what it is, and how it stands."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import time
from pathlib import Path
from typing import Any, Literal, cast

from SFRCore.errors import InputError
from SFRCore.runtime.files import read_json
from SFRCore.runtime.locks import is_held
from SFRCore.runtime.processes import process_alive

State = Literal["queued", "running", "finished", "cancelled", "failed", "died"]

HEARTBEAT_SECONDS = 15.0
_SILENT_SECONDS = 60.0
_LAUNCH_SECONDS = 600.0
_TAIL = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
END_STATES: dict[str, State] = {"finished": "finished", "cancelled": "cancelled", "error": "failed"}


def new_run_id() -> str:
    """A name for a run that sorts by time (UTC, to the millisecond) and is not given twice."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return f"{stamp}-{int(now * 1000) % 1000:03d}{secrets.token_hex(2)}"


def boot_id() -> str:
    """A name for the time since this computer was switched on; "" where the system does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


class RunFolder:
    """Paths and state of STUDY/runs/RUN. Raises `InputError` for a name that is no run's."""

    def __init__(self, study_root: Path | str, run: str) -> None:
        if not _NAME.fullmatch(run):
            raise InputError(
                f"'{run}' is not the name of a run.", hint="`sfr jobs` lists the runs of a study."
            )
        self.study_root = Path(study_root)
        self.run = run
        self.path = self.study_root / "runs" / run
        self.job_file = self.path / "job.json"
        self.launch_file = self.path / "launch.json"
        self.alive_file = self.path / "alive"
        self.stop_file = self.path / "stop"
        self.events_file = self.path / "events.jsonl"
        self.log_file = self.path / "worker.log"

    def exists(self) -> bool:
        """Whether a worker or a launcher has written something here."""
        return self.job_file.is_file() or self.launch_file.is_file()

    def info(self) -> dict[str, Any]:
        """What is known of the run: job.json of the worker, over launch.json of whoever started it."""
        merged: dict[str, Any] = {}
        for path in (self.launch_file, self.job_file):
            with contextlib.suppress(InputError):
                value = read_json(path)
                if isinstance(value, dict):
                    merged.update(value)
        return merged

    def state(self) -> State:
        """How the run stands now.

        On its own host the lock on `alive` decides whether it lives. Seen from another host, where locks may
        not reach, it lives while it gave a sign in the last 60 seconds.
        """
        while True:
            info = self.info()
            if is_held(self.alive_file):
                return "running"
            # A worker that began or ended between the two looks has changed its job.json: look again.
            if "end" in info or self.info() == info:
                return self._resting_state(info)

    def _resting_state(self, info: dict[str, Any]) -> State:
        end = self.end(info)
        if end is not None:
            return cast(State, end["state"])
        here = info.get("host") == socket.gethostname()
        if "started" in info:
            if not here and time.time() - self._last_sign() < _SILENT_SECONDS:
                return "running"
            return "died"
        pid = info.get("pid")
        young = time.time() - float(info.get("start", 0.0)) < _LAUNCH_SECONDS
        if young and (not here or pid is None or process_alive(int(pid))):
            return "queued"
        return "failed"

    def end(self, info: dict[str, Any] | None = None) -> dict[str, Any] | None:
        """How it ended: state, time, and for a failure code, message and hint; None where it has not said."""
        value = (self.info() if info is None else info).get("end")
        if isinstance(value, dict) and value.get("state") in END_STATES.values():
            return value
        event = self._last_event()
        if event is None or event.get("event") not in END_STATES:
            return None
        end: dict[str, Any] = {"state": END_STATES[event["event"]]}
        end.update((key, event[key]) for key in ("time", "code", "message", "hint") if key in event)
        return end

    def _last_event(self) -> dict[str, Any] | None:
        with contextlib.suppress(OSError), open(self.events_file, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL))
            for line in reversed(stream.read().split(b"\n")):
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        return value
        return None

    def _last_sign(self) -> float:
        """Epoch seconds of the last change of the files that a living worker keeps changing."""
        times = [0.0]
        for path in (self.events_file, self.alive_file):
            with contextlib.suppress(OSError):
                times.append(path.stat().st_mtime)
        return max(times)

    def log_tail(self, lines: int = 5) -> str:
        """The last lines of the log that say something."""
        with contextlib.suppress(OSError), open(self.log_file, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
            said = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines()]
            return "\n".join([line for line in said if line][-lines:])
        return ""


def run_folders(study_root: Path | str) -> list[RunFolder]:
    """The runs of a study, oldest first."""
    try:
        names = sorted(entry.name for entry in os.scandir(Path(study_root) / "runs") if entry.is_dir())
    except OSError:
        return []
    folders = [RunFolder(study_root, name) for name in names if _NAME.fullmatch(name)]
    return [folder for folder in folders if folder.exists()]


def last_foundation(study_root: Path | str) -> str | None:
    """The foundation of the newest run that used one; None where there was none."""
    for folder in reversed(run_folders(study_root)):
        info = folder.info()
        config = info.get("config")
        settings = config.get("settings") if isinstance(config, dict) else None
        if not isinstance(settings, dict) or info.get("command") == "predict":
            continue
        if settings.get("recipe") != "baseline" and settings.get("foundation"):
            return str(settings["foundation"])
    return None
