"""The study folder: its file, its cases, and what must hold whoever writes to it."""

from __future__ import annotations

import contextlib
import json
import ntpath
import os
import posixpath
import threading
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from SFRCore.errors import Cancelled, DiskFull, InputError
from SFRCore.runtime.locks import FileLock
from SFRCore.study import Case, Structure, Study, as_structures, default_color, making, parse_structures
from SFRCore.study.case import case_id_from, check_case_id, check_inside
from SFRCore.study.document import SCHEMA_VERSION, Document
from SFRCore.study.pairing import image_stem, label_stem, pair_files, stem

SIZE = (7, 6, 5)
CT_FOLDER = Path(__file__).parents[3] / "shared/data/abdomen_ct/dicom"


def make_image(seed: int = 0) -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=SIZE[::-1]).astype(np.float32))
    image.SetSpacing((0.5, 0.5, 3.0))
    image.SetOrigin((1.0, -2.0, 3.5))
    image.SetDirection((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    return image


def make_label(value: int = 1, seed: int = 0) -> sitk.Image:
    mask = np.random.default_rng(seed).random(SIZE[::-1]) > 0.5
    label = sitk.GetImageFromArray((mask * value).astype(np.uint8))
    label.CopyInformation(make_image())
    return label


def write(image: sitk.Image, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def edit(study: Study, change) -> None:
    path = study.root / "study.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def fail_on_problem(path: Path, error: Exception) -> None:
    raise AssertionError(f"{path}: {error}")


def in_child(work, *arguments) -> int:
    """Run `work` in another process, which exits with what it returns; the id of the process."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work(*arguments)
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study.create(tmp_path / "study", structures={1: "Left atrium"})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write(make_image(), tmp_path / "scans" / "scan01.nrrd")


# --- making and opening


def test_created_study_opens_with_what_it_was_given(tmp_path: Path):
    made = Study.create(
        tmp_path / "ä study", structures={2: "Posterior", 1: "Anterior"}, preset="x", other_as_background=True
    )
    opened = Study.open(made.root)
    assert [(s.value, s.name) for s in opened.structures] == [(1, "Anterior"), (2, "Posterior")]
    assert opened.values == (1, 2) and opened.preset == "x" and opened.other_as_background
    assert opened.cases == {} and not opened.readonly and opened.outside_files() == []
    assert Study.open(made.root / "study.json").root == made.root
    assert json.loads((made.root / "study.json").read_text())["schema_version"] == SCHEMA_VERSION == 1


def test_two_that_make_a_study_in_one_folder_leave_one_whole(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
):
    """Both have looked into the folder before either marks it; the loser fails after the winner is done."""
    root = tmp_path / "mine"
    write(make_image(), root / "notes.nrrd")
    both, done, said = threading.Barrier(2), threading.Event(), []
    write_text = making.write_text

    def marked(*words) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)
        write_text(*words)

    def make(first: bool) -> None:
        try:
            with making.making(root):
                if not first:
                    done.wait(5)
                Study.create(root, structures={1: "Left atrium"}).add(image)
        except InputError as error:
            said.append(error.message)
        finally:
            done.set()

    monkeypatch.setattr(making, "write_text", marked)
    threads = [threading.Thread(target=make, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(Study.open(root).cases) == ["scan01"] and len(said) == 1
    assert (root / "notes.nrrd").is_file() and not (root / making.MARK).exists()


def test_a_failed_making_removes_only_what_is_its_own(tmp_path: Path):
    with pytest.raises(RuntimeError), making.making(tmp_path):
        Study.create(tmp_path, structures={1: "Left atrium"})
        (tmp_path / making.MARK).write_text("1-abcdef\n")  # by one that took this process for dead
        raise RuntimeError
    assert (tmp_path / "study.json").is_file() and (tmp_path / making.MARK).is_file()


def test_create_refuses_a_folder_that_is_in_use(study: Study, tmp_path: Path):
    with pytest.raises(InputError, match="is a study already"):
        Study.create(study.root, structures={1: "A"})
    users = write(make_image(), tmp_path / "data" / "images" / "scan.nrrd")
    before = users.read_bytes()
    with pytest.raises(InputError, match="folder 'images' already"):
        Study.create(tmp_path / "data", structures={1: "A"})
    assert users.read_bytes() == before and not (tmp_path / "data" / "study.json").exists()
    with pytest.raises(InputError, match="is a file"):
        Study.create(users, structures={1: "A"})


def test_open_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        Study.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="is not a study"):
        Study.open(tmp_path)
    (tmp_path / "study.json").write_text('{"schema_version": 1, "struct')
    with pytest.raises(InputError, match=r"study\.json is damaged"):
        Study.open(tmp_path)
    (tmp_path / "study.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"study\.json cannot be used"):
        Study.open(tmp_path)


def test_newer_schema_is_refused(study: Study):
    edit(study, lambda data: data.update(schema_version=SCHEMA_VERSION + 1))
    with pytest.raises(InputError, match="newer SFR") as caught:
        Study.open(study.root)
    assert caught.value.code == "newer_schema" and "Update" in caught.value.hint
    edit(study, lambda data: data.update(schema_version="1"))
    with pytest.raises(InputError, match="schema version"):
        Study.open(study.root)


def test_schema_0_is_migrated_and_then_saved_as_1(study: Study, image: Path):
    study.add(image)
    old = {
        "structures": {"1": "Left atrium", "7": "Scar"},
        "cases": {"scan01": {"image": str(image), "role": "test", "colour of the walls": "blue"}},
        "site": "B",
    }
    (study.root / "study.json").write_text(json.dumps(old))
    opened = Study.open(study.root)
    assert opened.values == (1, 7) and opened.structures[1].name == "Scar"
    assert opened.case("scan01").role == "test"
    assert json.loads((study.root / "study.json").read_text()) == old  # looking at it changes nothing
    opened.set_role("scan01", "ignored")
    saved = json.loads((study.root / "study.json").read_text())
    assert saved["schema_version"] == 1 and saved["site"] == "B"
    assert saved["cases"][0]["colour of the walls"] == "blue" and saved["cases"][0]["role"] == "ignored"


def test_unknown_keys_survive_load_and_save(study: Study, image: Path):
    study.add(image)

    def change(data: dict) -> None:
        data["future"] = {"deep": [1, {"x": None}]}
        data["structures"][0]["snomed"] = "82471001"
        data["cases"][0]["scanner"] = {"field": 3.0}

    edit(study, change)
    again = Study.open(study.root)
    again.flag("scan01", "blurred")
    data = json.loads((study.root / "study.json").read_text())
    assert data["future"] == {"deep": [1, {"x": None}]}
    assert data["structures"][0]["snomed"] == "82471001"
    assert data["cases"][0]["scanner"] == {"field": 3.0} and data["cases"][0]["problem"] == "blurred"
    with again.transaction():
        again.case("scan01").extra["scanner"]["field"] = 1.5
    assert Study.open(study.root).case("scan01").extra == {"scanner": {"field": 1.5}}


# --- hostile or broken study files


@pytest.mark.parametrize(
    "path",
    [
        "../secret.nrrd", "images/../../secret.nrrd", "..\\secret.nrrd", "images\\..\\..\\x", "\\secret",
        "C:secret", "", ".", "a\0b",
    ],
)  # fmt: skip
def test_relative_image_may_not_leave_the_study(study: Study, image: Path, path: str):
    study.add(image)
    edit(study, lambda data: data["cases"][0].update(image=path))
    with pytest.raises(InputError, match=r"study\.json cannot be used"):
        Study.open(study.root)


@given(st.text(alphabet="./\\:aC~", max_size=12))
def test_no_relative_path_that_passes_leads_out(path: str):
    try:
        check_inside(path, "It")
    except InputError:
        return
    for flavour, root in ((posixpath, "/study/folder"), (ntpath, "D:\\study\\folder")):
        whole = flavour.normpath(flavour.join(root, path))
        assert whole.startswith(root + flavour.sep)


@pytest.mark.parametrize(
    "change",
    [
        {"label": "../../etc/001-expert.nrrd"},
        {"label": "/etc/001-expert.nrrd"},
        {"label": "references/scan01.nrrd"},
        {"label": "labels/other/001-expert.nrrd"},
        {"label": "labels/scan01/../x/001-expert.nrrd"},
        {"label": "labels/scan01/001-expert.nrrd/../../x"},
        {"reference": "../scan01.nrrd"},
        {"reference": "/etc/passwd"},
        {"id": "../scan01"},
        {"id": ".hidden"},
        {"id": 7},
        {"role": "boss"},
        {"review": 3},
        {"image": 5},
        {"image_identity": "big"},
    ],
)
def test_hostile_values_of_a_case_are_refused(study: Study, image: Path, change: dict):
    study.add(image)
    edit(study, lambda data: data["cases"][0].update(change))
    with pytest.raises(InputError, match=r"study\.json cannot be used"):
        Study.open(study.root)


def test_two_cases_of_one_name_are_refused(study: Study, image: Path):
    study.add(image)
    edit(study, lambda data: data["cases"].append({**data["cases"][0], "id": "SCAN01"}))
    with pytest.raises(InputError, match="two cases called SCAN01"):
        Study.open(study.root)


def test_links_that_lead_out_are_neither_read_nor_written(study: Study, image: Path, tmp_path: Path):
    study.add(image)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("labels", "drafts", "references", "images"):
        os.symlink(elsewhere, study.root / name)
    (study.root / ".lock").unlink()
    os.symlink(tmp_path / "notes.txt", study.root / ".lock")
    with pytest.raises(InputError, match="outside the study"):
        study.set_role("scan01", "test")
    assert not (tmp_path / "notes.txt").exists()
    (study.root / ".lock").unlink()
    with pytest.raises(InputError, match="outside the study"):
        study.accept_label("scan01", make_label(), "expert")
    with pytest.raises(InputError, match="outside the study"):
        study.save_draft("scan01", make_label())
    with pytest.raises(InputError, match="outside the study"):
        study.set_reference("scan01", make_label())
    with pytest.raises(InputError, match="outside the study"):
        study.add(make_image(3), id="memory")
    assert list(elsewhere.iterdir()) == [] and list(study.cases) == ["scan01"]
    edit(study, lambda data: data["cases"][0].update(image="images/secret.nrrd"))
    with pytest.raises(InputError, match="outside the study"):
        Study.open(study.root).image_path("scan01")


def test_outside_files_are_listed_at_open_and_only_those_are_read(study: Study, image: Path, tmp_path: Path):
    study.add(image)
    inside = write(make_image(1), study.root / "images" / "mine.nrrd")
    study.add(inside)
    opened = Study.open(study.root)
    assert opened.outside_files() == [image]
    assert opened.case("mine").image == "images/mine.nrrd" and opened.image_path("mine") == inside
    later = write(make_image(2), tmp_path / "later.nrrd")
    Study.open(study.root).add(later)
    opened.flag("scan01", "x")  # reads study.json anew, as every change does
    assert "later" in opened.cases and opened.outside_files() == [image]
    with pytest.raises(InputError, match="after it was opened"):
        opened.image_path("later")
    opened.reload()
    assert opened.image_path("later") == later and opened.outside_files() == [image, later]


def test_path_of_another_system_is_listed_but_not_opened(study: Study, image: Path):
    study.add(image)
    foreign = "C:\\scans\\scan01.nrrd" if os.name != "nt" else "/scans/scan01.nrrd"
    edit(study, lambda data: data["cases"][0].update(image=foreign))
    opened = Study.open(study.root)
    assert [str(p) for p in opened.outside_files()] == [foreign]
    with pytest.raises(InputError, match="another operating system"):
        opened.image_path("scan01")


# --- reading only


def test_read_only_study_opens_and_refuses_to_change(study: Study, image: Path):
    study.add(image, label=make_label())
    before = {p: p.stat().st_mtime_ns for p in study.root.rglob("*")}
    reader = Study.open(study.root, readonly=True)
    assert reader.readonly and reader.label_path("scan01").is_file() and reader.history("scan01")
    for change in (
        lambda: reader.add(image, id="b"),
        lambda: reader.add_folder(image.parent),
        lambda: reader.set_role("scan01", "test"),
        lambda: reader.accept_label("scan01", make_label()),
        lambda: reader.set_reference("scan01", make_label()),
        lambda: reader.save_draft("scan01", make_label()),
        lambda: reader.discard_draft("scan01"),
        lambda: reader.flag("scan01", "x"),
        lambda: reader.reject("scan01"),
        lambda: reader.pack(),
        lambda: reader.relink(image.parent),
        lambda: reader.write_confidence_table("prediction"),
    ):
        with pytest.raises(InputError, match="read-only") as caught:
            change()
        assert caught.value.code == "read_only"
    assert {p: p.stat().st_mtime_ns for p in study.root.rglob("*")} == before


def test_folder_that_cannot_be_written_opens_read_only(study: Study, monkeypatch: pytest.MonkeyPatch):
    granted = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and granted(path, mode))
    assert Study.open(study.root).readonly


# --- transactions


def test_transaction_that_fails_changes_nothing(study: Study, image: Path):
    study.add(image)
    before = (study.root / "study.json").read_bytes()
    with pytest.raises(RuntimeError), study.transaction():
        study.case("scan01").role = "ignored"
        study.preset = "other"  # joins the transaction around it
        raise RuntimeError
    assert study.case("scan01").role == "unlabeled" and study.preset == "auto"
    with pytest.raises(InputError), study.transaction():
        study.case("scan01").image = "../../etc/passwd"
    assert (study.root / "study.json").read_bytes() == before
    assert Study.open(study.root).case("scan01").image == str(image)


def test_settings_of_the_study_are_kept_when_set(study: Study):
    study.preset, study.other_as_background = "left_atrium", True
    again = Study.open(study.root)
    assert again.preset == "left_atrium" and again.other_as_background


def test_transaction_that_changes_nothing_writes_nothing(study: Study):
    before = (study.root / "study.json").stat()
    with study.transaction():
        pass
    after = (study.root / "study.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_full_disk_leaves_the_old_study(study: Study, image: Path, monkeypatch: pytest.MonkeyPatch):
    study.add(image)

    def full(path: Path, text: str) -> None:
        raise DiskFull(f"{path} could not be written because the disk is full.")

    monkeypatch.setattr("SFRCore.study.document.write_text", full)
    with pytest.raises(DiskFull):
        study.set_role("scan01", "test")
    assert study.case("scan01").role == "unlabeled"
    monkeypatch.undo()
    study.set_role("scan01", "test")
    assert Study.open(study.root).case("scan01").role == "test"


def test_two_handles_do_not_undo_each_other(study: Study, tmp_path: Path):
    first, second = Study.open(study.root), Study.open(study.root)
    first.add(write(make_image(1), tmp_path / "a.nrrd"))
    second.add(write(make_image(2), tmp_path / "b.nrrd"))
    first.flag("a", "dark")
    second.set_role("b", "test")
    final = Study.open(study.root)
    assert (
        list(final.cases) == ["a", "b"]
        and final.case("a").problem == "dark"
        and final.case("b").role == "test"
    )


def test_threads_share_one_study_object(study: Study, image: Path):
    study.add(image)
    with study.transaction():
        study.case("scan01").extra["count"] = 0

    def count() -> None:
        for _ in range(5):
            with study.transaction():
                study.case("scan01").extra["count"] += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Study.open(study.root).case("scan01").extra["count"] == 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_processes_that_add_at_once_lose_no_case(study: Study, tmp_path: Path):
    for index in range(8):
        write(make_image(index), tmp_path / f"p{index // 4}" / f"c{index}.nrrd")
    for folder in range(2):
        write(make_image(8 + folder), tmp_path / f"p{folder}" / "same.nrrd")

    def add_all(folder: Path) -> int:
        """How many were refused because the other process had taken their id."""
        mine, refused = Study.open(study.root), 0
        for path in sorted(folder.iterdir()):
            try:
                mine.add(path)
            except InputError as error:
                assert error.code == "case_exists"
                refused += 1
        return refused

    children = [in_child(add_all, tmp_path / f"p{n}") for n in range(2)]
    assert sorted(exit_code(child) for child in children) == [0, 1]
    assert sorted(Study.open(study.root).cases) == [*(f"c{n}" for n in range(8)), "same"]


# --- adding


def test_added_image_outside_is_referred_to_and_never_written(study: Study, image: Path):
    before = (image.read_bytes(), image.stat().st_mtime_ns)
    case = study.add(image, label=make_label())
    assert case.id == "scan01" and case.image == str(image) and case.role == "labeled"
    assert case.image_identity["size"] == image.stat().st_size and len(case.image_identity["sha256"]) == 64
    assert (image.read_bytes(), image.stat().st_mtime_ns) == before
    assert list((study.root / ".staging").iterdir()) == []


def test_image_in_memory_is_written_without_its_tags(study: Study):
    node = make_image()
    node.SetMetaData("0010|0010", "Doe^Jane")
    case = study.add(node)
    assert case.id == "case_0001" and case.image == "images/case_0001.nrrd"
    assert study.add(make_image(5)).id == "case_0002"
    stored = sitk.ReadImage(str(study.image_path("case_0001")))
    assert b"Doe" not in study.image_path("case_0001").read_bytes()
    assert stored.GetDirection() == node.GetDirection() and stored.GetOrigin() == node.GetOrigin()
    assert np.array_equal(sitk.GetArrayFromImage(stored), sitk.GetArrayFromImage(node))
    assert node.HasMetaDataKey("0010|0010")  # the caller's image is left as it was


def test_image_in_memory_never_overwrites_a_file_of_the_user(study: Study):
    mine = write(make_image(9), study.root / "images" / "a.nrrd")
    before = mine.read_bytes()
    assert study.add(make_image(1), id="a").image == "images/a-2.nrrd"
    assert mine.read_bytes() == before


def test_unusable_image_leaves_the_study_as_it_was(study: Study, tmp_path: Path):
    torn = tmp_path / "torn.nrrd"
    torn.write_bytes(write(make_image(), tmp_path / "whole.nrrd").read_bytes()[:-40])
    constant = sitk.Image(SIZE, sitk.sitkFloat32)
    for bad in (torn, tmp_path / "missing.nrrd", constant):
        with pytest.raises(InputError):
            study.add(bad)
    with pytest.raises(InputError, match="The image in memory has the same value"):
        study.add(constant)
    assert study.cases == {} and not (study.root / "images").exists()
    assert not list(study.root.glob(".staging/*"))


def test_label_must_fit_image_and_structures(study: Study, image: Path, tmp_path: Path):
    shifted = make_label()
    shifted.SetOrigin((50.0, 0.0, 0.0))
    for wrong in (shifted, make_label(value=4)):
        with pytest.raises(InputError):
            study.add(image, label=wrong)
        with pytest.raises(InputError):
            study.add(image, reference=write(wrong, tmp_path / "wrong.nrrd"))
    assert (
        study.cases == {}
        and not (study.root / "labels").exists()
        and not (study.root / "references").exists()
    )
    assert study.add(image, label=shifted, resample=True).role == "labeled"
    stored = sitk.ReadImage(str(study.label_path("scan01")))
    assert stored.GetOrigin() == make_image().GetOrigin() and stored.GetSize() == SIZE


def test_other_values_can_be_background(tmp_path: Path, image: Path):
    study = Study.create(tmp_path / "s", structures={3: "Scar"}, other_as_background=True)
    both = make_label(3) + 5 * (make_label(1, seed=4) * (1 - make_label(1)))
    study.add(image, label=both)
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(study.label_path("scan01"))))
    assert np.array_equal(stored, sitk.GetArrayFromImage(make_label(3)))


def test_several_values_of_a_label_can_be_one_structure(tmp_path: Path, image: Path):
    """In BraTS all above 0 is the whole tumour; also in what is given later, and after opening again."""
    made = Study.create(tmp_path / "s", structures=parse_structures("1+2+4=Whole tumour"))
    whole = sitk.GetArrayFromImage(make_label(1))
    drawn = whole * np.random.default_rng(4).choice(np.array([1, 2, 4], np.uint8), whole.shape)
    parts = sitk.GetImageFromArray(drawn)
    parts.CopyInformation(make_label())
    sitk.WriteImage(parts, str(tmp_path / "parts.nrrd"))

    def stored(path: Path | None) -> bool:
        read = sitk.ReadImage(str(path))
        return np.array_equal(sitk.GetArrayFromImage(read), whole) and read.GetPixelID() == sitk.sitkUInt16

    made.add(image, label=tmp_path / "parts.nrrd", reference=parts)
    assert stored(made.label_path("scan01")) and stored(made.reference_path("scan01"))
    study = Study.open(made.root)
    assert (
        study.structures == made.structures and study.values == (1,) and study.merged_values == {2: 1, 4: 1}
    )
    assert stored(study.accept_label("scan01", parts)) and stored(study.set_reference("scan01", parts))
    with pytest.raises(InputError, match="contains the value 3, but the study's structures are 1, 2, 4"):
        study.accept_label("scan01", make_label(3))
    document = json.loads((study.root / "study.json").read_text())
    assert document["structures"][0]["also"] == [2, 4]
    document["structures"][0]["also"] = [1]
    (study.root / "study.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="The value 1 is given twice"):
        Study.open(study.root)


def test_label_of_an_unlabeled_or_test_case_is_its_reference(study: Study, image: Path, tmp_path: Path):
    other = write(make_image(1), tmp_path / "other.nrrd")
    for role, path in (("test", other), ("unlabeled", image)):
        case = study.add(path, label=make_label(), role=role, id=role)
        assert case.label is None and case.reference == f"references/{role}.nrrd" and case.role == role
        with pytest.raises(InputError, match="takes one label"):
            study.add(image, label=make_label(), reference=make_label(), role=role, id="both")
    assert study.labeled_cases() == [] and not (study.root / "labels").exists()
    with pytest.raises(InputError, match=r"scan01\.nrrd was not added.*needs a label"):
        study.add(image, role="labeled", id="x")
    with pytest.raises(InputError, match="not a role"):
        study.add(image, role="boss", id="x")
    both = study.add(image, label=make_label(), reference=make_label(seed=2), id="both")
    assert both.role == "labeled" and both.label and both.reference
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(study.label_path("both"))))
    assert np.array_equal(found, sitk.GetArrayFromImage(make_label()))


def test_id_is_taken_once_also_in_other_letters(study: Study, image: Path, tmp_path: Path):
    study.add(image)
    with pytest.raises(InputError, match="already has a case called"):
        study.add(image)
    other = write(make_image(2), tmp_path / "SCAN01.nrrd")
    with pytest.raises(InputError, match="already has a case called") as caught:
        study.add(other)
    assert caught.value.code == "case_exists" and str(other) in caught.value.message
    assert len(study.cases) == 1 and study.add(other, id="scan01 b").id == "scan01 b"


def test_one_image_is_never_learned_from_and_tested_on(study: Study, image: Path, tmp_path: Path):
    copy = write(make_image(), tmp_path / "copy.nrrd")
    study.add(image, label=make_label())
    with pytest.raises(
        InputError, match=r"copy\.nrrd cannot be a test case, because its image is that of case scan01"
    ):
        study.add(copy, reference=make_label(), role="test")
    with pytest.raises(
        InputError, match=r"copy\.nrrd was not added, because its image is case scan01"
    ) as caught:
        study.add(copy)
    assert "id of its own" in caught.value.hint and list(study.cases) == ["scan01"]
    study.add(copy, id="twin")
    for id in ("twin", "scan01"):
        with pytest.raises(InputError, match="must not be tested on"):
            study.set_role(id, "test")
    study.set_role("scan01", "ignored")
    study.set_role("twin", "test")
    with pytest.raises(InputError, match="scan01 cannot be labeled, because its image is that of case twin"):
        study.accept_label("scan01", make_label())
    assert study.case("scan01").role == "ignored" and len(study.history("scan01")) == 1
    study.set_role(["scan01", "twin"], "test")


def test_detached_headers_that_are_alike_are_not_one_image(study: Study, tmp_path: Path):
    for index, name in enumerate("ab"):
        write(make_image(index), tmp_path / name / "scan.mhd")
    study.add(tmp_path / "a" / "scan.mhd")
    study.add(tmp_path / "b" / "scan.mhd", id="b", role="test")
    one, two = (case.image_identity or {} for case in study.cases.values())
    assert one["sha256"] == two["sha256"]


def test_a_folder_leaves_copies_of_an_image_out(study: Study, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 1), ("copy_of_a", 0)):
        write(make_image(seed), tmp_path / "in" / f"{name}.nrrd")
    problems: dict[str, str] = {}
    study.add_folder(tmp_path / "in", on_problem=lambda path, error: problems.update({path.name: str(error)}))
    assert list(study.cases) == ["a", "b"]
    assert list(problems) == ["copy_of_a.nrrd"] and "its image is case a " in problems["copy_of_a.nrrd"]


def test_labels_left_by_an_adding_that_was_cut_off_are_not_the_new_cases(study: Study, image: Path):
    write(make_label(), study.root / "labels" / "scan01" / "001-expert.nrrd")
    case = study.add(image, reference=make_label(), role="test")
    assert case.label is None
    again = Study.open(study.root)
    assert (
        again.case("scan01").label is None and again.history("scan01") == [] and again.labeled_cases() == []
    )
    assert len(list((study.root / "labels").glob(".left-scan01-*/001-expert.nrrd"))) == 1


# --- folders


def test_folder_pairs_labels_by_name(study: Study, tmp_path: Path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for name in ("a_0000.nii.gz", "b.nrrd", "c.mha", "d.nii", "e.nrrd"):
        write(make_image(ord(name[0])), images / name)
    (images / "notes.txt").write_text("not an image")
    for name in ("a.nii.gz", "b_seg.nrrd", "c-seg.nrrd", "d_labels.nii.gz"):
        write(make_label(), labels / name)
    write(make_label(), labels / "z.nrrd")
    problems: list[tuple[Path, Exception]] = []
    added = study.add_folder(images, labels=labels, on_problem=lambda *said: problems.append(said))
    assert [(c.id, c.role) for c in added] == [
        ("a", "labeled"), ("b", "labeled"), ("c", "labeled"), ("d", "labeled"), ("e", "unlabeled"),
    ]  # fmt: skip
    assert [path.name for path, _ in problems] == ["z.nrrd"] and "no image" in str(problems[0][1])
    assert list(Study.open(study.root).cases) == list("abcde")


def test_labels_beside_the_images_are_not_taken_for_images(study: Study, tmp_path: Path):
    for name in ("a.nrrd", "b.nrrd", "lonely_seg.nrrd"):
        write(make_image(ord(name[0])), tmp_path / "in" / name)
    write(make_label(), tmp_path / "in" / "a.seg.nrrd")
    write(make_label(), tmp_path / "in" / "b_label.nii.gz")
    write(make_label(), tmp_path / "in" / "b_seg.nii.gz")
    problems: list[tuple[Path, Exception]] = []
    added = study.add_folder(tmp_path / "in", on_problem=lambda *said: problems.append(said))
    assert {c.id: c.role for c in added} == {"a": "labeled", "b": "labeled", "lonely_seg": "unlabeled"}
    assert [path.name for path, _ in problems] == ["b_seg.nii.gz"] and "second label" in str(problems[0][1])


def test_labels_as_references_never_train(study: Study, tmp_path: Path):
    write(make_image(), tmp_path / "in" / "a.nrrd")
    write(make_label(), tmp_path / "in" / "a_seg.nrrd")
    write(make_image(1), tmp_path / "test" / "t.nrrd")
    write(make_label(), tmp_path / "gt" / "t.nrrd")
    study.add_folder(tmp_path / "in", label_use="reference")
    study.add_folder(tmp_path / "test", labels=tmp_path / "gt", role="test")
    assert {id: (c.role, c.label) for id, c in study.cases.items()} == {
        "a": ("unlabeled", None), "t": ("test", None),
    }  # fmt: skip
    assert study.labeled_cases() == [] and all(c.reference for c in study.cases.values())
    assert [c.id for c in study.test_cases()] == ["t"] and [c.id for c in study.unlabeled_cases()] == ["a"]


def test_bad_files_are_reported_and_stop_nothing(study: Study, tmp_path: Path):
    folder = tmp_path / "in"
    write(make_image(), folder / "a.nrrd")
    (folder / "b.nrrd").write_bytes(b"")
    (folder / "c.nii.gz").write_bytes(b"garbage")
    write(make_image(4), folder / "a.nii.gz")
    write(make_image(5), folder / "d_0000.nrrd")
    write(make_image(6), folder / "d_0001.nrrd")
    write(make_image(7), folder / "e.nrrd")
    write(make_label(value=9), folder / "e_seg.nrrd")
    problems: dict[str, str] = {}
    added = study.add_folder(folder, on_problem=lambda path, error: problems.update({path.name: str(error)}))
    assert [c.id for c in added] == ["a", "d"] and list(study.cases) == ["a", "d"]
    assert study.image_path("a").name == "a.nii.gz"  # the first in order of name
    assert sorted(problems) == ["a.nrrd", "b.nrrd", "c.nii.gz", "d_0001.nrrd", "e.nrrd"]
    assert "already has a case called a" in problems["a.nrrd"] and "e_seg.nrrd" in problems["e.nrrd"]
    assert not list(study.root.glob(".staging/*")) and not (study.root / "labels").exists()


@pytest.mark.parametrize(
    ("names", "labels", "left_out"),
    [
        ([f"patient_{n:04d}" for n in range(12)], [], []),
        ([f"patient_{n:04d}" for n in range(5)], [], []),
        (["p_0000", "p_0001", "p_0002"], ["p_0001"], []),
        (["p_0000", "p_0001", "p_0002"], ["p_0001_seg"], []),
        (["p_0000", "p_0001", "p_0002"], ["p"], ["p_0001", "p_0002"]),
        (["p_0000", "p_0001"], [], ["p_0001"]),
        (["p_0000", "p_0001", "q_0000", "q_0001"], ["p", "q"], ["p_0001", "q_0001"]),
        ([f"{base}_000{n}" for base in "pq" for n in range(3)], [], ["p_0001", "p_0002", "q_0001", "q_0002"]),
    ],
)
def test_numbered_cases_are_no_channels(tmp_path: Path, names, labels, left_out):
    for folder, found in (("in", names), ("gt", labels)):
        (tmp_path / folder).mkdir()
        for name in found:
            (tmp_path / folder / f"{name}.nrrd").touch()
    problems: list[str] = []
    pairs = pair_files(tmp_path / "in", tmp_path / "gt", lambda path, error: problems.append(path.stem))
    assert problems == left_out and {pair.image.stem for pair in pairs} == {*names} - {*left_out}
    assert sum(pair.label is not None for pair in pairs) == len(labels)


def test_adding_a_folder_is_stopped_between_two_images(study: Study, tmp_path: Path):
    for index, name in enumerate("abcd"):
        write(make_image(index), tmp_path / "in" / f"{name}.nrrd")

    def stop(path: Path) -> None:
        if path.name == "c.nrrd":
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        study.add_folder(tmp_path / "in", on_image=stop)
    assert list(study.cases) == list(Study.open(study.root).cases) == ["a", "b"]
    assert not list(study.root.glob(".staging/*"))


def test_folder_can_be_added_again_when_it_has_grown(study: Study, tmp_path: Path):
    folder = tmp_path / "in"
    write(make_image(), folder / "a.nrrd")
    study.add_folder(folder)
    write(make_image(1), folder / "b.nrrd")
    problems: list[tuple[Path, Exception]] = []
    added = study.add_folder(folder, on_problem=lambda *said: problems.append(said))
    assert [c.id for c in added] == ["b"] and problems == []
    write(make_label(), folder / "a_seg.nrrd")
    assert study.add_folder(folder, on_problem=lambda *said: problems.append(said)) == []
    assert [path.name for path, _ in problems] == ["a_seg.nrrd"] and study.labeled_cases() == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        study.add_folder(tmp_path / "empty")
    with pytest.raises(InputError, match="cannot be read"):
        study.add_folder(tmp_path / "nowhere")


def test_folder_is_taken_in_with_few_writes_and_kept_when_cut_off(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for index in range(60):
        write(make_image(index), tmp_path / "in" / f"s{index:02d}.nrrd")
    writes: list[Path] = []
    whole = Document.write
    monkeypatch.setattr(Document, "write", lambda self, path: (writes.append(path), whole(self, path))[1])
    monkeypatch.setattr("SFRCore.study.intake._BATCH_SECONDS", 1e9)
    study.add_folder(tmp_path / "in")
    assert len(writes) == 2 and len(Study.open(study.root).cases) == 60

    other = Study.create(tmp_path / "other", structures={1: "A"})
    read = 0

    def interrupted(path: Path, **kwargs: object) -> sitk.Image:
        nonlocal read
        read += 1
        if read > 7:
            raise KeyboardInterrupt
        return make_image(read)

    monkeypatch.setattr("SFRCore.study.intake.read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.add_folder(tmp_path / "in")
    assert len(Study.open(other.root).cases) == 7


def test_folder_is_not_said_to_be_bad_when_the_study_is_locked(
    study: Study, image: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(FileLock.__init__.__kwdefaults__, "timeout", 0.1)
    monkeypatch.setattr("SFRCore.study.intake._BATCH_CASES", 1)
    with FileLock(study.root / ".lock"), pytest.raises(InputError, match="in use") as caught:
        study.add_folder(image.parent, on_problem=fail_on_problem)
    assert caught.value.code == "in_use" and not list(study.root.glob(".staging/*"))
    assert [case.id for case in study.add_folder(image.parent)] == ["scan01"]


# --- DICOM


def write_series(folder: Path, *, number: int = 1, slices: int = 4) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    uid, frame = generate_uid(), generate_uid()
    for z in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.PatientName, data.PatientID, data.Modality = "Doe^Jane", "12345", "CT"
        data.SeriesInstanceUID, data.FrameOfReferenceUID, data.StudyInstanceUID = uid, frame, frame
        data.SeriesNumber, data.InstanceNumber = number, z + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 3.0 * z], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [1.0, 1.0], 3.0
        data.Rows, data.Columns, data.SamplesPerPixel = 6, 7, 1
        data.PhotometricInterpretation, data.PixelRepresentation = "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
        data.PixelData = rng.integers(0, 4000, (6, 7)).astype(np.uint16).tobytes()
        pydicom.dcmwrite(folder / f"{number}_{z}.dcm", data, enforce_file_format=True)


def test_dicom_series_are_numbered_and_leave_no_name(study: Study, tmp_path: Path):
    write_series(tmp_path / "cohort" / "p1")
    write_series(tmp_path / "cohort" / "p2", number=2)
    assert study.add_dicom(tmp_path / "cohort" / "p1").id == "case_0001"
    added = study.add_folder(tmp_path / "cohort")
    assert [c.id for c in added] == ["case_0002"] and study.image_path(
        "case_0002"
    ) == tmp_path / "cohort" / "p2"
    assert "Doe" not in (study.root / "study.json").read_text()
    assert study.add(tmp_path / "cohort" / "p1", id="chosen").id == "chosen"
    with pytest.raises(InputError, match="is case case_0001 of the study already"):
        study.add_dicom(tmp_path / "cohort" / "p1")


def test_label_of_a_dicom_folder_has_its_name(study: Study, tmp_path: Path):
    write_series(tmp_path / "cohort" / "1.2.840.7")
    label = sitk.Image(7, 6, 4, sitk.sitkUInt8)
    label.SetSpacing((1.0, 1.0, 3.0))
    label[2, 2, 2] = 1
    write(label, tmp_path / "labels" / "1.2.840.7_seg.nrrd")
    added = study.add_folder(tmp_path / "cohort", labels=tmp_path / "labels", on_problem=fail_on_problem)
    assert [(c.id, c.role) for c in added] == [("case_0001", "labeled")]


def test_of_two_series_one_is_picked_and_copied(study: Study, tmp_path: Path):
    write_series(tmp_path / "p")
    write_series(tmp_path / "p", number=2, slices=5)
    with pytest.raises(InputError, match="2 series") as caught:
        study.add_dicom(tmp_path / "p")
    assert "series=1" in caught.value.hint
    case = study.add_dicom(tmp_path / "p", series=2)
    assert case.image == "images/case_0001.nrrd"
    assert sitk.ReadImage(str(study.image_path(case.id))).GetSize() == (7, 6, 5)
    assert b"Doe" not in study.image_path(case.id).read_bytes()


@pytest.mark.skipif(not CT_FOLDER.is_dir(), reason="shared/data/abdomen_ct is not here")
def test_real_dicom_folder_is_one_case(study: Study):
    added = study.add_folder(CT_FOLDER)
    assert [(c.id, c.image) for c in added] == [("case_0001", str(CT_FOLDER))]


# --- roles, structures, names


def test_roles_are_changed_all_or_none(study: Study, image: Path):
    study.add(image, label=make_label())
    study.add(image, id="b", reference=make_label())
    with pytest.raises(InputError, match="b has no label.*reference is kept for evaluation"):
        study.set_role(["scan01", "b"], "labeled")
    with pytest.raises(InputError, match="no case called 'c'"):
        study.set_role(["scan01", "c"], "ignored")
    with pytest.raises(InputError, match="not a role"):
        study.set_role("b", "boss")
    assert {id: c.role for id, c in study.cases.items()} == {"scan01": "labeled", "b": "unlabeled"}
    study.set_role(["scan01", "b"], "ignored")
    assert study.labeled_cases() == study.unlabeled_cases() == study.test_cases() == []
    study.set_role("scan01", "labeled")
    assert [c.id for c in study.labeled_cases()] == ["scan01"]


def test_expert_label_of_a_case_put_aside_for_testing_becomes_its_reference(study: Study, image: Path):
    study.add(image, label=make_label())
    study.set_role("scan01", "test")
    assert study.labeled_cases() == []
    assert study.reference_path("scan01").read_bytes() == study.label_path("scan01").read_bytes()
    study.set_role("scan01", "labeled")
    assert study.label_path("scan01").parent.name == "scan01" and len(study.history("scan01")) == 1


def test_a_corrected_label_renews_the_reference_that_was_a_label(study: Study, image: Path):
    study.add(image, label=make_label())
    study.set_role("scan01", "test")
    study.set_role("scan01", "unlabeled")
    corrected = study.accept_label("scan01", make_label(seed=1), "corrected")
    study.accept_label("scan01", make_label(seed=2), "accepted")
    study = Study.open(study.root)
    study.set_role("scan01", "test")
    assert study.reference_path("scan01").read_bytes() == corrected.read_bytes()
    study.set_reference("scan01", make_label(seed=3))
    given = study.reference_path("scan01").read_bytes()
    study.set_role("scan01", "unlabeled")
    study.accept_label("scan01", make_label(seed=4), "expert")
    study.set_role("scan01", "test")
    assert study.reference_path("scan01").read_bytes() == given, "one that was given by itself stays"


def test_flags_come_and_go(study: Study, image: Path):
    study.add(image)
    study.flag("scan01", "cannot be read")
    assert Study.open(study.root).case("scan01").problem == "cannot be read"
    study.flag("scan01", None)
    assert Study.open(study.root).case("scan01").problem is None


def test_structures_are_parsed_checked_and_coloured():
    parsed = parse_structures("2=Posterior, 1 = Anterior")
    assert [(s.value, s.name) for s in parsed] == [(1, "Anterior"), (2, "Posterior")]
    assert len({s.color for s in parsed}) == 2 and len({default_color(n) for n in range(40)}) == 40
    merged = parse_structures("4=Cyst, 1 + 3+2 = Whole tumour")
    assert [(s.value, s.name, s.also) for s in merged] == [(1, "Whole tumour", (3, 2)), (4, "Cyst", ())]
    assert Structure.from_dict(merged[0].to_dict()) == merged[0] and "also" not in merged[1].to_dict()
    for twice in ("1+2=A,2=B", "2=B,1+2=A", "1+1=A", "1+2=A,3+2=B"):
        with pytest.raises(InputError, match=r"The value [12] is given twice"):
            parse_structures(twice)
    for wrong in (
        "Anterior",
        "1=",
        "1+=A",
        "+1=A",
        "1+0=A",
        "1+70000=A",
        "1+x=A",
        "0=A",
        "70000=A",
        "1=A,1=B",
        "1=A,2=a",
        "",
        "-1=A",
        "x=A",
        "1=A,,",
    ):
        with pytest.raises(InputError):
            parse_structures(wrong)
    with pytest.raises(InputError, match="at least one"):
        as_structures({})
    with pytest.raises(InputError, match="255"):
        as_structures({n: f"s{n}" for n in range(1, 300)})
    with pytest.raises(InputError, match="colour"):
        as_structures([Structure(1, "A", (0, 0, 256))])
    kept = as_structures([Structure(2, "B", (1, 2, 3), "SCT^1", {"x": 1}), Structure(1, "A", (9, 9, 9))])
    assert kept[1] == Structure.from_dict(kept[1].to_dict()) and kept[1].extra == {"x": 1}


@pytest.mark.parametrize("id", ["a", "Fall 12", "心臓-01", "café", "a.b_c-d", "हृदय", "x" * 100])
def test_good_case_ids(id: str):
    assert check_case_id(id) == id


@pytest.mark.parametrize(
    "id",
    [
        "",
        " a",
        "a ",
        ".a",
        "a.",
        "..",
        "a/b",
        "a\\b",
        "a:b",
        "a\nb",
        "a\0",
        "CON",
        "nul.x",
        "x" * 101,
        "心" * 80,
        None,
    ],
)
def test_bad_case_ids(id: object):
    with pytest.raises(InputError, match="cannot be the name of a case"):
        check_case_id(id)


def test_ids_made_from_file_names_are_good_ids():
    for name in ("scan(1)", "..", "a/b", "CON", "x" * 300, "心" * 200, "🫀", "\udcff"):
        assert check_case_id(case_id_from(name))
    assert case_id_from("scan(1)") == "scan_1_" and case_id_from("cafe\u0301") == "café"


def test_stems():
    assert stem("a.b.nii.gz") == "a.b" and stem("x/a.seg.nrrd") == "a.seg" and stem("A.NII.GZ") == "A"
    assert label_stem("1.2.840_seg.nii.gz") == image_stem("1.2.840.nii.gz") == "1.2.840"
    assert image_stem("la_003_0000.nii.gz") == "la_003" and image_stem("x_seg.nrrd") == "x_seg"
    for name in (
        "s1_seg.nrrd",
        "s1-seg.nii",
        "s1_label.mha",
        "s1_labels.nii.gz",
        "s1.seg.nrrd",
        "s1_0000_seg.nrrd",
    ):
        assert label_stem(name) == "s1"


def test_case_round_trip_keeps_everything():
    case = Case("a", "/x/a.nrrd", "labeled", "labels/a/012-corrected.nrrd", "corrected", "references/a.nrrd",
                "corrected", "dark", {"size": 1}, {"later": [1]}, "labels/a/001-expert.nrrd")  # fmt: skip
    assert Case.from_dict(case.to_dict()) == case and case.label_number == 12 and case.outside
