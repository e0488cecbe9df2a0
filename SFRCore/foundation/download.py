"""Fetching segment-anything's checkpoints: https only, resumable, checked, whole or not there."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from SFRCore.errors import InputError
from SFRCore.runtime.transfer import Progress, RemoteFile, fetch

SERVER = "https://dl.fbaipublicfiles.com/segment_anything"


class Checkpoint(RemoteFile):
    """A checkpoint that can be downloaded: its name on the server, SHA-256 and size in bytes."""

    @property
    def sha256(self) -> str:
        """Its checksum."""
        return self.checksum


CHECKPOINTS: dict[str, Checkpoint] = {
    "vit_b": Checkpoint(
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
    ),
    "vit_l": Checkpoint(
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
    ),
    "vit_h": Checkpoint(
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
    ),
}


def checkpoint_folder() -> Path:
    """$SFR_CHECKPOINTS, or ``sfr/checkpoints`` in the user's cache folder of this platform."""
    chosen = os.environ.get("SFR_CHECKPOINTS")
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        cache = str(Path.home() / "Library" / "Caches")
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache) / "sfr" / "checkpoints"


def checkpoint_path(name: str, folder: Path | str | None = None) -> Path:
    """Where the checkpoint ``name`` lies or will lie. Raises InputError for an unknown name."""
    return Path(folder or checkpoint_folder()) / _known(name).filename


def is_downloaded(name: str, folder: Path | str | None = None) -> bool:
    """Whether a file of the right size is there; a quick look, ``is_whole`` reads it."""
    try:
        return checkpoint_path(name, folder).stat().st_size == _known(name).size
    except OSError:
        return False


def is_whole(name: str, folder: Path | str | None = None) -> bool:
    """Whether the checkpoint is there with the right SHA-256; reads the whole file."""
    return _known(name).is_whole(checkpoint_path(name, folder))


def file_sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def download(
    name: str,
    folder: Path | str | None = None,
    *,
    progress: Progress | None = None,
    base_url: str | None = None,
    pause: float = 1.0,
) -> Path:
    """Download checkpoint ``name`` to ``folder`` and return its path; at once where it is there, whole.

    ``progress(done, total)`` is called with bytes; what it raises ends the download and keeps what arrived,
    so that the next call goes on from there. ``base_url`` names a mirror: https, or http on this computer
    only. ``pause`` is the wait in seconds before the second of five attempts; it doubles with each one.

    Raises InputError (unknown name, unsafe address, another process downloads it), DiskFull, and
    DownloadError where the network fails or what arrives does not have the known SHA-256.
    """
    known = _known(name)
    url = f"{(base_url or SERVER).rstrip('/')}/{known.filename}"
    return fetch(url, checkpoint_path(name, folder), known, progress=progress, pause=pause)


def _known(name: str) -> Checkpoint:
    try:
        return CHECKPOINTS[name]
    except KeyError:
        raise InputError(
            f"There is no checkpoint called {name} to download.",
            hint=f"Choose one of {', '.join(CHECKPOINTS)}.",
        ) from None
