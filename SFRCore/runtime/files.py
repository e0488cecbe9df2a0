"""Small files: text and JSON written atomically, lines appended; and the door to all file functions."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from SFRCore.errors import InputError
from SFRCore.runtime.atomic import (
    atomic_path,
    checked_atomic_path,
    explained_write_error,
    free_space,
    full_suffix,
    is_disk_full,
    left_behind,
    process_mark,
    sweep_temporary,
)
from SFRCore.runtime.identity import file_identity, same_file_quick, unreadable

__all__ = [
    "append_bytes",
    "atomic_path",
    "explained_write_error",
    "file_identity",
    "free_space",
    "full_suffix",
    "is_disk_full",
    "json_text",
    "left_behind",
    "process_mark",
    "read_json",
    "same_file_quick",
    "sweep_temporary",
    "write_bytes",
    "write_json",
    "write_text",
]


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write a file atomically. Raises `DiskFull`, `InputError` as `atomic_path` does."""
    with checked_atomic_path(Path(path)) as temporary, open(temporary, "xb") as stream:
        stream.write(data)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically, line ends as given."""
    write_bytes(path, text.encode("utf-8"))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON of plain values, paths and NumPy or torch scalars and arrays; safe to encode as UTF-8.

    Raises TypeError for anything else. Non-finite numbers become NaN and Infinity, as Python reads them.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a file name that is not Unicode
        text = json.dumps(value, indent=indent, ensure_ascii=True, default=_plain)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    for method in ("tolist", "item"):
        if hasattr(value, method):
            return getattr(value, method)()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json_text(value, indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file. Raises `InputError` when it is missing, unreadable or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing.", hint="Check the folder you chose.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged: it is not complete JSON.", hint="Restore it from a copy, or make it again."
        ) from error


def append_bytes(target: Path, data: bytes) -> None:
    """Append `data` in one write to `target`, on a line of its own. Raises OSError, also when it was cut."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    handle = os.open(target, flags, 0o666)
    try:
        if os.fstat(handle).st_size:
            os.lseek(handle, -1, os.SEEK_END)
            if os.read(handle, 1) != b"\n":
                data = b"\n" + data
        if os.write(handle, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    finally:
        os.close(handle)
