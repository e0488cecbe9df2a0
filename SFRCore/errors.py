"""Errors that a user reads: one sentence on what is wrong, and a hint on what to do."""

from __future__ import annotations

import os
import shlex
import subprocess
import traceback
from pathlib import PurePath


class SFRError(Exception):
    """A failure that is explained to the user.

    ``message`` is one sentence that names what is wrong and with which file, ``hint`` says what to do,
    ``code`` is a stable word for programs, ``exit_code`` what the command line returns.
    """

    default_code = "error"
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code


class InputError(SFRError):
    """Bad usage or bad input: a file, a value or an option that cannot be used."""

    default_code = "input"
    exit_code = 2


class Cancelled(SFRError):
    """The user asked the job to stop; what was done is kept."""

    default_code = "cancelled"
    exit_code = 3


class OutOfMemory(SFRError):
    """Memory of the computer or of the GPU ran out."""

    default_code = "out_of_memory"
    exit_code = 4


class DiskFull(SFRError):
    """A file could not be written because the disk is full."""

    default_code = "disk_full"
    exit_code = 4


def described(error: BaseException) -> str:
    """What an exception that nobody expected says, with the line that raised it: for one who mends code."""
    said = " ".join(str(error).split())[:300]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {PurePath(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {said or 'no message'}{place}"


def command_line(*words: object) -> str:
    """A command as it is typed on this system: words with spaces or signs of the shell are quoted."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
