"""Events reach a reader whole and in order, whatever happens to the file."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from SFRCore.runtime.events import EventFollower, EventLog, read_events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_an_event_is_one_line_of_json(path: Path) -> None:
    log = EventLog(path, "run-1")
    log.emit("progress", stage="finetune", step=120, total=6000, loss=np.float32(0.25), time="not this one")
    log.stage = "retrain"
    log.emit("case", id="左\n心房", path=Path("a"))
    lines = path.read_text(encoding="utf-8").splitlines()
    first, second = (json.loads(line) for line in lines)
    assert abs(first.pop("time") - time.time()) < 30
    assert first == {
        "run": "run-1", "stage": "finetune", "event": "progress", "step": 120, "total": 6000, "loss": 0.25,
    }  # fmt: skip
    assert (second["stage"], second["id"], second["path"]) == ("retrain", "左\n心房", "a")


def test_threads_do_not_mix_their_lines(path: Path) -> None:
    log = EventLog(path, "r")

    def work(number: int) -> None:
        for step in range(50):
            log.emit("progress", who=number, step=step, text="x" * 500)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = read_events(path)
    assert len(events) == 200
    for number in range(4):
        assert [e["step"] for e in events if e["who"] == number] == list(range(50))


def test_the_follower_waits_for_the_end_of_a_torn_line(path: Path) -> None:
    follower = EventFollower(path)
    assert follower.poll() == []
    path.write_bytes(b'{"step": 1}\n{"ste')
    assert follower.poll() == [{"step": 1}]
    assert follower.poll() == []
    with open(path, "ab") as stream:
        stream.write(b'p": 2}\n')
    assert follower.poll() == [{"step": 2}]
    assert follower.poll() == []


def test_a_line_torn_by_a_crash_costs_no_later_event(path: Path) -> None:
    path.write_bytes(b'{"step": 1}\n{"ste')
    EventLog(path, "r").emit("started")
    assert [e.get("event", e.get("step")) for e in read_events(path)] == [1, "started"]


def test_damaged_lines_are_passed_over(path: Path) -> None:
    path.write_bytes(b'{"a": 1}\nnonsense\n\n\xff\xfe\n[1]\n' + b"[" * 50_000 + b'\n{"a": 2}\r\n{"a": 3}')
    assert read_events(path) == [{"a": 1}, {"a": 2}]
    assert read_events(path.parent / "none") == []
    assert read_events(path.parent) == []


def test_a_file_that_was_cut_or_replaced_is_read_anew(path: Path) -> None:
    follower = EventFollower(path)
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    assert len(follower.poll()) == 2
    path.write_bytes(b'{"a": 1}\n')
    assert follower.poll() == [{"a": 1}]
    path.write_bytes(b'{"b": 1}\n{"b": 2}\n{"b": 3}\n')
    assert follower.poll() == [{"b": 1}, {"b": 2}, {"b": 3}]
    path.unlink()
    assert follower.poll() == []
    path.write_bytes(b'{"c": 1}\n')
    assert follower.poll() == [{"c": 1}]


def test_a_long_file_can_be_read_in_parts(path: Path) -> None:
    path.write_bytes(b"".join(b'{"step": %d}\n' % n for n in range(1000)))
    follower = EventFollower(path)
    parts = []
    while part := follower.poll(max_bytes=1000):
        parts.append(part)
    assert len(parts) > 5
    assert [e["step"] for part in parts for e in part] == list(range(1000))


@pytest.mark.parametrize("written", [0, 7])
def test_a_full_disk_delays_events_and_ends_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    log = EventLog(path, "r")
    log.emit("progress", step=0)
    real = os.write

    def full(handle: int, data: bytes) -> int:
        if written:
            return real(handle, data[:written])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    log.emit("progress", step=1)
    log.emit("progress", step=2)
    assert not log.flush()
    monkeypatch.setattr(os, "write", real)
    assert [e["step"] for e in read_events(path)] == [0]
    log.emit("progress", step=3)
    assert [e["step"] for e in read_events(path)] == [0, 1, 2, 3]
    assert log.flush()


def test_a_long_outage_keeps_the_newest(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(path.parent / "away" / "events.jsonl", "r")
    for step in range(500):
        log.emit("progress", step=step)
    (path.parent / "away").mkdir()
    assert log.flush()
    events: list[dict[str, Any]] = read_events(log.path)
    assert [e["step"] for e in events] == list(range(300, 500))
