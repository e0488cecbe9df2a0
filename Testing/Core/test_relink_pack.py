"""Studies that travel: images found after a move, and copied in byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SFRCore.errors import Cancelled, DiskFull, InputError
from SFRCore.study import Study
from SFRCore.volumes import read_image

DICOM = Path(__file__).parents[3] / "shared/data/abdomen_ct/dicom"


def write(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).normal(size=(5, 6, 7)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    return path


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = Study.create(tmp_path / "study", structures={1: "Left atrium"})
    for index, name in enumerate(("a.nrrd", "b.nii.gz")):
        made.add(write(tmp_path / "scans" / name, index))
    return made


def test_moved_images_are_found_by_name(study: Study, tmp_path: Path):
    shutil.move(tmp_path / "scans", tmp_path / "archive" / "2026")
    opened = Study.open(study.root)
    assert [c.id for c in opened.missing_images()] == ["a", "b"]
    result = opened.relink(tmp_path / "archive")
    assert result.missing == {} and result.found == {
        "a": tmp_path / "archive/2026/a.nrrd", "b": tmp_path / "archive/2026/b.nii.gz",
    }  # fmt: skip
    again = Study.open(study.root)
    assert again.image_path("a") == tmp_path / "archive/2026/a.nrrd" and again.missing_images() == []
    assert again.case("a").image_identity["sha256"] == study.case("a").image_identity["sha256"]
    assert opened.image_path("b").is_file() and again.relink(tmp_path / "archive").found == {}


def test_renamed_images_are_found_by_their_contents(study: Study, tmp_path: Path):
    (tmp_path / "new").mkdir()
    (tmp_path / "scans/a.nrrd").rename(tmp_path / "new/patient 1.nrrd")
    assert study.relink([tmp_path / "new"]).found == {"a": tmp_path / "new/patient 1.nrrd"}
    assert study.case("a").id == "a" and study.image_path("b") == tmp_path / "scans/b.nii.gz"


def test_file_of_the_same_name_with_other_contents_is_not_taken(study: Study, tmp_path: Path):
    (tmp_path / "scans/a.nrrd").unlink()
    other = write(tmp_path / "other/a.nrrd", seed=77)
    result = study.relink(tmp_path / "other")
    assert result.found == {} and "other contents" in result.missing["a"]
    assert study.case("a").image == str(tmp_path / "scans/a.nrrd") and other.is_file()
    with pytest.raises(InputError, match="is not a folder"):
        study.relink(tmp_path / "nowhere")


def test_without_a_hash_the_name_must_be_unique(study: Study, tmp_path: Path):
    with study.transaction():
        study.case("a").image_identity = None
    (tmp_path / "scans/a.nrrd").unlink()
    write(tmp_path / "one/a.nrrd")
    write(tmp_path / "two/a.nrrd")
    assert "several" in study.relink([tmp_path / "one", tmp_path / "two"]).missing["a"]
    assert study.relink(tmp_path / "one").found == {"a": tmp_path / "one/a.nrrd"}
    assert len(study.case("a").image_identity["sha256"]) == 64


def test_images_of_a_study_from_another_system_are_found(study: Study, tmp_path: Path):
    path = study.root / "study.json"
    data = json.loads(path.read_text())
    data["cases"][0]["image"] = "D:\\cohort\\scans\\a.nrrd"
    path.write_text(json.dumps(data))
    opened = Study.open(study.root)
    assert [c.id for c in opened.missing_images()] == ["a"]
    assert opened.relink(tmp_path / "scans").found == {"a": tmp_path / "scans/a.nrrd"}


def test_moved_dicom_folder_is_found(study: Study, tmp_path: Path):
    if not DICOM.is_dir():
        pytest.skip("shared/data/abdomen_ct is not here")
    shutil.copytree(DICOM, tmp_path / "ct")
    study.add_dicom(tmp_path / "ct")
    (tmp_path / "moved").mkdir()
    (tmp_path / "ct").rename(tmp_path / "moved" / "series 7")
    assert study.relink(tmp_path / "moved").found == {"case_0001": tmp_path / "moved/series 7"}


def test_packed_images_are_the_same_bytes_and_stand_alone(study: Study, tmp_path: Path):
    inside = study.add(sitk.ReadImage(str(tmp_path / "scans/a.nrrd")), id="memory").image
    before = {id: study.image_path(id).read_bytes() for id in ("a", "b")}
    assert study.pack() == {"a": study.root / "images/a.nrrd", "b": study.root / "images/b.nii.gz"}
    assert study.outside_files() == [] and study.case("memory").image == inside
    shutil.move(study.root, tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "scans")
    moved = Study.open(tmp_path / "elsewhere")
    assert {id: moved.image_path(id).read_bytes() for id in ("a", "b")} == before
    assert moved.case("a").image == "images/a.nrrd" and moved.missing_images() == []
    assert moved.outside_files() == [] and moved.pack() == {}
    assert moved.image_path("a").stat().st_mtime_ns == moved.case("a").image_identity["mtime_ns"]


def test_pack_overwrites_nothing_and_goes_on_where_it_was_cut_off(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mine = write(study.root / "images" / "a.nrrd", seed=50)
    before = mine.read_bytes()
    copied: list[str] = []
    copy_in = Study._copy_in

    def cut_off(self: Study, id: str, source: Path) -> Path:
        target = copy_in(self, id, source)
        copied.append(target.name)
        if id == "b":
            raise KeyboardInterrupt
        return target

    monkeypatch.setattr(Study, "_copy_in", cut_off)
    with pytest.raises(KeyboardInterrupt):
        study.pack()
    monkeypatch.undo()
    again = Study.open(study.root)
    assert again.case("a").image == "images/a-2.nrrd" and mine.read_bytes() == before
    assert [p.name for p in again.outside_files()] == ["b.nii.gz"] and copied == ["a-2.nrrd", "b.nii.gz"]
    assert again.pack() == {"b": again.root / "images/b.nii.gz"}  # the copy that was there is used
    assert sorted(p.name for p in (study.root / "images").iterdir()) == ["a-2.nrrd", "a.nrrd", "b.nii.gz"]


def test_pack_says_before_it_begins_what_is_missing(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "scans/b.nii.gz").unlink()
    with pytest.raises(InputError, match=r"b\.nii\.gz of case b is missing"):
        study.pack()
    assert not (study.root / "images").exists()
    write(tmp_path / "scans/b.nii.gz", 1)
    monkeypatch.setattr("SFRCore.study.transfer.free_space", lambda path: 1000)
    with pytest.raises(DiskFull, match="more than is free"):
        study.pack()
    assert not (study.root / "images").exists() and len(study.outside_files()) == 2


def test_header_with_voxels_beside_it_becomes_one_file(study: Study, tmp_path: Path):
    header = write(tmp_path / "scans" / "m.mhd", 5)
    assert (tmp_path / "scans" / "m.raw").is_file()
    study.add(header)
    study.pack()
    assert study.case("m").image == "images/m.nrrd"
    want, found = read_image(header), read_image(study.image_path("m"))
    assert np.array_equal(sitk.GetArrayFromImage(want), sitk.GetArrayFromImage(found))


def test_dicom_folder_is_packed_as_a_folder(study: Study, tmp_path: Path):
    if not DICOM.is_dir():
        pytest.skip("shared/data/abdomen_ct is not here")
    study.add_dicom(DICOM)
    study.pack()
    folder = study.root / "images" / "case_0001"
    assert study.image_path("case_0001") == folder
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in DICOM.iterdir()
    }


def test_both_are_stopped_between_two_images(study: Study, tmp_path: Path):
    """Packing keeps what it has copied, and is done in full the next time; finding changes nothing."""

    def stop(path: Path) -> None:
        if path.name == "b.nii.gz":
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        study.pack(on_image=stop)
    assert study.case("a").image == "images/a.nrrd" and study.case("b").outside
    shutil.move(tmp_path / "scans", tmp_path / "archive")
    (study.root / "images" / "a.nrrd").rename(tmp_path / "archive" / "a again.nrrd")
    with pytest.raises(Cancelled):
        study.relink(tmp_path / "archive", on_image=stop)
    assert len(study.missing_images()) == 2
    assert len(study.relink(tmp_path / "archive").found) == 2 and len(study.pack()) == 2
