"""A study made in a folder that holds other files: a mark says so until it is complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from SFRCore.errors import InputError
from SFRCore.runtime.files import left_behind, process_mark, write_text
from SFRCore.runtime.locks import FileLock
from SFRCore.study.folder import OWN_FOLDERS, STUDY_FILE

MARK = ".making"
_MARKED = re.compile(r"(\d+)-([0-9a-f]{6})\s*")


@contextmanager
def making(root: Path) -> Iterator[None]:
    """Mark an existing folder while a study is made in it; what was made is removed when the body raises.

    What a making that was cut off has left is removed first. Raises `InputError` where there is a study, a
    folder that is called like one of its own, or another process that makes one.
    """
    if not _is_half_made(root):
        refuse_existing(root)
    with FileLock(root / ".lock", purpose="making the study"):
        if _is_half_made(root):
            if not _is_abandoned(root / MARK):
                raise InputError(f"{root} is being made by another process.", hint="Wait until it is done.")
            _remove_made(root)
        refuse_existing(root)
        write_text(root / MARK, process_mark() + "\n")
    try:
        yield
    except BaseException:
        if _is_own(root / MARK):
            _remove_made(root)
        raise
    if _is_own(root / MARK):
        (root / MARK).unlink()


def refuse_half_made(root: Path) -> None:
    """Raise `InputError` for a study that is still being made, or whose making was cut off."""
    if _is_half_made(root):
        raise InputError(
            f"{root} is not a whole study: it is being made, or its making was cut off.",
            hint="Give the same sfr init again: it begins anew where nobody is at it.",
            code="half_made",
        )


def refuse_existing(root: Path) -> None:
    """Raise `InputError` where a new study would meet another, or folders called like its own."""
    if os.path.lexists(root / STUDY_FILE):
        raise InputError(
            f"{root} is a study already.", hint="Open it, or choose a new folder.", code="study_exists"
        )
    for name in OWN_FOLDERS:
        if os.path.lexists(root / name):
            raise InputError(
                f"{root} has a folder '{name}' already, which a study would write in.",
                hint="Choose a new, empty folder for the study.",
            )


def _is_half_made(root: Path) -> bool:
    return os.path.lexists(root / MARK)


def _is_abandoned(mark: Path) -> bool:
    try:
        made = _MARKED.fullmatch(mark.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return False
    return made is not None and left_behind(mark, int(made[1]), made[2])


def _is_own(mark: Path) -> bool:
    """Whether the mark is this process's: another that took it for dead may have begun anew."""
    with suppress(OSError, UnicodeDecodeError):
        return mark.read_text(encoding="utf-8").strip() == process_mark()
    return False


def _remove_made(root: Path) -> None:
    """Remove what a making writes; none of it was there before, and the mark goes last."""
    (root / STUDY_FILE).unlink(missing_ok=True)
    for name in (".staging", *OWN_FOLDERS):
        folder = root / name
        if folder.is_dir() and not folder.is_symlink():
            shutil.rmtree(folder)
    (root / MARK).unlink(missing_ok=True)
