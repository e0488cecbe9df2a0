"""Files are whole or not there, and a failed write is explained."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from SFRCore.errors import DiskFull, InputError
from SFRCore.runtime import atomic
from SFRCore.runtime.files import (
    append_bytes,
    atomic_path,
    file_identity,
    free_space,
    full_suffix,
    read_json,
    same_file_quick,
    sweep_temporary,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_atomic_path_keeps_the_format_and_the_old_file_until_the_end(tmp_path: Path) -> None:
    target = tmp_path / "Röntgen 1.nii.gz"
    target.write_bytes(b"old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".Röntgen 1.sfr-tmp-")
        assert temporary.name.endswith(".nii.gz")
        sitk.WriteImage(sitk.Image(4, 3, 2, sitk.sitkInt16), str(temporary))
        assert target.read_bytes() == b"old"
    assert sitk.ReadImage(str(target)).GetSize() == (4, 3, 2)
    assert names(tmp_path) == [target.name]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.nii.gz", ".nii.gz"),
        ("a.seg.nrrd", ".seg.nrrd"),
        ("a.b.NRRD", ".NRRD"),
        ("a", ""),
        (".nii.gz", ".gz"),
    ],
)
def test_full_suffix(name: str, suffix: str) -> None:
    assert full_suffix(Path(name)) == suffix


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), FileNotFoundError(2, "gone", "/x/y")]
)
def test_a_failed_body_leaves_the_old_file_and_no_rest(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("weights: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_with_the_file(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "weights.safetensors"
    with (
        pytest.raises(DiskFull, match=r"weights\.safetensors.*disk is full") as caught,
        atomic_path(target) as path,
    ):
        path.write_bytes(b"half")
        raise error
    assert caught.value.exit_code == 4
    assert caught.value.hint
    assert names(tmp_path) == []


def test_a_full_disk_at_fsync_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="study.json"):
        write_json(tmp_path / "study.json", {"a": 1})
    assert names(tmp_path) == []


def test_a_volume_that_a_full_disk_cut_short_without_a_word_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.nrrd"
    target.write_bytes(b"old")
    monkeypatch.setattr(atomic, "free_space", lambda path: 1000)
    with pytest.raises(DiskFull), atomic_path(target) as path:
        path.write_bytes(b"half")
    monkeypatch.undo()

    def over_quota(handle: int, data: bytes) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "write", over_quota)
    with pytest.raises(DiskFull), atomic_path(target) as path:
        path.write_bytes(b"half")
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["a.nrrd"]


@pytest.mark.parametrize(("free", "expected"), [(1000, DiskFull), (1 << 30, RuntimeError)])
def test_a_writers_vague_error_is_a_full_disk_only_when_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, expected: type[Exception]
) -> None:
    monkeypatch.setattr(atomic, "free_space", lambda path: free)
    with pytest.raises(expected), atomic_path(tmp_path / "a.nrrd"):
        raise RuntimeError("Exception thrown in SimpleITK WriteImage")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise OSError(number, os.strerror(number), str(source), None, str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match=r"a\.json cannot be written"):
        write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == []


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_path(tmp_path / "copy.nrrd"):
        raise PermissionError(errno.EACCES, "Permission denied", "/other/source.nrrd")


def test_a_folder_becomes_whole_or_not(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "series") as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "1.dcm").write_bytes(b"1")
    assert (tmp_path / "series" / "deep" / "1.dcm").read_bytes() == b"1"
    with pytest.raises(ValueError), atomic_path(tmp_path / "other") as temporary:
        (temporary / "deep").mkdir(parents=True)
        raise ValueError
    assert names(tmp_path) == ["series"]


ROOT = Path(__file__).parents[2]

WRITER = """
import sys, time
from SFRCore.runtime.files import atomic_path
with atomic_path(sys.argv[1]) as path:
    path.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_leaves_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    target = tmp_path / "volume.nii.gz"
    target.write_bytes(b"old")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        assert sweep_temporary(tmp_path) == []
        assert len(names(tmp_path)) == 2
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    (tmp_path / ".mine").write_text("not a temporary file")
    assert len(sweep_temporary(tmp_path)) == 1
    assert names(tmp_path) == [".mine", "volume.nii.gz"]
    assert target.read_bytes() == b"old"


