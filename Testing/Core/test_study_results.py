"""Labels that nobody may lose, drafts, results of the models, and the review of them."""

from __future__ import annotations

import csv
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from SFRCore.errors import DiskFull, InputError
from SFRCore.runtime.locks import FileLock
from SFRCore.study import Study
from SFRCore.study.document import Document

SIZE = (7, 6, 5)


def make_image(seed: int = 0) -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=SIZE[::-1]).astype(np.float32))
    image.SetSpacing((0.5, 0.5, 3.0))
    image.SetDirection((0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    return image


def make_label(seed: int = 0) -> sitk.Image:
    label = sitk.GetImageFromArray(np.random.default_rng(seed).choice([0, 2, 5], SIZE[::-1]).astype(np.uint8))
    label.CopyInformation(make_image())
    return label


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def same(path: Path, label: sitk.Image) -> bool:
    stored = sitk.ReadImage(str(path))
    grid = stored.GetDirection() == label.GetDirection() and stored.GetSpacing() == label.GetSpacing()
    return grid and np.array_equal(sitk.GetArrayFromImage(stored), sitk.GetArrayFromImage(label))


def numbers(dice: float = 0.9, **more: object) -> dict:
    return {
        "mean_confidence": 0.97,
        "expected_dice_by_structure": {"2": dice, "5": min(1.0, dice + 0.05)},
        "volume_ml": {"2": 1.25, "5": 0.0},
        "slices": [{"index": z, "mean_confidence": 0.9 + z / 100, "doubt": z / 10} for z in range(SIZE[2])],
        "doubtful_slice": 4,
        "made_by": {"model": "foundation", "run": "r1"},
        **more,
    }


def put(study: Study, id: str, kind: str = "pseudo_label", dice: float = 0.9, seed: int = 0, **more: object):
    confidence = sitk.Cast(make_label(seed) * 20 + 100, sitk.sitkUInt8)
    return study.write_result(id, kind, make_label(seed), confidence, numbers(dice, **more))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = Study.create(tmp_path / "study", structures={2: "Anterior", 5: "Posterior"})
    for index, id in enumerate("abc"):
        made.add(make_image(index), id=id)
    return made


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


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


# --- accepted labels


def test_each_accepted_label_is_a_new_file(study: Study):
    first = study.accept_label("a", make_label(1), "expert")
    assert first.relative_to(study.root).as_posix() == "labels/a/001-expert.nrrd" and same(
        first, make_label(1)
    )
    bytes_of_first = first.read_bytes()
    study.accept_label("a", make_label(2), "accepted")
    third = study.accept_label("a", make_label(3), "corrected")
    assert [(v.number, v.origin, v.path.name) for v in study.history("a")] == [
        (1, "expert", "001-expert.nrrd"),
        (2, "accepted", "002-accepted.nrrd"),
        (3, "corrected", "003-corrected.nrrd"),
    ]
    assert first.read_bytes() == bytes_of_first
    case = Study.open(study.root).case("a")
    assert case.label == "labels/a/003-corrected.nrrd" and case.label_origin == "corrected"
    assert case.role == "labeled" and case.review == "corrected" and study.label_path("a") == third
    with pytest.raises(InputError, match="no origin"):
        study.accept_label("a", make_label(), "guess")


def test_label_that_does_not_fit_is_not_accepted(study: Study, tmp_path: Path):
    wrong = make_label()
    wrong.SetSpacing((1.0, 1.0, 1.0))
    with pytest.raises(InputError, match="does not lie on"):
        study.accept_label("a", wrong)
    undeclared = sitk.Cast(make_label(), sitk.sitkUInt8) + 1
    with pytest.raises(InputError, match="structures are 2, 5"):
        study.accept_label("a", undeclared)
    with pytest.raises(InputError):
        study.accept_label("a", tmp_path / "nowhere.nrrd")
    assert (
        study.case("a").label is None and study.history("a") == [] and not list(study.root.glob(".staging/*"))
    )
    assert study.accept_label("a", wrong, resample=True).is_file()


def killed_while_accepting(study: Study, owner: type, step: str) -> int:
    """Accept a label in a process that dies when it comes to `step` of `owner`."""
    setattr(owner, step, lambda *arguments: os._exit(9))
    Study.open(study.root).accept_label("a", make_label(7), "corrected")
    return 0


@needs_fork
def test_label_of_a_process_killed_before_study_json_is_taken_up(study: Study):
    study.accept_label("a", make_label(1), "expert")
    assert exit_code(in_child(killed_while_accepting, study, Document, "write")) == 9
    assert Document.read(study.root / "study.json").cases["a"].label == "labels/a/001-expert.nrrd"

    reader = Study.open(study.root, readonly=True)
    assert reader.case("a").label == "labels/a/002-corrected.nrrd"
    assert Document.read(study.root / "study.json").cases["a"].label == "labels/a/001-expert.nrrd"

    case = Study.open(study.root).case("a")
    assert (
        case.label == "labels/a/002-corrected.nrrd" and case.review == "corrected" and case.role == "labeled"
    )
    assert same(study.root / case.label, make_label(7))
    assert Document.read(study.root / "study.json").cases["a"] == case


@needs_fork
def test_name_taken_by_a_killed_process_is_no_label(study: Study):
    assert exit_code(in_child(killed_while_accepting, study, Study, "_place")) == 9
    assert [p.stat().st_size for p in (study.root / "labels" / "a").iterdir()] == [0]
    again = Study.open(study.root)
    assert again.case("a").label is None and again.case("a").role == "unlabeled" and again.history("a") == []
    assert again.accept_label("a", make_label(3), "corrected").name == "002-corrected.nrrd"
    assert Study.open(study.root).case("a").label_number == 2


def test_taking_up_spares_test_cases_and_rejections(study: Study):
    study.accept_label("a", make_label(1), "accepted")
    study.reject("a")
    study.set_role("b", "test")
    folder = study.root / "labels" / "b"
    folder.mkdir()
    (folder / "001-corrected.nrrd").write_bytes((study.root / "labels/a/001-accepted.nrrd").read_bytes())
    again = Study.open(study.root)
    assert (again.case("a").role, again.case("a").review) == ("unlabeled", "rejected")
    assert again.case("b").role == "test" and again.labeled_cases() == []


def test_study_that_is_locked_opens_and_shows_the_label(study: Study, monkeypatch: pytest.MonkeyPatch):
    folder = study.root / "labels" / "a"
    study.accept_label("b", make_label(1), "expert")
    folder.mkdir()
    (folder / "001-expert.nrrd").write_bytes(study.label_path("b").read_bytes())
    monkeypatch.setitem(FileLock.__init__.__kwdefaults__, "timeout", 0.1)
    with FileLock(study.root / ".lock", purpose="a long change"):
        assert Study.open(study.root).case("a").role == "labeled"
        with pytest.raises(InputError, match="in use by a long change"):
            study.set_role("b", "ignored")


@needs_fork
def test_two_processes_that_accept_at_once_lose_no_label(study: Study):
    def accept_all(column: int, origin: str) -> int:
        mine = Study.open(study.root)
        for row in range(6):
            marks = np.zeros(SIZE[::-1], np.uint8)
            marks[0, row, column] = 2
            label = sitk.GetImageFromArray(marks)
            label.CopyInformation(make_image())
            mine.accept_label("a", label, origin)
        return 0

    children = [in_child(accept_all, n, origin) for n, origin in enumerate(("accepted", "corrected"))]
    assert [exit_code(child) for child in children] == [0, 0]
    history = study.history("a")
    assert [version.number for version in history] == list(range(1, 13))
    marks = {tuple(int(i) for i in np.argwhere(voxels(version.path))[0]) for version in history}
    assert marks == {(0, row, column) for row in range(6) for column in range(2)}
    newest = history[-1]
    case = Study.open(study.root).case("a")
    assert case.label == f"labels/a/{newest.path.name}" and case.label_origin == newest.origin == case.review


def test_full_disk_while_accepting_leaves_the_old_label(study: Study, monkeypatch: pytest.MonkeyPatch):
    study.accept_label("a", make_label(1), "expert")

    def full(self: Study, staged: Path, relative: str) -> str:
        raise DiskFull(f"{relative} could not be written because the disk is full.")

    monkeypatch.setattr(Study, "_place", full)
    with pytest.raises(DiskFull):
        study.accept_label("a", make_label(2), "corrected")
    assert [p.name for p in (study.root / "labels" / "a").iterdir()] == ["001-expert.nrrd"]
    assert study.case("a").label_number == 1 and not list(study.root.glob(".staging/*"))


def test_reference_is_never_a_label(study: Study):
    reference = study.set_reference("a", make_label(4))
    assert same(reference, make_label(4)) and study.reference_path("a") == reference
    case = study.case("a")
    assert case.label is None and case.role == "unlabeled" and study.labeled_cases() == []
    assert study.label_path("a") is None and study.history("a") == []
    with pytest.raises(InputError, match="is a reference"):
        study.accept_label("a", reference)
    with pytest.raises(InputError, match="is a reference"):
        study.add(make_image(8), label=reference, id="copy")
    put(study, "a", seed=1)
    study.accept("a")
    assert same(study.label_path("a"), make_label(1)) and same(study.reference_path("a"), make_label(4))
    study.set_reference("a", make_label(5))
    assert same(study.reference_path("a"), make_label(5)) and same(study.label_path("a"), make_label(1))


def test_test_case_is_not_taken_into_training_by_accepting(study: Study):
    study.set_role("a", "test")
    put(study, "a", "prediction")
    study.save_draft("a", make_label(2))
    for accept in (lambda: study.accept("a"), lambda: study.accept_corrected("a"),
                   lambda: study.accept_label("a", make_label())):  # fmt: skip
        with pytest.raises(InputError, match="is a test case"):
            accept()
    assert study.case("a").role == "test" and study.history("a") == [] and study.draft("a") is not None


def test_the_same_result_is_accepted_once(study: Study):
    put(study, "a", seed=1)
    first = study.accept("a")
    assert study.accept("a") == first and len(study.history("a")) == 1
    put(study, "a", seed=2)
    assert study.accept("a") != first and len(study.history("a")) == 2


def test_labels_of_no_case_are_found(study: Study):
    study.accept_label("a", make_label())
    assert study.stray_labels() == []
    for name in (".left-b-17", "gone"):
        (study.root / "labels" / name).mkdir()
        (study.root / "labels" / name / "001-expert.nrrd").write_bytes(b"x")
    assert [path.name for path in study.stray_labels()] == [".left-b-17", "gone"]
    assert Study.open(study.root).stray_labels() == study.stray_labels()


# --- results


def test_result_is_what_was_written(study: Study):
    written = put(study, "a", dice=0.8, seed=3, note="kept")
    result = Study.open(study.root).result("a", "pseudo_label")
    assert result == written and result.expected_dice == 0.8 and result.mean_confidence == 0.97
    assert result.expected_dice_by_structure == {"2": 0.8, "5": pytest.approx(0.85)}
    assert result.volume_ml == {"2": 1.25, "5": 0.0} and result.doubtful_slice == 4
    assert result.slices[4] == {"index": 4, "mean_confidence": pytest.approx(0.94), "doubt": 0.4}
    assert result.made_by == {"model": "foundation", "run": "r1"} and result.extra == {"note": "kept"}
    names = [p.relative_to(study.root).as_posix() for p in (result.label_path, result.confidence_path)]
    assert names == ["pseudo_labels/a.nrrd", "confidence/a.nrrd"] and same(result.label_path, make_label(3))
    prediction = put(study, "a", "prediction")
    names = [
        p.relative_to(study.root).as_posix() for p in (prediction.label_path, prediction.confidence_path)
    ]
    assert names == ["predictions/a.nrrd", "predictions/confidence/a.nrrd"]
    assert sitk.ReadImage(str(prediction.confidence_path)).GetPixelID() == sitk.sitkUInt8
    assert study.result("b", "prediction") is None and study.newest_result("b") is None
    with pytest.raises(InputError, match="kind of result"):
        study.result("a", "dream")
    with pytest.raises(InputError, match="no case called"):
        study.result("z", "prediction")


def test_newest_of_prediction_and_pseudo_label(study: Study):
    put(study, "a", "prediction", time=100.0)
    put(study, "a", "pseudo_label", time=200.0)
    assert study.newest_result("a").kind == "pseudo_label"
    put(study, "a", "prediction", time=200.0)
    assert study.newest_result("a").kind == "prediction"


def test_result_that_was_cut_off_reads_as_none(study: Study, monkeypatch: pytest.MonkeyPatch):
    put(study, "a")

    def killed(image: sitk.Image, path: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr("SFRCore.study.results.write_volume", killed)
    with pytest.raises(KeyboardInterrupt):
        put(study, "a", dice=0.1, seed=9)
    assert study.result("a", "pseudo_label") is None  # and not the old numbers with a new label map
    monkeypatch.undo()
    put(study, "a")
    path = study.root / "pseudo_labels" / "a.json"
    for broken in (
        '{"expected_dice": 0.',
        "[]",
        "{}",
        json.dumps({**json.loads(path.read_text()), "time": None}),
    ):
        path.write_text(broken)
        assert study.result("a", "pseudo_label") is None and study.review_queue() == []
    put(study, "a")
    (study.root / "confidence" / "a.nrrd").unlink()
    assert study.result("a", "pseudo_label") is None


def test_results_that_cannot_be_true_are_refused(study: Study):
    flat = sitk.Cast(make_label(), sitk.sitkUInt8)
    small = sitk.Image((2, 2, 2), sitk.sitkUInt8)
    for label, confidence, said in (
        (make_label(), small, numbers()),
        (make_label(), sitk.Cast(flat, sitk.sitkFloat32), numbers()),
        (sitk.Cast(flat, sitk.sitkUInt8) + 1, flat, numbers()),
        (make_label(), flat, numbers(math.nan)),
        (make_label(), flat, {**numbers(), "mean_confidence": math.inf}),
        (make_label(), flat, {k: v for k, v in numbers().items() if k != "slices"}),
    ):
        with pytest.raises(InputError, match="pseudo-label of case a"):
            study.write_result("a", "pseudo_label", label, confidence, said)
    assert not (study.root / "pseudo_labels").exists()


def test_confidence_table_has_a_row_a_slice(study: Study):
    put(study, "b", dice=0.5)
    put(study, "a", dice=0.75)
    put(study, "a", "prediction", dice=0.25)
    path = study.write_confidence_table("pseudo_label")
    assert path == study.root / "confidence" / "confidence.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8", newline="")))
    assert [(r["case"], int(r["slice"])) for r in rows] == [(id, z) for id in "ab" for z in range(SIZE[2])]
    assert float(rows[4]["doubt"]) == 0.4 and float(rows[4]["mean_confidence"]) == pytest.approx(0.94)
    assert float(rows[0]["case_expected_dice"]) == 0.75 and float(rows[9]["case_expected_dice"]) == 0.5
    predictions = study.write_confidence_table("prediction")
    assert predictions == study.root / "predictions" / "confidence.csv"
    assert len(predictions.read_text().splitlines()) == 1 + SIZE[2]


