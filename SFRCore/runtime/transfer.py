"""Fetching one known file: https only, resumable, checked, whole or not there."""

from __future__ import annotations

import hashlib
import os
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

_BLOCK = 1 << 16
_REPORT_EVERY = 1 << 20
_ATTEMPTS = 5
_TIMEOUT = (15.0, 60.0)


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded: its name on the server, hexadecimal checksum and size in bytes.

    ``algorithm`` is hashlib's name of the checksum; ``folder_variable`` the environment variable that chooses
    where the file goes.
    """

    filename: str
    checksum: str
    size: int
    algorithm: str = "sha256"
    folder_variable: str = "SFR_CHECKPOINTS"

    def is_whole(self, path: Path) -> bool:
        """Whether ``path`` is this file; reads all of it where the size is right."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, self.algorithm).hexdigest() == self.checksum


class DownloadError(SFRError):
    """The network or the server failed; what arrived is kept, the next try goes on from there."""

    default_code = "download"


def fetch(
    url: str, target: Path, known: RemoteFile, *, progress: Progress | None = None, pause: float = 1.0
) -> Path:
    """Download ``url`` to ``target`` and return it; at once where it is there, whole.

    ``progress(done, total)`` is called with bytes; what it raises ends the download and keeps what arrived,
    so that the next call goes on from there. ``pause`` is the wait in seconds before the second of five
    attempts; it doubles with each one.

    Raises InputError (unsafe address, folder that cannot be made, another process downloads it), DiskFull,
    and DownloadError where the network fails or what arrives does not have the known checksum.
    """
    require_safe(url)
    if known.is_whole(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(
                f"The folder {target.parent} for downloads could not be made because the disk is full.",
                hint=_space_hint(target, known),
            ) from error
        raise InputError(
            f"The folder {target.parent} for downloads cannot be made.",
            hint=f"Choose another one with the variable {known.folder_variable}.",
        ) from error
    with FileLock(
        target.with_name(f".{target.name}.lock"), timeout=1.0, purpose=f"download of {known.filename}"
    ):
        if known.is_whole(target):
            return target
        part = target.with_name(target.name + ".part")
        _bring(url, part, known, progress, pause)
        os.replace(part, target)
    return target


def require_safe(url: str) -> None:
    """Raise InputError for an address that is neither https nor on this computer."""
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
        require_safe(urljoin(answer.url, answer.headers["Location"]))


def _bring(url: str, part: Path, known: RemoteFile, progress: Progress | None, pause: float) -> None:
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
        if known.is_whole(part):
            return
        part.unlink()
        if not resumed:
            raise DownloadError(
                f"{url} did not send the known file: its checksum differs.",
                hint="Try another network; a proxy may have replaced the file.",
            )
    raise DownloadError(
        f"{known.filename} could not be downloaded: {_reason(last)}.",
        hint="Check the connection (and the proxy, variable HTTPS_PROXY) and start again: it goes on from "
        f"where it stopped. Or fetch {url} in another way and put it into {part.parent}.",
    ) from last


def _transfer(url: str, part: Path, known: RemoteFile, progress: Progress | None) -> None:
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


def _space_hint(part: Path, known: RemoteFile) -> str:
    return (
        f"{known.size / 1e9:.1f} GB are needed in {part.parent}; free some, or choose another folder with "
        f"the variable {known.folder_variable}."
    )


def _reason(error: Exception | None) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code}"
    if isinstance(error, requests.exceptions.SSLError):
        return "the encrypted connection could not be made"
    if isinstance(error, requests.Timeout):
        return "the server did not answer in time"
    return "the connection failed"
