"""The process that computes: its run folder, its lock on the study, its heartbeat, and how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar

import SFRCore
from SFRCore.errors import Cancelled, InputError, SFRError, described
from SFRCore.runtime.events import EventLog
from SFRCore.runtime.files import is_disk_full, write_bytes, write_json
from SFRCore.runtime.locks import FileLock, is_held
from SFRCore.runtime.runs import END_STATES, HEARTBEAT_SECONDS, RunFolder, boot_id, new_run_id, run_folders

_RESERVE_BYTES = 1 << 16
_logger = logging.getLogger("SFRCore")


class Worker:
    """Makes the process that enters it the one job of a study, and tells the others how it fares.

    Inside, ``events`` takes events, ``stage`` names the stage of events that name none, and ``check()`` is to
    be called at every step. On leaving, the last event and job.json say how it ended: finished, cancelled, or
    error with code, message and hint. Exceptions pass through.

    The first SIGINT, and any SIGTERM, asks to stop, as the file ``stop`` does; a second SIGINT raises
    KeyboardInterrupt. Entering raises `InputError` where another job holds the study.
    """

    heartbeat_seconds: ClassVar[float] = HEARTBEAT_SECONDS
    lock_timeout: ClassVar[float] = 2.0

    def __init__(
        self, study_root: Path | str, command: str, config: dict[str, Any], *, run: str | None = None
    ) -> None:
        self.study_root = Path(study_root)
        self.command = command
        self.config = config
        self.run = run or os.environ.get("SFR_RUN") or new_run_id()
        self.folder = RunFolder(self.study_root, self.run)
        self.run_dir = self.folder.path
        self.events = EventLog(self.folder.events_file, self.run)
        self._reserve = self.run_dir / ".reserve"
        self._info: dict[str, Any] = {}
        self._asked = False
        self._interrupts = 0
        self._pid = 0
        self._exit: contextlib.ExitStack | None = None

    @property
    def stage(self) -> str:
        """The stage that is being computed."""
        return self.events.stage

    @stage.setter
    def stage(self, name: str) -> None:
        self.events.stage = name

    def check(self) -> None:
        """Raise `Cancelled` once somebody asked the job to stop."""
        if self._asked or self.folder.stop_file.exists():
            raise Cancelled("The job was cancelled.", hint="Run again to continue from the last checkpoint.")

    def __enter__(self) -> Worker:
        if not self.study_root.is_dir():
            raise InputError(f"{self.study_root} is not a folder.", hint="Check the study folder you chose.")
        launched = self.folder.exists()
        mine = False
        with contextlib.ExitStack() as stack:
            try:
                purpose = f"the job '{self.command}'"
                lock = FileLock(self.study_root / ".job.lock", timeout=self.lock_timeout, purpose=purpose)
                stack.enter_context(lock)
                self._refuse_second_job()
                self._free_reserves()
                self.run_dir.mkdir(parents=True, exist_ok=True)
                if (
                    "end" in self.folder.info()
                ):  # the same run once more: an earlier job was to stop, not this
                    self.folder.stop_file.unlink(missing_ok=True)
                alive = FileLock(self.folder.alive_file, timeout=self.lock_timeout, purpose=self.command)
                stack.enter_context(alive)
                mine = True
                self._begin_record()
                stack.callback(self._reserve.unlink, missing_ok=True)
                write_bytes(self._reserve, os.urandom(_RESERVE_BYTES))
                stack.enter_context(self._logging())
                stack.enter_context(self._signals())
                self.events.emit("started", command=self.command, pid=self._pid, host=socket.gethostname())
                stack.enter_context(self._heartbeat())
            except BaseException as error:
                if mine or (launched and not is_held(self.folder.alive_file)):
                    with contextlib.suppress(SFRError, OSError):
                        self._begin_record()
                        self._say_end(error)
                raise
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._exit = self._exit, None
        if stack is None:
            return
        with stack:
            # The room that was kept free lets the last words be written even on a full disk.
            with contextlib.suppress(OSError):
                self._reserve.unlink(missing_ok=True)
            self._say_end(error)

    def _refuse_second_job(self) -> None:
        """Where locks do not reach from host to host, the heartbeat of a job elsewhere has to do."""
        here = socket.gethostname()
        for folder in reversed(run_folders(self.study_root)):
            info = folder.info()
            if folder.run == self.run or "started" not in info or info.get("host") == here:
                continue
            if folder.state() == "running":
                raise InputError(
                    f"{self.study_root} is in use by the job '{info.get('command')}' on {info.get('host')}.",
                    hint="Wait until it is done, or cancel it, and try again.",
                    code="in_use",
                )

    def _free_reserves(self) -> None:
        """Give back the room that killed workers had kept; under the lock no other job can run."""
        for folder in run_folders(self.study_root):
            with contextlib.suppress(OSError):
                (folder.path / self._reserve.name).unlink(missing_ok=True)

    def _begin_record(self) -> None:
        self._pid = os.getpid()
        now = time.time()
        self._info = {
            "run": self.run,
            "pid": self._pid,
            "host": socket.gethostname(),
            "start": now,
            "started": now,
            "boot": boot_id(),
            "command": self.command,
            "config": self.config,
            "python": sys.executable,
            "version": SFRCore.__version__,
        }
        write_json(self.folder.job_file, self._info)

    def _say_end(self, error: BaseException | None) -> None:
        event, words = "finished", {}
        if isinstance(error, (Cancelled, KeyboardInterrupt)):
            event = "cancelled"
        elif error is not None and not (isinstance(error, SystemExit) and error.code in (None, 0)):
            event, words = "error", explain(error, self.folder.log_file)
            if _logger.hasHandlers():
                _logger.error("%s", words["message"], exc_info=error)
        self._info["end"] = {"state": END_STATES[event], "time": time.time(), **words}
        with contextlib.suppress(SFRError, OSError):  # the last event says the same
            write_json(self.folder.job_file, self._info)
        self.events.emit(event, **words)

    @contextlib.contextmanager
    def _logging(self) -> Iterator[None]:
        handler = logging.FileHandler(self.folder.log_file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        level = _logger.level
        if level == logging.NOTSET:
            _logger.setLevel(logging.INFO)
        _logger.addHandler(handler)
        try:
            yield
        finally:
            _logger.removeHandler(handler)
            _logger.setLevel(level)
            handler.close()

    @contextlib.contextmanager
    def _heartbeat(self) -> Iterator[None]:
        over = threading.Event()

        def beat() -> None:
            while not over.wait(self.heartbeat_seconds):
                self.events.emit("heartbeat")
                with contextlib.suppress(OSError):
                    os.utime(self.folder.alive_file)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=5.0)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = ("SIGINT", "SIGTERM", "SIGBREAK")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        before: dict[int, Callable[..., Any] | int | None] = {
            number: signal.signal(number, self._asked_by_signal) for number in numbers
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _asked_by_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked child, such as a data loader's: it is to die as it would
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._asked = True
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt


def explain(error: BaseException, log: Path) -> dict[str, str]:
    """Code, message and hint for an exception that ended a job."""
    if isinstance(error, SFRError):
        return {"code": error.code, "message": error.message, "hint": error.hint}
    # torch's own class is known by its name, since torch must not be imported here.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return {
            "code": "out_of_memory",
            "message": "The memory of this computer or of its GPU ran out.",
            "hint": "Close other programs, or choose a smaller foundation model or another device.",
        }
    if is_disk_full(error):
        return {
            "code": "disk_full",
            "message": f"The disk that holds {log.parent} is full.",
            "hint": "Free some space and run again; what was finished is kept.",
        }
    return {
        "code": "error",
        "message": f"The program failed unexpectedly ({described(error)}).",
        "hint": f"The details are in {log}.",
    }
