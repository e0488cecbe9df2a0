"""A job tells how it stands from its first to its last moment, and ends when it is told to."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from SFRCore.errors import Cancelled, DiskFull, InputError, OutOfMemory
from SFRCore.runtime import jobs as jobs_module
from SFRCore.runtime.files import read_json, write_json
from SFRCore.runtime.jobs import Job, Worker, new_run_id
from SFRCore.runtime.locks import is_held
from SFRCore.runtime.processes import process_alive
from SFRCore.runtime.runs import RunFolder

ROOT = Path(__file__).parents[2]

SCRIPT = """
import ctypes, os, signal, subprocess, sys, time
from SFRCore.errors import InputError
from SFRCore.runtime.worker import Worker

what, study = sys.argv[1], sys.argv[2]
if what == "refuse":
    print("The study has no labeled case.", file=sys.stderr)
    sys.exit(2)
if what == "sleep_before":
    time.sleep(60)
with Worker(study, what, {"study": study}) as worker:
    worker.stage = "finetune"
    if what == "finish":
        worker.events.emit("progress", step=1, total=1)
    elif what == "input_error":
        raise InputError("The image a.nrrd is empty.", hint="Export it again.")
    elif what == "bug":
        {}["missing"]
    elif what == "memory":
        raise MemoryError
    elif what == "abort":
        os.abort()
    elif what == "sys_exit":
        sys.exit(0)
    elif what in ("steps", "deaf", "family"):
        children = []
        if what == "family":
            stubborn = (
                "import os, signal, subprocess, sys, time\\n"
                "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\n"
                "if len(sys.argv) < 2: subprocess.Popen([sys.executable, '-c', sys.stdin.read(), 'last'])\\n"
                "time.sleep(120)\\n"
            )
            first = subprocess.Popen([sys.executable, "-c", stubborn], stdin=subprocess.PIPE)
            first.stdin.write(stubborn.encode()); first.stdin.close()
            alone = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], process_group=0)
            children = [first.pid, alone.pid]
        worker.events.emit("children", pids=children)
        for step in range(100_000):
            worker.events.emit("progress", step=step)
            time.sleep(0.02)
            if what == "steps":
                worker.check()
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "my study ä"
    folder.mkdir()
    return folder


@pytest.fixture
def start(tmp_path: Path, study: Path) -> Iterator[Callable[[str], Job]]:
    script = tmp_path / "work.py"
    script.write_text(SCRIPT)

    class ScriptJob(Job):
        module_command = (str(script),)

    started: list[Job] = []

    def launch(what: str) -> Job:
        job = ScriptJob.start(study, [what, str(study)])
        started.append(job)
        return job

    yield launch
    for job in started:
        job.kill()
        job.wait(5)


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def event_names(job: Job) -> list[str]:
    return [event["event"] for event in job.events()]


def steps_made(job: Job) -> bool:
    return "progress" in event_names(job)


def test_a_job_runs_on_its_own_and_finishes(study: Path, start: Callable[[str], Job]) -> None:
    job = start("finish")
    follower = job.follower()
    assert job.wait(30) == "finished"
    assert job.error() is None
    events = follower.poll()
    assert [event["event"] for event in events] == ["started", "progress", "finished"]
    assert [event["stage"] for event in events] == ["", "finetune", "finetune"]
    assert {event["run"] for event in events} == {job.run}
    info = job.info
    assert (info["host"], info["command"], info["config"]) == (
        socket.gethostname(),
        "finish",
        {"study": str(study)},
    )
    assert info["pid"] != os.getpid()
    assert info["end"]["state"] == "finished"
    assert not is_held(study / ".job.lock")
    assert [other.run for other in Job.list(study)] == [job.run]
    assert Job.running(study) is None
    assert not (job.run_dir / ".reserve").exists()


def test_it_is_found_running_by_another_program_and_cancelled_by_the_stop_file(
    study: Path, start: Callable[[str], Job]
) -> None:
    job = start("steps")
    assert job.state in ("queued", "running")
    until(lambda: steps_made(job))
    code = (
        "import sys; from SFRCore.runtime.jobs import Job\n"
        "job = Job.running(sys.argv[1]); print(job.run, job.state); job.cancel()"
    )
    other = subprocess.run([sys.executable, "-c", code, str(study)], capture_output=True, text=True, cwd=ROOT)
    assert other.stdout.split() == [job.run, "running"]
    assert job.wait(10) == "cancelled"
    assert event_names(job)[-1] == "cancelled"
    assert job.error() is None


