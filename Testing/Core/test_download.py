"""Downloads against a small server on this computer: resumed, checked, whole or not there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from SFRCore.errors import Cancelled, DiskFull, InputError
from SFRCore.foundation.download import (
    CHECKPOINTS,
    Checkpoint,
    checkpoint_folder,
    checkpoint_path,
    download,
    is_downloaded,
    is_whole,
)
from SFRCore.runtime import transfer
from SFRCore.runtime.transfer import DownloadError

CONTENT = os.urandom(3_000_000)
KNOWN = Checkpoint("small.pth", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


class Server(BaseHTTPRequestHandler):
    """Sends ``content``; can cut the connection, ignore ranges, answer errors or redirect."""

    content: ClassVar[bytes]
    cuts: ClassVar[list[int]]
    ranges: ClassVar[bool]
    errors: ClassVar[list[int]]
    redirect: ClassVar[str]
    asked: ClassVar[list[str]]

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range", ""))
        if self.redirect:
            self.send_response(302)
            self.send_header("Location", self.redirect)
            self.end_headers()
            return
        if self.errors:
            self.send_error(self.errors.pop(0))
            return
        start = 0
        if self.ranges and "Range" in self.headers:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            self.send_response(200)
        body = self.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.cuts.pop(0)] if self.cuts else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Server.content, Server.cuts, Server.ranges, Server.errors = CONTENT, [], True, []
    Server.redirect, Server.asked = "", []
    monkeypatch.setitem(CHECKPOINTS, "vit_b", KNOWN)
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/files"
    http.shutdown()
    http.server_close()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.endswith(".lock"))


def test_a_download_is_whole_reports_progress_and_is_made_once(server: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = tmp_path / "mit Leerzeichen"
    assert not is_downloaded("vit_b", folder)
    path = download("vit_b", folder, progress=lambda done, total: seen.append((done, total)), base_url=server)
    assert path == checkpoint_path("vit_b", folder) and path.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert is_downloaded("vit_b", folder) and is_whole("vit_b", folder)
    assert names(folder) == ["small.pth"]
    assert download("vit_b", folder, base_url=server) == path
    assert len(Server.asked) == 1


def test_a_cut_connection_is_resumed_where_it_stopped(server: str, tmp_path: Path) -> None:
    Server.cuts = [1_000_000, 500_000]
    path = download("vit_b", tmp_path, base_url=server, pause=0)
    assert path.read_bytes() == CONTENT
    starts = [int(asked.removeprefix("bytes=").removesuffix("-") or 0) for asked in Server.asked]
    assert (
        starts[0] == 0 and 900_000 < starts[1] <= 1_000_000 and starts[1] + 400_000 < starts[2] <= 1_500_000
    )


def test_a_cancelled_download_keeps_what_arrived_for_the_next(server: str, tmp_path: Path) -> None:
    def cancel(done: int, total: int) -> None:
        if done >= 1 << 20:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        download("vit_b", tmp_path, progress=cancel, base_url=server)
    assert names(tmp_path) == ["small.pth.part"] and not is_downloaded("vit_b", tmp_path)
    assert download("vit_b", tmp_path, base_url=server).read_bytes() == CONTENT
    assert Server.asked[1] == f"bytes={1 << 20}-"


def test_a_server_that_cannot_resume_sends_all_again(server: str, tmp_path: Path) -> None:
    Server.cuts, Server.ranges = [2_000_000], False
    assert download("vit_b", tmp_path, base_url=server, pause=0).read_bytes() == CONTENT


def test_a_spoilt_or_too_long_part_is_fetched_anew(server: str, tmp_path: Path) -> None:
    for part in (b"x" * 1000, b"x" * len(CONTENT), CONTENT + b"more"):
        (tmp_path / "small.pth.part").write_bytes(part)
        path = download("vit_b", tmp_path, base_url=server, pause=0)
        assert path.read_bytes() == CONTENT
        path.unlink()


def test_a_spoilt_file_in_place_is_replaced(server: str, tmp_path: Path) -> None:
    checkpoint_path("vit_b", tmp_path).write_bytes(b"x" * len(CONTENT))
    assert is_downloaded("vit_b", tmp_path) and not is_whole("vit_b", tmp_path)
    assert download("vit_b", tmp_path, base_url=server).read_bytes() == CONTENT


@pytest.mark.parametrize("content", [b"y" * len(CONTENT), CONTENT + b"more"], ids=["other", "longer"])
def test_other_content_is_refused_and_removed(server: str, tmp_path: Path, content: bytes) -> None:
    Server.content = content
    with pytest.raises(DownloadError, match="checksum differs"):
        download("vit_b", tmp_path, base_url=server, pause=0)
    assert names(tmp_path) == []


def test_passing_server_errors_are_tried_again_and_lasting_ones_said(server: str, tmp_path: Path) -> None:
    Server.errors = [503, 500]
    assert download("vit_b", tmp_path, base_url=server, pause=0).read_bytes() == CONTENT
    checkpoint_path("vit_b", tmp_path).unlink()
    Server.errors, Server.asked = [404], []
    with pytest.raises(DownloadError, match="the server answered 404") as caught:
        download("vit_b", tmp_path, base_url=server, pause=0)
    assert len(Server.asked) == 1 and str(tmp_path) in caught.value.hint
    Server.errors, Server.asked = [503] * 9, []
    with pytest.raises(DownloadError, match="503"):
        download("vit_b", tmp_path, base_url=server, pause=0)
    assert len(Server.asked) == 5


def test_no_server_is_said_in_a_sentence(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="small.pth could not be downloaded: the connection failed"):
        download("vit_b", tmp_path, base_url="http://127.0.0.1:9/none", pause=0)


def test_unencrypted_addresses_are_refused_also_behind_a_redirect(server: str, tmp_path: Path) -> None:
    for address in ("http://example.org/x", "ftp://example.org/x", "file:///etc"):
        with pytest.raises(InputError, match="not be encrypted"):
            download("vit_b", tmp_path, base_url=address)
    assert Server.asked == []
    Server.redirect = "http://example.org/elsewhere"
    with pytest.raises(InputError, match=r"http://example\.org/elsewhere is not downloaded"):
        download("vit_b", tmp_path, base_url=server, pause=0)
    assert len(Server.asked) == 1
    assert names(tmp_path) == []


def test_a_full_disk_is_said_before_the_download(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "free_space", lambda path: len(CONTENT) - 1)
    with pytest.raises(DiskFull, match=r"no room for small\.pth") as caught:
        download("vit_b", tmp_path, base_url=server)
    assert str(tmp_path) in caught.value.hint and Server.asked == []


def test_a_whole_file_is_used_also_where_the_folder_cannot_be_written(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_path("vit_b", tmp_path)
    path.write_bytes(CONTENT)

    def refuse(*args: object, **options: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(transfer, "FileLock", refuse)
    assert download("vit_b", tmp_path, base_url=server) == path
    assert Server.asked == []


def test_two_downloads_of_one_file_do_not_meet(server: str, tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        if done:
            with pytest.raises(InputError, match=r"download of small\.pth"):
                download("vit_b", tmp_path, base_url=server)
            raise Cancelled("Seen.")

    with pytest.raises(Cancelled):
        download("vit_b", tmp_path, progress=second, base_url=server)


def test_names_and_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="called vit_x"):
        download("vit_x", tmp_path)
    monkeypatch.setenv("SFR_CHECKPOINTS", str(tmp_path / "here"))
    assert checkpoint_folder() == tmp_path / "here"
    monkeypatch.delenv("SFR_CHECKPOINTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert checkpoint_folder() == tmp_path / "sfr" / "checkpoints"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert checkpoint_folder().parts[-4:] == ("Library", "Caches", "sfr", "checkpoints")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be made"):
        download("vit_b", tmp_path / "file" / "folder")


def test_downloading_needs_no_torch() -> None:
    code = "import sys, SFRCore.foundation.download; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