# --- review


def test_queue_begins_with_the_smallest_expected_dice(study: Study):
    put(study, "a", dice=0.9)
    put(study, "b", dice=0.0)
    put(study, "c", dice=0.6, time=1.0)
    put(study, "c", "prediction", dice=0.95, time=2.0, doubtful_slice=1)
    queue = study.review_queue()
    assert [(i.id, i.expected_dice, i.kind, i.doubtful_slice, i.review) for i in queue] == [
        ("b", 0.0, "pseudo_label", 4, "unseen"),
        ("a", 0.9, "pseudo_label", 4, "unseen"),
        ("c", 0.95, "prediction", 1, "unseen"),
    ]
    study.reject("b")
    study.accept("a")
    study.set_role("c", "test")
    assert study.review_queue() == []


def test_accept_takes_the_chosen_source(study: Study):
    put(study, "a", "pseudo_label", seed=1, time=2.0)
    put(study, "a", "prediction", seed=2, time=1.0)
    assert same(study.accept("a"), make_label(1))
    assert same(study.accept("a", "prediction"), make_label(2))
    case = study.case("a")
    assert (case.role, case.review, case.label_origin) == ("labeled", "accepted", "accepted")
    assert study.result("a", "pseudo_label") is not None
    with pytest.raises(InputError, match="b has no result to accept"):
        study.accept("b")
    with pytest.raises(InputError, match="b has no pseudo-label to accept"):
        study.accept("b", "pseudo_label")
    with pytest.raises(InputError, match="cannot be accepted"):
        study.accept("a", "reference")


