"""Where files go that belong to the user and this computer, not to a study."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .worker_python import python_tag


def data_folder() -> Path:
    """``sfr`` in the user's data folder of this platform; $SFR_DATA where it is set.

    Never Slicer's own folders: they may be read-only, and an update replaces them.
    """
    chosen = os.environ.get("SFR_DATA")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Application Support")
    else:
        base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "sfr"


def packages_folder() -> Path:
    """The private folder with the worker's packages, for this version of Python."""
    return data_folder() / "packages" / python_tag()


def samples_folder() -> Path:
    """Where sample data are kept."""
    return data_folder() / "samples"


def chores_folder() -> Path:
    """Logs of what the Set up step runs in the background."""
    return data_folder() / "chores"


def rescued_folder() -> Path:
    """Corrections that a study could not take, for the user to find: nothing removes them."""
    return data_folder() / "rescued"