def test_sweeping_leaves_ones_own_and_another_hosts_fresh_file(tmp_path: Path) -> None:
    deep = tmp_path / "labels" / "a"
    deep.mkdir(parents=True)
    foreign = deep / ".x.sfr-tmp-999999-ffffffn0.nrrd"
    foreign.write_bytes(b"")
    with atomic_path(deep / "b.nrrd") as temporary:
        temporary.write_bytes(b"b")
        assert sweep_temporary(tmp_path, recursive=True) == []
    day_before = time.time() - 25 * 3600
    os.utime(foreign, (day_before, day_before))
    assert sweep_temporary(tmp_path) == []
    assert sweep_temporary(tmp_path, recursive=True) == [foreign]
    assert names(deep) == ["b.nrrd"]


def test_json_of_arrays_paths_and_odd_names_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    value = {"n": np.float32(0.5), "a": np.arange(3), "p": Path("x") / "y", "name": "左心房", "odd": "\udcff"}
    write_json(path, value)
    assert read_json(path) == {
        "n": 0.5,
        "a": [0, 1, 2],
        "p": os.path.join("x", "y"),
        "name": "左心房",
        "odd": "\udcff",
    }
    write_json(path, {"name": "左心房"})
    assert "左心房" in path.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        write_json(path, object())
    assert read_json(path) == {"name": "左心房"}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"study\.json is damaged"):
        read_json(path)


def test_missing_and_unreadable_json_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"study\.json is missing"):
        read_json(tmp_path / "study.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "a.json") == {}


def test_appending_closes_off_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append_bytes(path, b"one\n")
    with open(path, "ab") as stream:
        stream.write(b"to")
    append_bytes(path, b"three\n")
    assert path.read_bytes() == b"one\nto\nthree\n"


def test_identity_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    path.write_bytes(b"abc")
    identity = file_identity(path)
    assert identity["size"] == 3
    assert identity["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert same_file_quick(path, identity)
    os.utime(path, ns=(0, 0))
    assert same_file_quick(path, identity)
    path.write_bytes(b"abd")
    assert not same_file_quick(path, identity)
    path.write_bytes(b"abcd")
    assert not same_file_quick(path, identity)
    path.unlink()
    assert not same_file_quick(path, identity)
    with pytest.raises(InputError, match=r"a\.nrrd is missing"):
        file_identity(path)


def test_same_file_is_not_hashed_where_size_and_time_agree(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert same_file_quick(path, {**file_identity(path), "sha256": "another"})


def test_identity_of_a_folder_sees_names_contents_and_where_one_ends(tmp_path: Path) -> None:
    def make(name: str, content: dict[str, bytes]) -> str:
        folder = tmp_path / name
        folder.mkdir()
        for file, data in content.items():
            (folder / file).write_bytes(data)
        return str(file_identity(folder)["sha256"])

    first = make("a", {"1": b"x", "2": b"yz"})
    assert make("b", {"2": b"yz", "1": b"x"}) == first
    assert make("c", {"1": b"xy", "2": b"z"}) != first
    assert make("d", {"1": b"x", "3": b"yz"}) != first
    assert file_identity(tmp_path / "a")["size"] == 3


def test_free_space_of_a_path_to_be(tmp_path: Path) -> None:
    assert free_space(tmp_path / "not" / "yet") > 0


def test_text_is_written_as_given(tmp_path: Path) -> None:
    write_text(tmp_path / "a.csv", "a\r\nä\n")
    assert (tmp_path / "a.csv").read_bytes() == "a\r\nä\n".encode()
