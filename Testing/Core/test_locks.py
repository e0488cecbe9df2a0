"""Locks hold between processes and threads, name their holder, and end with it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from SFRCore.errors import InputError
from SFRCore.runtime import locks
from SFRCore.runtime.locks import FileLock, holder, is_held

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys, time
from SFRCore.runtime.locks import FileLock
with FileLock(sys.argv[1], purpose="finetune"):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(path: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_second_process_is_told_who_holds_it_and_gets_it_when_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "my study" / ".job.lock"
    path.parent.mkdir()
    process = hold(path)
    try:
        assert is_held(path)
        who = holder(path)
        assert who is not None
        assert (who["pid"], who["host"], who["purpose"]) == (process.pid, socket.gethostname(), "finetune")
        assert abs(time.time() - who["since"]) < 30
        began = time.monotonic()
        with pytest.raises(InputError) as caught, FileLock(path, timeout=0.3):
            pass
        assert 0.3 <= time.monotonic() - began < 3
        message = caught.value.message
        for part in (
            str(path.parent),
            "finetune",
            str(process.pid),
            socket.gethostname(),
            time.strftime("%Y-"),
        ):
            assert part in message
        assert caught.value.code == "in_use"
    finally:
        end(process)
    assert not is_held(path)
    assert holder(path) is None
    with FileLock(path, timeout=0):
        assert is_held(path)


def test_threads_take_turns(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(10):
            with FileLock(tmp_path / "l", timeout=30):
                inside += 1
                most = max(most, inside)
                time.sleep(0.001)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert inside == 0


ADDER = """
import sys
from pathlib import Path
from SFRCore.runtime.files import read_json, write_json
from SFRCore.runtime.locks import FileLock
root = Path(sys.argv[1])
for _ in range(25):
    with FileLock(root / ".lock", timeout=60):
        write_json(root / "n.json", read_json(root / "n.json") + 1)
"""


def test_no_change_is_lost_between_processes(tmp_path: Path) -> None:
    (tmp_path / "n.json").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", ADDER, str(tmp_path)], cwd=ROOT) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "n.json").read_text().strip() == "75"


def test_released_after_an_error_and_reusable(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "l")
    with pytest.raises(ValueError), lock:
        raise ValueError
    assert not lock.held
    with lock:
        assert lock.held
        with pytest.raises(RuntimeError):
            lock.acquire()
    lock.release()
    assert not is_held(tmp_path / "l")


def test_looking_does_not_disturb_and_needs_no_file(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with FileLock(tmp_path / "l", timeout=0):
        assert all(is_held(tmp_path / "l") for _ in range(20))
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            is_held(tmp_path / "l")

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            with FileLock(tmp_path / "l", timeout=1):
                pass
    finally:
        stop.set()
        thread.join()


def test_a_deleted_lock_file_does_not_let_two_in(tmp_path: Path) -> None:
    path = tmp_path / "l"
    first = FileLock(path)
    first.acquire()
    path.unlink()
    with FileLock(path, timeout=0) as second:
        first.release()
        assert second.held
        assert is_held(path)
        with pytest.raises(InputError), FileLock(path, timeout=0):
            pass


def test_a_file_swapped_between_opening_and_locking_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "l"
    real = locks._try_lock
    swapped = []

    def swap(handle: int, *, shared: bool = False) -> None:
        if not swapped:
            swapped.append(True)
            path.unlink()
        real(handle, shared=shared)

    monkeypatch.setattr(locks, "_try_lock", swap)
    with FileLock(path):
        monkeypatch.undo()
        assert is_held(path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from SFRCore.runtime.locks import FileLock\n"
        "lock = FileLock(sys.argv[1]); lock.acquire()\n"
        "pid = os.fork()\n"
        "if pid == 0: time.sleep(60); os._exit(0)\n"
        "print(pid, flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "l")], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert is_held(tmp_path / "l")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 20  # on a busy machine the child has hardly begun
        while is_held(tmp_path / "l"):
            os.kill(child, 0)
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_a_torn_holder_is_still_a_holder(tmp_path: Path) -> None:
    with FileLock(tmp_path / "l"):
        (tmp_path / "l").write_text('{"host": ')
        assert holder(tmp_path / "l") == {}
        with (
            pytest.raises(InputError, match="in use by another process"),
            FileLock(tmp_path / "l", timeout=0),
        ):
            pass


def test_a_full_disk_does_not_prevent_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with FileLock(tmp_path / "l"):
        assert is_held(tmp_path / "l")


def test_a_place_that_cannot_be_written_and_a_drive_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="cannot be written"), FileLock(tmp_path / "no" / "l"):
        pass

    def unsupported(handle: int, *, shared: bool = False) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_try_lock", unsupported)
    with pytest.raises(InputError, match="does not support locks"), FileLock(tmp_path / "l"):
        pass
    with pytest.raises(InputError, match="does not support locks"):
        is_held(tmp_path / "l")