def test_corrections_are_drafts_until_accepted(study: Study):
    with pytest.raises(InputError, match="no corrections"):
        study.accept_corrected("a")
    study.save_draft("a", make_label(1))
    draft = study.save_draft("a", make_label(2))
    assert study.draft("a") == draft == study.root / "drafts" / "a" / "draft.nrrd"
    assert study.case("a").label is None and study.labeled_cases() == []
    assert same(study.accept_corrected("a"), make_label(2))
    case = study.case("a")
    assert (case.role, case.review, case.label_origin) == ("labeled", "corrected", "corrected")
    assert study.draft("a") is None
    study.save_draft("a", make_label(3))
    assert same(study.accept_corrected("a", make_label(4)), make_label(4)) and study.draft("a") is None
    study.save_draft("a", make_label(3))
    study.discard_draft("a")
    study.discard_draft("a")
    assert study.draft("a") is None


def test_a_corrected_file_leaves_the_draft_of_somebody_else(study: Study, tmp_path: Path):
    draft = study.save_draft("a", make_label(3))
    sitk.WriteImage(make_label(4), str(tmp_path / "mine.nrrd"))
    assert same(study.accept_corrected("a", tmp_path / "mine.nrrd"), make_label(4))
    assert same(study.draft("a"), make_label(3))
    assert same(study.accept_corrected("a", str(draft)), make_label(3)) and study.draft("a") is None


