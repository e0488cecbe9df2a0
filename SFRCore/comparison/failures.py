"""What happens to a comparison where the training of a row fails."""

from __future__ import annotations

import shutil

from SFRCore.errors import Cancelled, SFRError, described
from SFRCore.runtime.files import is_disk_full
from SFRCore.runtime.runs import run_folders
from SFRCore.study import Study


def ends_all(error: Exception) -> bool:
    """Whether other rows would fail too: cancelled, no memory, a full disk, a GPU that must be begun anew."""
    from SFRCore.runtime.devices import is_out_of_memory

    if isinstance(error, SFRError):
        return isinstance(error, Cancelled) or error.exit_code == 4
    return is_disk_full(error) or is_out_of_memory(error) or "CUDA error" in str(error)


def reason_of(error: Exception, copy: Study) -> tuple[str, str]:
    """Message and hint of what ended a row's run in the comparison's study."""
    if isinstance(error, SFRError):
        return error.message, error.hint
    runs = run_folders(copy.root)
    log = runs[-1].log_file if runs else None
    hint = f"The details are in {log}." if log is not None and log.is_file() else ""
    return f"The program failed unexpectedly ({described(error)}).", hint


def forget_checkpoints(copy: Study) -> None:
    """Let what a method with a mistake has trained so far not go on once the mistake is mended."""
    for run in run_folders(copy.root)[-1:]:
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
