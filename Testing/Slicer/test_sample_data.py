"""Sample cohorts: fetched from a server on this computer, unpacked safely, made into studies, offered."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from SFRSegmentationLib import sample_cohorts, sample_data
from SFRSegmentationLib.sample_cohorts import COHORTS, Cohort, make, unpack

from SFRCore.errors import Cancelled, DiskFull, InputError
from SFRCore.runtime.transfer import RemoteFile
from SFRCore.study import Study


def volume(path: Path, value: int = 100, label: bool = False) -> bytes:
    voxels = np.zeros((6, 8, 10), np.uint8 if label else np.int16)
    voxels[2:4, 3:6, 4:7] = 1 if label else value
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((1.25, 1.25, 2.7))
    sitk.WriteImage(image, str(path))
    return path.read_bytes()


def archive(path: Path, entries: dict[str, bytes | tarfile.TarInfo]) -> Path:
    with tarfile.open(path, "w") as opened:
        for name, content in entries.items():
            if isinstance(content, tarfile.TarInfo):
                opened.addfile(content)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def decathlon(tmp_path_factory) -> bytes:
    """A small archive of the Decathlon's make: ten labeled volumes, two without, and what macOS adds."""
    folder = tmp_path_factory.mktemp("made")
    label = volume(folder / "label.nii.gz", label=True)
    entries: dict[str, bytes | tarfile.TarInfo] = {"Task02_Heart/dataset.json": os.urandom(400_000)}
    for number in range(3, 13):
        entries[f"Task02_Heart/imagesTr/la_{number:03d}.nii.gz"] = volume(
            folder / "image.nii.gz", 100 + number
        )
        entries[f"Task02_Heart/labelsTr/la_{number:03d}.nii.gz"] = label
        entries[f"./Task02_Heart/imagesTr/._la_{number:03d}.nii.gz"] = b"resource fork"
    for number in (1, 2):
        entries[f"Task02_Heart/imagesTs/la_{number:03d}.nii.gz"] = volume(
            folder / "image.nii.gz", 100 + number
        )
    return archive(folder / "small.tar", entries).read_bytes()


