"""Processes of the operating system: does one live, and end one with all its children."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def process_alive(pid: int) -> bool:
    """Whether a process with this number exists on this host (a zombie does not)."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return False
        try:
            code = ctypes.c_ulong()
            return bool(kernel.GetExitCodeProcess(handle, ctypes.byref(code))) and code.value == 259
        finally:
            kernel.CloseHandle(handle)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _linux_stat(pid)[0] != "Z"


def _linux_stat(pid: int) -> tuple[str, int, int, int]:
    """State letter, parent, process group and session of a process; ("", 0, 0, 0) where unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The command name stands in parentheses and may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[1]), int(fields[2]), int(fields[3])
    return "", 0, 0, 0


def _process_table() -> dict[int, tuple[int, int, int]]:
    """Parent, process group and session of every living process of a POSIX host."""
    table: dict[int, tuple[int, int, int]] = {}
    if Path("/proc/self/stat").exists():
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                state, parent, group, session = _linux_stat(int(entry))
                if state not in ("", "Z", "X"):
                    table[int(entry)] = (parent, group, session)
        return table
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listing = subprocess.run(
            ["ps", "-axo", "pid=,ppid=,pgid=,state="], capture_output=True, text=True, timeout=5, check=False
        ).stdout
        for line in listing.splitlines():
            pid, parent_text, group_text, state = line.split()[:4]
            if not state.startswith("Z"):
                table[int(pid)] = (int(parent_text), int(group_text), 0)
    return table


def process_tree(pid: int) -> set[int]:
    """The living members of the tree that `pid` leads: descendants, its group and its session.

    `pid` must have been started as the leader of a session of its own; a child whose parent has died is then
    still found through the group or the session.
    """
    table = _process_table()
    found = {pid} if pid in table else set()
    found |= {member for member, (_, group, session) in table.items() if pid in (group, session)}
    size = -1
    while size != len(found):
        size = len(found)
        found |= {member for member, (parent, _, _) in table.items() if parent in found or parent == pid}
    return found - {os.getpid()}


def kill_tree(pid: int, *, timeout: float = 5.0, run: str | None = None) -> bool:
    """End a process that leads its own session, with all its children; True when none is left.

    SIGKILL goes to every member, again and again until none is left or `timeout` seconds have passed. With
    `run` only those are ended whose environment names that run (SFR_RUN, on Linux): for a leader that is gone
    already, and whose number may have been given to somebody else.
    """
    if pid <= 1:
        return True
    deadline = time.monotonic() + timeout
    if sys.platform == "win32":
        if run is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True, check=False)
        while run is None and process_alive(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        return run is not None or not process_alive(pid)
    members: set[int] = set()
    while True:
        tree = process_tree(pid)
        members |= {member for member in tree if run is None or _bears_run(member, run)}
        members = {member for member in members if process_alive(member)}
        if not members:
            return True
        for member in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(member, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)


def _bears_run(pid: int, run: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"SFR_RUN={run}".encode() in environment.split(b"\0")
