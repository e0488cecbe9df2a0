"""Fetching segment-anything's checkpoints: https only, resumable, checked, whole or not there."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests

from SFRCore.errors import DiskFull, InputError, SFRError
from SFRCore.runtime.files import free_space, is_disk_full
from SFRCore.runtime.locks import FileLock

Progress = Callable[[int, int], None]

SERVER = "https://dl.fbaipublicfiles.com/segment_anything"
_BLOCK = 1 << 16
_REPORT_EVERY = 1 << 20
_ATTEMPTS = 5
_TIMEOUT = (15.0, 60.0)


@dataclass(frozen=True)
class Checkpoint:
    """A file that can be downloaded: its name on the server, SHA-256 and size in bytes."""

    filename: str
    sha256: str
    size: int


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


class DownloadError(SFRError):
    """The network or the server failed; what arrived is kept, the next try goes on from there."""

    default_code = "download"


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
    path = checkpoint_path(name, folder)
    return path.is_file() and file_sha256(path) == _known(name).sha256


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
    _require_safe(url)
    target = checkpoint_path(name, folder)
    if is_whole(name, folder):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"The folder {target.parent} for checkpoints cannot be made.",
            hint="Choose another one with the variable SFR_CHECKPOINTS.",
        ) from error
    with FileLock(target.with_name(f".{known.filename}.lock"), timeout=1.0, purpose=f"download of {name}"):
        if is_whole(name, folder):
            return target
        part = target.with_name(known.filename + ".part")
        _fetch(url, part, known, progress, pause)
        os.replace(part, target)
    return target


def _known(name: str) -> Checkpoint:
    try:
        return CHECKPOINTS[name]
    except KeyError:
        raise InputError(
            f"There is no checkpoint called {name} to download.",
            hint=f"Choose one of {', '.join(CHECKPOINTS)}.",
        ) from None


def _require_safe(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (
        parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost", "::1")
    ):
        return
    raise InputError(
        f"{url} is not downloaded because the connection would not be encrypted.",
        hint="Use an https address.",
    )


def _refuse_unsafe_redirect(answer: requests.Response, **_: object) -> None:
    if answer.is_redirect:
        _require_safe(urljoin(answer.url, answer.headers["Location"]))


def _fetch(url: str, part: Path, known: Checkpoint, progress: Progress | None, pause: float) -> None:
    """Bring ``part`` to the whole, checked file; goes on from what is there."""
    last: Exception | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        resumed = part.exists() and part.stat().st_size > 0
        try:
            _transfer(url, part, known, progress)
        except requests.RequestException as error:
            last = error
            status = error.response.status_code if error.response is not None else None
            if status is not None and 400 <= status < 500 and status not in (408, 416, 429):
                break
            continue
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise DiskFull(
                f"{part.name} could not be written because the disk is full.", hint=_space_hint(part, known)
            ) from error
        if part.stat().st_size == known.size and file_sha256(part) == known.sha256:
            return
        part.unlink()
        if not resumed:
            raise DownloadError(
                f"{url} did not send the known checkpoint: its checksum differs.",
                hint="Try another network; a proxy may have replaced the file.",
            )
    raise DownloadError(
        f"{known.filename} could not be downloaded: {_reason(last)}.",
        hint="Check the connection (and the proxy, variable HTTPS_PROXY) and start again: it goes on from "
        f"where it stopped. Or fetch {url} in another way and put it into {part.parent}.",
    ) from last


def _transfer(url: str, part: Path, known: Checkpoint, progress: Progress | None) -> None:
    """One request: append the missing bytes to ``part``, or all where the server does not resume."""
    done = part.stat().st_size if part.exists() else 0
    if done > known.size:
        part.unlink()
        done = 0
    if done == known.size:
        return
    if free_space(part.parent) < known.size - done:
        raise DiskFull(f"There is no room for {known.filename}.", hint=_space_hint(part, known))
    # "identity": a proxy that compressed the file would make the ranges meaningless.
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    hooks = {"response": _refuse_unsafe_redirect}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT, hooks=hooks) as answer:
        if answer.status_code == 416:
            part.unlink()
        answer.raise_for_status()
        if done and not (
            answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        ):
            done = 0
        with open(part, "ab" if done else "wb") as stream:
            reported = done
            if progress is not None:
                progress(done, known.size)
            for block in answer.iter_content(_BLOCK):
                stream.write(block)
                done += len(block)
                if done > known.size:
                    break
                if progress is not None and (done - reported >= _REPORT_EVERY or done == known.size):
                    progress(done, known.size)
                    reported = done
            stream.flush()
            os.fsync(stream.fileno())
    if done < known.size:
        raise requests.ConnectionError(f"the connection ended after {done} of {known.size} bytes")


def _space_hint(part: Path, known: Checkpoint) -> str:
    return (
        f"{known.size / 1e9:.1f} GB are needed in {part.parent}; free some, or choose another folder with "
        "the variable SFR_CHECKPOINTS."
    )


def _reason(error: Exception | None) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code}"
    if isinstance(error, requests.exceptions.SSLError):
        return "the encrypted connection could not be made"
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time"
    return "the connection failed"
