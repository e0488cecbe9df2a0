"""What a user's choice of a foundation means, before any of it is built."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from SFRCore.errors import InputError
from SFRCore.foundation.checkpoints import load_checkpoint_file
from SFRCore.foundation.spec import SPECS, FoundationSpec, spec_from_state


def foundation_spec(name_or_file: str) -> FoundationSpec:
    """The architecture of a known foundation, or of the user's checkpoint file.

    Raises InputError where it is neither, or the file is of another architecture.
    """
    if name_or_file in SPECS:
        return SPECS[name_or_file]
    path = Path(name_or_file).expanduser()
    if not path.is_file():
        raise InputError(
            f"The foundation '{name_or_file}' is neither a known name nor a file.",
            hint=f"Known names: {', '.join(SPECS)}.",
        )
    return _of_file(path.resolve(), path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _of_file(path: Path, _changed: int) -> FoundationSpec:
    return spec_from_state(load_checkpoint_file(path), source=str(path))
