"""Errors that a user reads: one sentence on what is wrong, and a hint on what to do."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import traceback
from pathlib import PurePath

LIBRARIES = re.compile(r"^<|[\\/](site-packages|dist-packages|lib[\\/]python[\d.]+)[\\/]", re.IGNORECASE)


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


_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "status_alloc_failed")


def says_no_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, in PyTorch's words on a GPU, on Linux and macOS, or on
    Windows, or in those of cuDNN and cuBLAS.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY)


def described(error: BaseException) -> str:
    """What an exception that nobody expected says, with the last line of our own code that it came through:
    for one who mends code. A library's line, as torch's, helps nobody; a syntax error says its own.
    """
    said = " ".join(str(error).split())[:300]
    frames = traceback.extract_tb(error.__traceback__) if not isinstance(error, SyntaxError) else []
    own = [
        frame
        for frame in frames
        if "SFRCore" in PurePath(frame.filename).parts or not LIBRARIES.search(frame.filename)
    ]
    place = f" in {PurePath(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {said or 'no message'}{place}"


def command_line(*words: object) -> str:
    """A command as it is typed on this system: words with spaces or signs of the shell are quoted."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if os.name == "nt" else shlex.join(texts)