@pytest.fixture
def server(decathlon, monkeypatch):
    """Serves the archive, resumably; ``cuts`` are the bytes after which a connection ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Range", ""))
            start = int(asked[-1].removeprefix("bytes=").removesuffix("-") or 0)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(decathlon) - 1}/{len(decathlon)}")
            self.send_header("Content-Length", str(len(decathlon) - start))
            self.end_headers()
            body = decathlon[start:]
            self.wfile.write(body[: cuts.pop(0)] if cuts else body)

        def log_message(self, *arguments):
            pass

    asked: list[str] = []
    cuts: list[int] = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    known = RemoteFile(
        "Task02_Heart.tar", hashlib.md5(decathlon).hexdigest(), len(decathlon), algorithm="md5"
    )
    url = f"http://127.0.0.1:{http.server_port}/Task02_Heart.tar"
    monkeypatch.setitem(COHORTS, "left_atrium", Cohort(known, url))
    yield types.SimpleNamespace(asked=asked, cuts=cuts, half=len(decathlon) // 2)
    http.shutdown()
    http.server_close()


def test_left_atria_are_fetched_unpacked_and_made_into_a_study(server, tmp_path):
    server.cuts.append(server.half)
    said, seen = [], []
    root = make(
        "left_atrium", tmp_path, progress=lambda done, total: seen.append((done, total)), say=said.append
    )
    assert server.asked[0] == "" and server.asked[1].startswith("bytes=")
    study = Study.open(root)
    roles = [case.role for case in study.cases.values()]
    assert (roles.count("labeled"), roles.count("unlabeled"), roles.count("test")) == (4, 4, 4)
    assert [structure.name for structure in study.structures] == ["Left atrium"]
    assert sorted(p.name for p in (tmp_path / "left_atrium").iterdir() if p.name[0] != ".") == [
        "data",
        "study",
    ]
    assert seen[-1] == (12, 12) and said[-1] == f"The study is in {root}."
    assert make("left_atrium", tmp_path) == root and len(server.asked) == 2


def test_a_cancelled_download_goes_on_where_it_stopped(server, tmp_path):
    server.cuts.append(server.half)

    def cancel(done, total):
        if done:
            raise Cancelled("Stopped.")

    with pytest.raises(Cancelled):
        make("left_atrium", tmp_path, progress=cancel)
    assert not (tmp_path / "left_atrium" / "study").exists()
    make("left_atrium", tmp_path)
    assert (tmp_path / "left_atrium" / "study" / "study.json").is_file()


def test_an_archive_cannot_write_elsewhere(tmp_path):
    link = tarfile.TarInfo("T/imagesTr/link.nii.gz")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    evil = archive(
        tmp_path / "evil.tar",
        {
            "T/imagesTr/../../../outside.nii.gz": b"x",
            "/absolute/imagesTr/a.nii.gz": b"x",
            "T/imagesTr/sub/deep.nii.gz": b"x",
            "T/imagesTr/run.sh": b"x",
            "T/imagesTr/link.nii.gz": link,
            "T/imagesTr/good.nii.gz": b"good",
        },
    )
    unpack(evil, tmp_path / "in" / "data")
    found = sorted(str(p.relative_to(tmp_path / "in")) for p in (tmp_path / "in").rglob("*") if p.is_file())
    assert found == ["data/imagesTr/good.nii.gz"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.tar", "in"]


def test_damaged_archives_and_full_disks_leave_nothing(tmp_path, decathlon, monkeypatch):
    cut = tmp_path / "cut.tar"
    with tarfile.open(fileobj=io.BytesIO(decathlon)) as opened:
        inside = opened.getmembers()[-1].offset_data + 10
    cut.write_bytes(decathlon[:inside])
    foreign = archive(tmp_path / "foreign.tar", {"readme.txt": b"hello"})
    for path in (cut, foreign):
        with pytest.raises(InputError, match="damaged or is not an archive"):
            unpack(path, tmp_path / "place" / "data")
    monkeypatch.setattr(sample_cohorts, "free_space", lambda path: 100)
    whole = tmp_path / "whole.tar"
    whole.write_bytes(decathlon)
    with pytest.raises(DiskFull, match="no room for the sample data"):
        unpack(whole, tmp_path / "place" / "data")
    assert list((tmp_path / "place").iterdir()) == []


class Source:
    """As SampleDataSource keeps it; lists of unequal length are refused there too."""

    def __init__(self, uris, fileNames, nodeNames, loadFiles, **rest):
        assert len(uris) == len(fileNames) == len(nodeNames) == len(loadFiles)
        self.fileNames, self.rest = fileNames, rest


@pytest.fixture
def offered(monkeypatch):
    """A stand-in for Slicer's Sample Data module, with those arguments of the real one that are used."""
    sources: dict[str, Source] = {}

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(
            category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None, loadFiles=None,
            customDownloader=None, thumbnailFileName=None,
        ):  # fmt: skip
            assert category == "SFR"
            sources[sampleName] = Source(
                uris, fileNames, nodeNames, loadFiles, downloader=customDownloader, icon=thumbnailFileName
            )

    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=SampleDataLogic))
    return sources


def test_offered_in_sample_data_and_opened_in_the_panel(widget, offered, monkeypatch):
    sample_data.register()
    assert list(offered) == ["SFRInvented", "SFRLeftAtrium"]
    assert all(Path(source.rest["icon"]).is_file() for source in offered.values())
    asked = []
    monkeypatch.setattr(widget.panel.steps["setUp"].downloads, "getSample", asked.append)
    for source in offered.values():
        assert source.rest["downloader"](source) == []
    assert asked == ["synthetic", "left_atrium"] and widget.panel.openKey == "setUp"
