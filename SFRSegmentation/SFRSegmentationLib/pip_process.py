"""pip as a process of its own: its lines as they come, stopped at once, its failures in plain words."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from SFRCore.errors import DiskFull, InputError, SFRError
from SFRCore.runtime.processes import kill_tree

Say = Callable[[str], None]
Check = Callable[[], None]

_LOOK_EVERY = 0.1
_KEPT_LINES = 400
_NETWORK = (
    "retrying (retry", "newconnectionerror", "connecttimeouterror", "readtimeout", "connection broken",
    "temporary failure in name resolution", "connection refused", "connection aborted",
    "network is unreachable", "getaddrinfo failed", "remotedisconnected",
)  # fmt: skip
_NOT_FOR_PIP = ("PYTHONPATH", "PIP_TARGET", "PIP_PREFIX", "PIP_CONSTRAINT", "PIP_REQUIREMENT")
_FULL = ("no space left on device", "disk quota exceeded", "not enough space on the disk")
_CERTIFICATE = ("certificate_verify_failed", "sslcertverificationerror", "certificate verify failed")
_NOT_FOUND = re.compile(r"No matching distribution found for ([^\s(]+)")


class PipError(SFRError):
    """pip failed; ``retry`` where another set of constraints or another index may do better."""

    default_code = "installation"

    def __init__(self, message: str, *, hint: str = "", retry: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retry = retry


def pip_environment(temporary: Path) -> dict[str, str]:
    """This process's environment (proxies and the user's pip settings among it), made fit for --target.

    Downloads and unpacked files go to ``temporary``, so that they lie on the disk whose room was checked and
    are gone with that folder.
    """
    env = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_PIP}
    env.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)))
    # A user's pip.conf may say otherwise, which --target does not bear.
    env.update(PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    env.update(PIP_NO_COLOR="1", PIP_ROOT_USER_ACTION="ignore", PIP_RESUME_RETRIES="5", PYTHONUTF8="1")
    env.update(PYTHONUNBUFFERED="1", PYTHONNOUSERSITE="1")
    return env


def pip_version(python: str, env: dict[str, str]) -> tuple[int, int]:
    """Major and minor version of pip. Raises InputError where this Python has none."""
    done = subprocess.run(
        [python, "-c", "import pip; print(pip.__version__)"],
        capture_output=True,
        text=True,
        errors="replace",
        env=env,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
        **_hidden(),
    )
    found = re.match(r"(\d+)\.(\d+)", done.stdout)
    if done.returncode or found is None:
        raise InputError(
            f"{python} has no pip, so nothing can be installed with it.", hint="Repair or reinstall Slicer."
        )
    return int(found[1]), int(found[2])


def run_pip(python: str, arguments: Sequence[str], env: dict[str, str], say: Say, check: Check) -> None:
    """Run pip to its end; each of its lines goes to ``say``.

    ``check`` is asked ten times a second: what it raises ends pip with all its children and passes through.
    Raises DiskFull or PipError where pip fails.
    """
    # Its own session, so that everything it starts can be ended with it.
    detached: dict[str, Any] = {"start_new_session": True} if sys.platform != "win32" else _hidden()
    process = subprocess.Popen(
        [python, "-m", "pip", *arguments], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, **detached,
    )  # fmt: skip
    lines: list[str] = []

    def read() -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            if line:
                lines.append(line)
                del lines[:-_KEPT_LINES]
                say(line)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            try:
                code = process.wait(_LOOK_EVERY)
                break
            except subprocess.TimeoutExpired:
                check()
    except BaseException:
        kill_tree(process.pid)
        process.wait(5.0)
        raise
    reader.join(5.0)
    if code:
        raise explain(lines, code)


def explain(lines: Sequence[str], code: int) -> SFRError:
    """The sentence for what pip printed before it failed."""
    text = "\n".join(lines)
    low = text.lower()
    if any(words in low for words in _FULL):
        return DiskFull(
            "The packages could not be installed because the disk is full.",
            hint="Free some space and install again; nothing half done was left behind.",
        )
    if any(words in low for words in _CERTIFICATE):
        return PipError(
            "The connection to the package server is not trusted: its certificate could not be verified.",
            hint="A proxy of your institution may inspect connections: ask for its certificate file, name it "
            "in the variable PIP_CERT, and start Slicer again. Or install from a folder.",
        )
    if "407 proxy authentication" in low:
        return PipError(
            "The proxy asks for a name and password.",
            hint="Put them into the variable HTTPS_PROXY (https://name:password@proxy:port) and start Slicer "
            "again. Or install from a folder.",
        )
    if any(words in low for words in _NETWORK):
        return PipError(
            "The package server could not be reached.",
            hint="Check the network and the proxy (variable HTTPS_PROXY), then install again. Without "
            "network, install from a folder.",
        )
    missing = _NOT_FOUND.search(text)
    if missing is not None:
        return PipError(
            f"There is no package {missing[1]} for this computer and Python "
            f"{sys.version_info.major}.{sys.version_info.minor} where it was looked for.",
            hint="From a folder: put the missing package into it. Else update Slicer, or name another Python "
            "with SFR_PYTHON.",
            retry=True,
        )
    if "resolutionimpossible" in low or "conflicting dependencies" in low:
        return PipError(
            "The packages that SFR needs do not fit together.", hint="Update SFR or Slicer.", retry=True
        )
    if "permission denied" in low or "access is denied" in low:
        return PipError(
            "The packages could not be written: the folder is read-only or a file is in use.",
            hint="End running jobs, or name another folder with the variable SFR_DATA and start Slicer "
            "again.",
        )
    said = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
    reason = said.removeprefix("ERROR:").strip().rstrip(".") or "no reason given"
    return PipError(f"The installation failed (exit code {code}): {reason}.", hint="The log has the details.")


def _hidden() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NO_WINDOW}
    return {}
