"""Which file is it: size, time and SHA-256, to notice a changed file and to find a moved one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from SFRCore.errors import InputError


def unreadable(path: Path | str, error: OSError) -> InputError:
    """The error a user reads for a file that exists and cannot be read."""
    reason = error.strerror or "no reason given"
    return InputError(f"{path} cannot be read: {reason}.", hint="Check that you may read this file.")


def file_identity(path: Path | str) -> dict[str, Any]:
    """Size in bytes, time of change in ns and SHA-256 of a file, or of a folder (a DICOM series).

    For a folder: the total size, the newest time, and the hash over relative names and contents in order of
    name. Raises `InputError` when it is missing or unreadable.
    """
    source = Path(path)
    try:
        size, mtime_ns, members = _extent(source)
        digest = hashlib.sha256()
        for name, member in members:
            if name:
                digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
                digest.update(member.stat().st_size.to_bytes(8, "little"))
            with open(member, "rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing.", hint="`sfr relink` finds moved files.") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return {"size": size, "mtime_ns": mtime_ns, "sha256": digest.hexdigest()}


def _extent(source: Path) -> tuple[int, int, list[tuple[str, Path]]]:
    if not source.is_dir():
        status = source.stat()
        return status.st_size, status.st_mtime_ns, [("", source)]
    members = sorted((p.relative_to(source).as_posix(), p) for p in source.rglob("*") if p.is_file())
    stats = [p.stat() for _, p in members]
    return sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0), members


def same_file_quick(path: Path | str, identity: dict[str, Any]) -> bool:
    """Whether `path` still is what `identity` describes; it is hashed only where size or time differ."""
    source = Path(path)
    try:
        size, mtime_ns, _ = _extent(source)
    except OSError:
        return False
    if size != identity.get("size"):
        return False
    if mtime_ns == identity.get("mtime_ns"):
        return True
    return bool(file_identity(source)["sha256"] == identity.get("sha256"))


def renewed_identity(path: Path | str, identity: dict[str, Any]) -> dict[str, Any]:
    """`identity` where `path` has its size and time, else that of the file as it is now.

    Raises `InputError` when it is missing or unreadable.
    """
    source = Path(path)
    try:
        size, mtime_ns, _ = _extent(source)
    except OSError:
        size = mtime_ns = -1  # file_identity says what is wrong
    same = (size, mtime_ns) == (identity.get("size"), identity.get("mtime_ns"))
    return identity if same else file_identity(source)