def test_draft_outlives_an_acceptance_that_failed(study: Study, monkeypatch: pytest.MonkeyPatch):
    half_done = make_label(1) + 100
    study.save_draft("a", half_done)
    with pytest.raises(InputError):
        study.accept_corrected("a")
    assert same(study.draft("a"), half_done)
    study.save_draft("a", make_label(1))
    monkeypatch.setattr(
        Document, "write", lambda self, path: (_ for _ in ()).throw(DiskFull("The disk is full."))
    )
    with pytest.raises(DiskFull):
        study.accept_corrected("a")
    assert same(study.draft("a"), make_label(1))
    monkeypatch.undo()
    assert Study.open(study.root).case("a").label_origin == "corrected"  # it had been on the disk already


def test_edits_saved_while_accepting_are_kept(study: Study, monkeypatch: pytest.MonkeyPatch):
    study.save_draft("a", make_label(1))
    accept_label = study.accept_label

    def meanwhile(*arguments: object, **options: object) -> Path:
        path = accept_label(*arguments, **options)
        study.save_draft("a", make_label(2))
        return path

    monkeypatch.setattr(study, "accept_label", meanwhile)
    study.accept_corrected("a")
    assert same(study.draft("a"), make_label(2)) and same(study.label_path("a"), make_label(1))


def test_rejecting_keeps_a_case_out_of_training(study: Study):
    put(study, "a")
    study.reject("a")
    assert study.case("a").review == "rejected" and study.case("a").role == "unlabeled"
    assert [c.id for c in study.unlabeled_cases()] == ["a", "b", "c"]
    assert [c.id for c in study.unlabeled_cases(for_training=True)] == ["b", "c"]
    study.unreject("a")
    assert study.case("a").review == "unseen" and [i.id for i in study.review_queue()] == ["a"]
    study.accept("a")
    study.reject("a")  # taken back: unlabeled again, the file stays
    assert (
        study.case("a").role == "unlabeled" and len(study.history("a")) == 1 and study.labeled_cases() == []
    )
    study.unreject("a")
    study.accept_corrected("a", make_label(2))
    with pytest.raises(InputError, match="drawn or corrected by hand"):
        study.reject("a")
    study.set_role("b", "test")
    with pytest.raises(InputError, match="not up for review"):
        study.reject("b")
    study.unreject("a")
    assert study.case("a").review == "corrected"