def test_a_job_cancelled_before_it_began_never_takes_a_step(study: Path) -> None:
    folder = RunFolder(study, new_run_id())
    write_json(folder.launch_file, {"pid": os.getpid(), "host": socket.gethostname(), "start": time.time()})
    Job(study, folder.run).cancel()
    with pytest.raises(Cancelled), Worker(study, "run", {}, run=folder.run) as worker:
        worker.check()
    assert Job(study, folder.run).state == "cancelled"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(start: Callable[[str], Job], number: signal.Signals) -> None:
    job = start("steps")
    until(lambda: steps_made(job))
    os.kill(job.info["pid"], number)
    assert job.wait(10) == "cancelled"
    assert job.info["end"]["state"] == "cancelled"


def test_the_second_interrupt_does_not_wait_for_a_step(start: Callable[[str], Job]) -> None:
    job = start("deaf")
    until(lambda: steps_made(job))
    os.kill(job.info["pid"], signal.SIGINT)
    time.sleep(0.3)
    assert job.state == "running"
    os.kill(job.info["pid"], signal.SIGINT)
    assert job.wait(10) == "cancelled"


def test_a_killed_worker_died_probably_out_of_memory(
    study: Path, start: Callable[[str], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start("steps")
    until(lambda: steps_made(job))
    with open(job.run_dir / "events.jsonl", "ab") as stream:
        stream.write(b'{"event": "prog')
    os.kill(job.info["pid"], signal.SIGKILL)
    assert job.wait(10) == "died"
    for _ in range(2):  # seen by who started it, then by somebody else
        error = job.error()
        assert error is not None
        assert "probably out of memory" in error["message"]
        assert error["code"] == "out_of_memory"
        monkeypatch.setattr(jobs_module, "_started", {})
    assert Job.running(study) is None
    assert event_names(job)[-1] == "progress"
    again = start("finish")
    assert again.wait(30) == "finished"
    assert [other.run for other in Job.list(study)] == [job.run, again.run]


def test_a_crash_is_not_called_out_of_memory(start: Callable[[str], Job]) -> None:
    job = start("abort")
    assert job.wait(30) == "died"
    error = job.error()
    assert error is not None
    assert "signal 6" in error["message"]


def test_a_restarted_computer_is_not_called_out_of_memory(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(study, "r")
    folder.path.mkdir(parents=True)
    write_json(folder.job_file, {"pid": 1, "host": socket.gethostname(), "started": 1.0, "boot": "before"})
    monkeypatch.setattr(jobs_module, "boot_id", lambda: "now")
    job = Job(study, "r")
    assert job.state == "died"
    assert "switched off or restarted" in str(job.error())


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("input_error", "input", "The image a.nrrd is empty."),
        ("bug", "error", "KeyError: 'missing'"),
        ("memory", "out_of_memory", "memory"),
    ],
)
def test_a_failure_is_explained(start: Callable[[str], Job], what: str, code: str, words: str) -> None:
    job = start(what)
    assert job.wait(30) == "failed"
    error = job.error()
    assert error is not None
    assert error["code"] == code
    assert words in error["message"]
    assert error["hint"]
    last = job.events()[-1]
    assert (last["event"], last["code"], last["message"]) == ("error", code, error["message"])
    assert "Traceback" in job.log_file.read_text(encoding="utf-8")


def test_leaving_by_sys_exit_zero_is_finishing(start: Callable[[str], Job]) -> None:
    assert start("sys_exit").wait(30) == "finished"


def test_a_job_refused_before_it_began_says_what_was_printed(
    study: Path, start: Callable[[str], Job]
) -> None:
    job = start("refuse")
    assert job.wait(30) == "failed"
    error = job.error()
    assert error is not None
    assert "The study has no labeled case." in error["message"]


def test_one_job_a_study(study: Path, start: Callable[[str], Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "lock_timeout", 0.2)
    job = start("steps")
    until(lambda: steps_made(job))
    with pytest.raises(InputError, match="already has a running job"):
        start("finish")
    held = rf"job 'steps', process {job.info['pid']} on"
    with pytest.raises(InputError, match=held) as caught, Worker(study, "retrain", {}):
        pass
    assert caught.value.code == "in_use"
    assert [other.run for other in Job.list(study)] == [job.run]
    assert job.state == "running"


def test_a_launched_job_that_comes_second_leaves_its_reason(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "lock_timeout", 0.1)
    folder = RunFolder(study, new_run_id())
    with Worker(study, "run", {}) as first:
        write_json(
            folder.launch_file, {"pid": os.getpid(), "host": socket.gethostname(), "start": time.time()}
        )
        assert Job(study, folder.run).state == "queued"
        with pytest.raises(InputError), Worker(study, "predict", {}, run=folder.run):
            pass
        second = Job(study, folder.run)
        assert second.state == "failed"
        assert "in use by the job 'run'" in str(second.error())
        with pytest.raises(InputError), Worker(study, "predict", {}, run=first.run):
            pass
        assert Job(study, first.run).info["command"] == "run"
        assert Job(study, first.run).state == "running"


def test_killing_ends_the_whole_family(start: Callable[[str], Job]) -> None:
    job = start("family")
    children = until(lambda: [event["pids"] for event in job.events() if event["event"] == "children"])[0]
    # the grandchild was started by a child that ignores SIGTERM, and belongs to the family as well
    family = {job.info["pid"], *children, *until(lambda: grandchildren(children[0]))}
    assert len(family) == 4
    began = time.monotonic()
    assert job.kill()
    assert time.monotonic() - began < 5
    assert not [pid for pid in family if process_alive(pid)]
    assert job.state == "cancelled"
    assert event_names(job)[-1] == "cancelled"
    assert job.kill()


def test_orphans_of_a_killed_worker_are_ended_and_strangers_are_not(start: Callable[[str], Job]) -> None:
    job = start("family")
    children = until(lambda: [event["pids"] for event in job.events() if event["event"] == "children"])[0]
    family = {*children, *until(lambda: grandchildren(children[0]))}
    os.kill(job.info["pid"], signal.SIGKILL)
    assert job.wait(10) == "died"
    assert all(process_alive(pid) for pid in family)
    assert job.kill()
    assert not [pid for pid in family if process_alive(pid)]
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        write_json(job.run_dir / "job.json", {**job.info, "pid": stranger.pid})
        assert job.kill()
        assert process_alive(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


def grandchildren(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry))
    return found


def test_a_job_that_has_not_begun_can_be_killed(start: Callable[[str], Job]) -> None:
    job = start("sleep_before")
    assert job.state == "queued"
    assert job.kill()
    assert job.state == "cancelled"


def test_a_job_inside_this_program_is_not_killed(study: Path) -> None:
    with Worker(study, "run", {}) as worker:
        with pytest.raises(InputError, match="inside this program"):
            Job(study, worker.run).kill()
        worker.check()


def test_a_full_disk_at_the_end_is_still_said(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError), Worker(study, "run", {}) as worker:
        assert (worker.run_dir / ".reserve").stat().st_size >= 1 << 16
        raise OSError(errno.ENOSPC, "No space left on device")
    job = Job(study, worker.run)
    assert job.state == "failed"
    assert str(job.error()).count("disk_full") == 1

    real = os.write
    with pytest.raises(DiskFull), Worker(study, "run", {}) as worker:

        def full(handle: int, data: bytes) -> int:
            if (worker.run_dir / ".reserve").exists():
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle, data)

        monkeypatch.setattr(os, "write", full)
        worker.events.emit("progress", step=1)
        write_json_fails(worker.run_dir / "result.json", monkeypatch)
    events = Job(study, worker.run).events()
    assert [event["event"] for event in events] == ["started", "progress", "error"]
    assert events[-1]["code"] == "disk_full"


def write_json_fails(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        write_json(path, {})


def test_the_last_event_counts_where_the_end_could_not_be_written(study: Path) -> None:
    with pytest.raises(OutOfMemory), Worker(study, "run", {}) as worker:
        raise OutOfMemory("The GPU's memory ran out.", hint="Use a smaller patch.")
    record = read_json(worker.run_dir / "job.json")
    del record["end"]
    write_json(worker.run_dir / "job.json", record)
    job = Job(study, worker.run)
    assert job.state == "failed"
    assert job.error() == {
        "code": "out_of_memory",
        "message": "The GPU's memory ran out.",
        "hint": "Use a smaller patch.",
    }


def test_the_heartbeat_beats_with_the_stage(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "heartbeat_seconds", 0.05)
    with Worker(study, "run", {}) as worker:
        worker.stage = "pseudolabel"
        job = Job(study, worker.run)
        until(lambda: event_names(job).count("heartbeat") >= 2)
    assert {event["stage"] for event in job.events() if event["event"] == "heartbeat"} == {"pseudolabel"}
    count = len(job.events())
    time.sleep(0.2)
    assert len(job.events()) == count


def test_a_job_of_another_host_lives_by_its_heartbeat(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(study, "r")
    folder.path.mkdir(parents=True)
    now = time.time()
    write_json(
        folder.job_file, {"pid": 5, "host": "gpu-server", "started": now, "start": now, "command": "run"}
    )
    folder.events_file.write_text('{"event": "heartbeat"}\n')
    job = Job(study, "r")
    assert job.state == "running"
    with pytest.raises(InputError, match="gpu-server"):
        job.kill()
    with (
        pytest.raises(InputError, match="in use by the job 'run' on gpu-server"),
        Worker(study, "predict", {}),
    ):
        pass
    os.utime(folder.events_file, (now - 61, now - 61))
    assert job.state == "died"
    with Worker(study, "predict", {}) as worker:
        worker.check()


def test_the_log_holds_what_the_worker_logs_and_is_closed(study: Path) -> None:
    logger = logging.getLogger("SFRCore")
    handlers, level = list(logger.handlers), logger.level
    before = signal.getsignal(signal.SIGINT)
    with Worker(study, "run", {}) as worker:
        logging.getLogger("SFRCore.stages").info("smallest loss so far")
        assert signal.getsignal(signal.SIGINT) is not before
    assert "smallest loss so far" in (worker.run_dir / "worker.log").read_text()
    assert (logger.handlers, logger.level) == (handlers, level)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_run_of_the_environment_is_taken_and_may_go_on(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFR_RUN", "from-outside")
    with pytest.raises(Cancelled), Worker(study, "run", {}) as worker:
        assert worker.run == "from-outside"
        Job(study, worker.run).cancel()
        worker.check()
    with Worker(study, "run", {}) as worker:
        worker.check()
    assert Job(study, "from-outside").state == "finished"


def test_a_forked_child_still_ends_on_sigterm(study: Path) -> None:
    with Worker(study, "run", {}) as worker:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"x")
            time.sleep(20)
            os._exit(0)
        os.read(reading, 1)
        os.close(reading)
        os.close(writing)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        worker.check()


def test_a_bad_interpreter_or_folder_is_said(study: Path) -> None:
    with pytest.raises(InputError, match="/no/python could not be started"):
        Job.start(study, ["run"], python="/no/python")
    assert Job.list(study) == []
    with pytest.raises(InputError, match="is not a folder"):
        Job.start(study / "none", ["run"])
    with pytest.raises(InputError, match="is not a folder"), Worker(study / "none", "run", {}):
        pass


@pytest.mark.parametrize("run", ["../../etc", "", ".", "a/b", "no-such-run"])
def test_only_runs_of_the_study_can_be_named(study: Path, run: str) -> None:
    with pytest.raises(InputError):
        Job(study, run)


def test_the_module_is_started_with_the_environment_asked_for(
    tmp_path: Path, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shim = tmp_path / "python"
    shim.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "print(json.dumps({'args': sys.argv[1:], 'env': dict(os.environ)}))\n"
    )
    shim.chmod(0o755)
    monkeypatch.setenv("SFR_PYTHON", str(shim))
    monkeypatch.setenv("PYTHONHOME_LIKE", "x")
    monkeypatch.setenv("PYTHONPATH", "/private/packages")
    job = Job.start(study, ["run", "a b"], env={"EXTRA": "1", "PYTHONHOME_LIKE": None})
    assert job.wait(10) == "failed"
    said = json.loads(job.log_file.read_text())
    assert said["args"] == ["-m", "SFRCore", "run", "a b"]
    env = said["env"]
    assert (env["SFR_RUN"], env["EXTRA"], "PYTHONHOME_LIKE" in env) == (job.run, "1", False)
    assert env["PYTHONPATH"].split(os.pathsep) == ["/private/packages", str(ROOT)]
    assert env["PYTHONSAFEPATH"] == "1"


def test_run_names_sort_by_time() -> None:
    names = []
    for _ in range(5):
        names.append(new_run_id())
        time.sleep(0.002)
    assert names == sorted(names)
    assert len(set(names)) == 5
