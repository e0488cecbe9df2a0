"""What must hold when things go wrong: killed processes, full disks, bad files, two at once."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from safetensors.numpy import save_file

from SFRCore.study import Study
from SFRCore.synthetic import make_synthetic_cohort
from SFRCore.volumes import read_image, read_label, same_geometry
from Testing.Core.faults import (
    SETTINGS,
    Done,
    Server,
    check_results,
    check_whole,
    served,
    start_worker,
    temporary_files,
    wait_for,
)
from Testing.Core.strikes import KILLED, fault_at

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="the faults are injected into forked processes"
)

RUN = SETTINGS.split()
STRUCTURES = ("--structures", "1=Anterior,2=Posterior")
NOT_RENAMED = {".job.lock", "alive", "worker.log", "events.jsonl"}
"""What a run writes otherwise than by renaming: locks and what is added to line by line."""
STUDENT = "models/sfr-mean_teacher/student.safetensors"
LABELED, UNLABELED, TEST = ["case_01", "case_02"], ["case_03", "case_04"], ["case_05"]


@pytest.fixture(scope="module")
def sfr(tmp_path_factory: pytest.TempPathFactory):
    with served(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Five cases of 20 x 20 x 12 voxels; five more in the folders more and more_labels beside them."""
    folder = tmp_path_factory.mktemp("scans")
    return make_synthetic_cohort(folder, cases=5, size=(20, 20, 12), seed=3)


def init(sfr: Server, scans: tuple[Path, Path], study: Path, labeled: int = 2, **how) -> Done:
    images, labels = scans
    return sfr.run(
        "init",
        study,
        "--images",
        images,
        "--labels",
        labels,
        *STRUCTURES,
        "--num-labeled",
        labeled,
        "--test",
        1,
        **how,
    )


@pytest.fixture
def study(sfr: Server, scans: tuple[Path, Path], tmp_path: Path) -> Path:
    """A study of five cases, nothing computed."""
    made = init(sfr, scans, tmp_path / "study")
    assert made.code == 0, made.err
    return tmp_path / "study"


@pytest.fixture(scope="module")
def finished(sfr: Server, scans: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after a run; to be copied, not changed."""
    root = tmp_path_factory.mktemp("finished") / "study"
    init(sfr, scans, root)
    done = sfr.run("run", root, *RUN)
    assert done.code == 0, done.err
    check_whole(root, labels=2, pseudo=UNLABELED, predicted=UNLABELED + TEST)
    return root


def one_sentence(err: str, *names: str) -> str:
    """The error in what a command printed; there is no traceback, and it names what it should."""
    assert "Traceback" not in err, err
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, err
    for name in names:
        assert name in lines[0], lines[0]
    return lines[0]


def copied(finished: Path, tmp_path: Path, name: str = "copy") -> Path:
    return Path(shutil.copytree(finished, tmp_path / name))


def check_struck(done: Done, fault: str) -> None:
    """A command met its fault: it died, or said that the disk is full. The record of a run's end may fail."""
    if fault != "full":
        assert done.code == KILLED, done
    elif done.code == 0:
        assert Path(done.last).name == "job.json"
    else:
        assert done.code == 4, done
        one_sentence(done.err, "disk is full")


# 1. A killed worker


@pytest.mark.parametrize(
    ("small", "stage", "event"),
    [(False, "run", "plan"), (True, "finetune", "checkpoint"), (True, "retrain", "checkpoint")],
)
def test_a_killed_worker_goes_on_to_the_same_weights(
    sfr: Server, study: Path, finished: Path, small: bool, stage: str, event: str
) -> None:
    worker = start_worker(study, *RUN, small=small)
    try:
        wait_for(study, stage, event)
        time.sleep(random.Random(stage).uniform(0, 0.05 if small else 1.0))
    finally:
        worker.kill()
    assert worker.wait() == -9
    done = sfr.run("run", study, *RUN, "--json", small=small)
    assert done.code == 0, done.err
    check_whole(study, labels=2, pseudo=UNLABELED, predicted=UNLABELED + TEST)
    if small:
        found = json.loads(done.out)["stages"][stage]
        assert found["skipped"] or found["continued_at"] > 0
        assert (study / STUDENT).read_bytes() == (finished / STUDENT).read_bytes()


# 2. A fault at each place where something is written


def struck_at_each_place(sfr: Server, *words: object, **how) -> tuple[Done, list[str]]:
    """Give one command again and again, each time with a fault at the first place that has met none, until it
    gets to its end; the kinds of fault take turns. Returns how it ended, and the places in order.
    """
    met: list[str] = []
    while True:
        fault = fault_at(len(met))
        done = sfr.run(*words, fault=fault, beyond=met, **how)
        place = done.places[-1] if done.places else ""
        if place in met or not place:
            assert done.code == 0, done.err
            return done, met
        check_struck(done, fault)
        met.append(place)


@pytest.mark.timeout(900)
def test_a_run_that_is_cut_off_at_every_place_gets_to_its_end(sfr: Server, tmp_path: Path) -> None:
    """Every write of a run, also those of checkpoints, meets one fault: each attempt goes on from what the
    one before has left, passes the places that were struck already, and ends at the next one.
    """
    scans = make_synthetic_cohort(tmp_path / "scans", cases=3, size=(20, 20, 12), seed=4)
    root = tmp_path / "study"
    assert init(sfr, scans, root, labeled=1).code == 0
    begin = copied(root, tmp_path, "begin")
    undisturbed = sfr.run("run", root, *RUN, checkpoints=True)
    assert undisturbed.code == 0, undisturbed.err
    assert {Path(path).name for path in undisturbed.made if ".sfr-tmp-" not in path} == NOT_RENAMED
    student = (root / STUDENT).read_bytes()
    shutil.rmtree(root)
    begin.rename(root)
    _, met = struck_at_each_place(sfr, "run", root, *RUN, checkpoints=True)
    assert {*undisturbed.places} <= {*met}
    check_whole(root, labels=1, pseudo=["case_02"], predicted=["case_02", "case_03"])
    assert (root / STUDENT).read_bytes() == student


def test_an_init_that_is_cut_off_can_be_given_again(
    sfr: Server, scans: tuple[Path, Path], tmp_path: Path
) -> None:
    """At every write, the kinds of fault taking turns."""
    count = len(init(sfr, scans, tmp_path / "counted").writes)
    assert count > 20
    for at in range(1, count + 1):
        strike_init(sfr, scans, tmp_path / str(at), fault_at(at), at)


def strike_init(
    sfr: Server, scans: tuple[Path, Path], folder: Path, fault: str, at: int, *, files: bool = False
) -> None:
    """An init with a fault at its ``at``-th write, then once more without; with ``files`` in a folder that
    holds some.
    """
    notes = folder / "study/notes.txt"
    folder.mkdir()
    if files:
        notes.parent.mkdir()
        notes.write_text("mine")
    struck = init(sfr, scans, folder / "study", fault=fault, at=at)
    check_struck(struck, fault)
    if not (fault == "after" and Path(struck.last) == folder / "study"):
        assert (folder / "study").exists() == files
        done = init(sfr, scans, folder / "study")
        assert done.code == 0, (fault, at, struck.last, done.err)
    assert [path.name for path in folder.iterdir()] == ["study"]
    study = Study.open(folder / "study")
    roles = {id: case.role for id, case in study.cases.items()}
    assert roles == dict.fromkeys(LABELED, "labeled") | dict.fromkeys(UNLABELED, "unlabeled") | {
        TEST[0]: "test"
    }
    assert temporary_files(folder) == []
    assert notes.exists() == files


COMMANDS: dict[str, tuple[str, ...]] = {
    "add": ("add", "STUDY", "MORE/images", "--labels", "MORE/labels"),
    "accept": ("review", "STUDY", "--accept", "case_03"),
    "draft": ("draft", "STUDY", "case_03"),
    "evaluate": ("evaluate", "STUDY"),
    "report": ("report", "STUDY", "--output", "STUDY/../out/report.html"),
    "export": ("export", "STUDY", "--format", "torch", "--output", "STUDY/../out"),
    "predict": ("predict", "--model", "STUDY/models/sfr-mean_teacher",
                "--image", "MORE/images/new_case_01.nrrd",
                "--output", "STUDY/../out/one.nrrd", "--confidence", "STUDY/../out/sure.nrrd"),
}  # fmt: skip
STRUCK = {"report": [(2, "before")], "export": [(5, "before")]}
"""Which writes of the slow commands are struck here, and how; of the others all are, with all kinds of fault.
The long tests strike all writes of all commands in every way.
"""


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three further cases."""
    folder = tmp_path_factory.mktemp("more")
    for where in make_synthetic_cohort(folder, cases=3, size=(20, 20, 12), seed=9):
        for path in where.iterdir():
            path.rename(path.with_name(f"new_{path.name}"))
    return folder


def words_of(command: str, study: Path, more: Path) -> list[str]:
    return [word.replace("STUDY", str(study)).replace("MORE", str(more)) for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_is_cut_off_can_be_given_again(
    sfr: Server, finished: Path, more: Path, tmp_path: Path, command: str
) -> None:
    struck = STRUCK.get(command)
    if struck is None:
        count = len(sfr.run(*words_of(command, copied(finished, tmp_path), more)).writes)
        assert count
        struck = [(number % count + 1, fault_at(number)) for number in range(max(count, 3))]
    for at, fault in struck:
        strike(sfr, finished, more, tmp_path / f"{at}-{fault}", command, fault, at)


def strike(sfr: Server, finished: Path, more: Path, folder: Path, command: str, fault: str, at: int) -> None:
    """One command with a fault at its ``at``-th write, then once more without."""
    root = copied(finished, folder, "study")
    words = words_of(command, root, more)
    check_struck(sfr.run(*words, fault=fault, at=at), fault)
    done = sfr.run(*words)
    assert done.code == 0, (fault, at, done.err)
    study = Study.open(root)
    check_results(study, UNLABELED, UNLABELED + TEST)
    for case in study.labeled_cases():
        history = [version.path for version in study.history(case.id)]
        assert study.label_path(case.id) == history[-1]
        for path in history:
            read_label(path, study.values)
    assert temporary_files(folder) == []
    labeled = {case.id for case in study.labeled_cases()}
    if command == "add":
        assert labeled == {*LABELED, "new_case_01", "new_case_02", "new_case_03"}
    elif command == "accept":
        assert labeled == {*LABELED, "case_03"}
    elif command == "draft":
        draft = study.draft("case_03")
        assert draft is not None
        read_label(draft, study.values, like=read_image(study.image_path("case_03")))
    elif command == "evaluate":
        assert json.loads((root / "reports/scores.json").read_text())["mean_dice"] is not None
    elif command == "report":
        assert (folder / "out/report.html").read_text().rstrip().endswith("</html>")
    elif command == "export":
        made = folder / "out"
        size = json.loads((made / "export.json").read_text())["files"]["torch"]["bytes"]
        assert (made / "student.pt2").stat().st_size == size
    elif command == "predict":
        image = read_image(more / "images/new_case_01.nrrd")
        read_label(folder / "out/one.nrrd", study.values, like=image)
        assert same_geometry(sitk.ReadImage(str(folder / "out/sure.nrrd")), image)


# 3. One bad case


def like(image: sitk.Image, array: np.ndarray, **changed) -> sitk.Image:
    made = sitk.GetImageFromArray(array, **changed)
    if made.GetDimension() == 3:
        made.CopyInformation(image)
    return made


BAD = ("cut", "nothing", "words", "nan", "constant", "flat", "movie", "colour", "elsewhere", "stray", "twin")


@pytest.fixture(scope="module")
def mixed(scans: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The good cases among bad ones of every kind, in folders whose names have spaces and other letters."""
    folder = tmp_path_factory.mktemp("gemischt") / "дети и 脳"
    images, labels = (shutil.copytree(where, folder / f"{where.name} né") for where in scans)
    image, label = sitk.ReadImage(str(images / "case_03.nrrd")), sitk.ReadImage(str(labels / "case_03.nrrd"))
    voxels, marks = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(label)

    def write(name: str, content: sitk.Image, mark: sitk.Image | None = None) -> Path:
        sitk.WriteImage(content, str(images / name), True)
        if mark is not None:
            sitk.WriteImage(mark, str(labels / name), True)
        return images / name

    cut = write("cut.nii.gz", image)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (images / "nothing.nii.gz").write_bytes(b"")
    (images / "words.nii.gz").write_text("This was meant to be a volume.\n")
    holes = voxels.astype(np.float32)
    holes[3, 4, 5] = np.nan
    write("nan.nrrd", like(image, holes))
    write("constant.nrrd", like(image, np.full_like(voxels, 7)))
    write("flat.nrrd", like(image, voxels[0]))
    write("movie.nii.gz", sitk.JoinSeries([image, image]))
    write("colour.nrrd", sitk.Compose(image, image, image))
    moved = sitk.Image(label)
    moved.SetOrigin([value + 30 for value in label.GetOrigin()])
    write("elsewhere.nrrd", image, moved)
    write("stray.nrrd", image, like(label, np.where(marks == 2, 9, marks)))
    write("blank.nrrd", image, like(label, np.zeros_like(marks)))
    write("vanishing.nrrd", like(image, voxels + 3))
    write("spoilt.nrrd", like(image, voxels + 5))
    write("スキャン ß 1.nrrd", like(image, voxels[::-1]))
    write("twin.nrrd", like(image, voxels + 1))
    write("twin.mha", like(image, voxels + 2))
    return images, labels


def test_bad_cases_never_stop_the_others(sfr: Server, mixed: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = mixed
    root = tmp_path / "étude 1"
    labeled = "case_01,case_02,elsewhere,stray,blank"
    made = sfr.run(
        "init", root, "--images", images, "--labels", labels, *STRUCTURES, "--labeled", labeled, "--test",
        "case_05",
    )  # fmt: skip
    assert made.code == 0, made.err
    assert "Traceback" not in made.err
    warnings = [line for line in made.err.splitlines() if line.startswith("Warning: ")]
    for name in BAD:
        assert len([line for line in warnings if f"/{name}." in line]) == 1, (name, made.err)
    study = Study.open(root)
    good = ["case_03", "case_04", "スキャン ß 1", "twin"]
    assert set(study.cases) == {*LABELED, *good, *TEST, "blank", "vanishing", "spoilt"}
    (images / "vanishing.nrrd").rename(images / "away")
    spoilt = (images / "spoilt.nrrd").read_bytes()
    (images / "spoilt.nrrd").write_bytes(spoilt[: len(spoilt) // 2])
    try:
        done = sfr.run("run", root, *RUN)
    finally:
        (images / "away").rename(images / "vanishing.nrrd")
        (images / "spoilt.nrrd").write_bytes(spoilt)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    for name in ("vanishing", "spoilt"):
        said = [line for line in done.err.splitlines() if line.startswith("Warning: ") and name in line]
        assert len(said) == 1, done.err
    study.reload()
    problems = {case.id: case.problem for case in study.cases.values() if case.problem}
    assert set(problems) == {"vanishing", "spoilt"}
    check_results(study, good, [*good, *TEST])
    again = sfr.run("run", root, *RUN)
    assert again.code == 0, again.err
    study.reload()
    assert [case.problem for case in study.cases.values() if case.problem] == []
    check_results(study, [*good, "vanishing", "spoilt"], [*good, *TEST, "vanishing", "spoilt"])


def test_a_mask_of_255_is_the_one_structure(sfr: Server, scans: tuple[Path, Path], tmp_path: Path) -> None:
    images, labels = (shutil.copytree(where, tmp_path / where.name) for where in scans)
    for path in labels.iterdir():
        label = sitk.ReadImage(str(path))
        marks = sitk.GetArrayFromImage(label)
        sitk.WriteImage(like(label, np.where(marks > 0, 255, 0).astype(np.uint8)), str(path))
    root = tmp_path / "study"
    options = [
        "--images",
        images,
        "--labels",
        labels,
        "--structures",
        "1=Organ",
        "--num-labeled",
        2,
        "--test",
        1,
    ]
    made = sfr.run("init", root, *options)
    assert made.code == 0, made.err
    done = sfr.run("run", root, *RUN)
    assert done.code == 0, done.err
    check_results(Study.open(root), UNLABELED, UNLABELED + TEST)
    assert sfr.run("evaluate", root).code == 0


@pytest.mark.parametrize(
    "gone", [LABELED, UNLABELED, LABELED + UNLABELED + TEST], ids=["labeled", "unlabeled", "all"]
)
def test_where_nothing_is_left_it_ends_with_2(
    sfr: Server, scans: tuple[Path, Path], tmp_path: Path, gone: list[str]
) -> None:
    images = Path(shutil.copytree(scans[0], tmp_path / "images"))
    root = tmp_path / "study"
    assert init(sfr, (images, scans[1]), root).code == 0
    for id in gone:
        (images / f"{id}.nrrd").write_text("no longer an image")
    done = sfr.run("run", root, *RUN)
    assert done.code == 2
    one_sentence(done.err)


# 4. Two at once


LONGER = [*SETTINGS.replace("finetune 3", "finetune 45").replace("retrain 3", "retrain 45").split()]


def test_two_processes_share_a_study(sfr: Server, study: Path) -> None:
    first = sfr.start("run", study, *LONGER)
    wait_for(study, "finetune", "started")
    second = sfr.run("run", study, *RUN)
    assert second.code == 2
    one_sentence(second.err, "is in use by the job 'run'", f"process {first.pid} on ", " since ")
    opened = Study.open(study)
    reference = opened.reference_path("case_03")
    assert reference is not None
    label = read_label(reference, opened.values)
    accepted = opened.accept_label("case_03", label, "corrected")
    done = first.wait()
    assert done.code == 0, done.err
    opened.reload()
    assert opened.label_path("case_03") == accepted
    assert opened.case("case_03").role == "labeled"
    following = sfr.run("run", study, *LONGER, "--json")
    assert following.code == 0, following.err
    stages = json.loads(following.out)["stages"]
    assert [stages[name]["iterations"] for name in ("finetune", "retrain")] == [9, 9]
    assert (
        "case_03" in json.loads((study / "models/foundation/foundation.json").read_text())["made_by"]["cases"]
    )
    assert sfr.run("run", study, *LONGER, "--json").out.count('"skipped": true') == 4


# 5. What somebody else did to the folder


def test_a_read_only_study_can_be_looked_at(sfr: Server, finished: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    for words in (
        ["run", *RUN],
        ["review", "--accept", "case_03"],
        ["report"],
        ["export", "--format", "torch"],
    ):
        refused = sfr.run(words[0], finished, *words[1:], readonly=True)
        assert refused.code == 2, (words, refused)
        one_sentence(refused.err, "read-only")
        assert not [path for path in refused.writes if path.startswith(str(finished))]
    elsewhere = ["--output", tmp_path / "page.html"], ["--format", "torch", "--output", tmp_path / "model"]
    for words in (["review"], ["evaluate"], ["report", *elsewhere[0]], ["export", *elsewhere[1]]):
        done = sfr.run(words[0], finished, *words[1:], readonly=True)
        assert done.code == 0, (words, done.err)
    assert (tmp_path / "page.html").is_file()
    assert (tmp_path / "model" / "student.pt2").is_file()
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_the_cache_may_be_deleted_while_a_run_reads_it(sfr: Server, study: Path) -> None:
    running = sfr.start("run", study, *LONGER)
    for stage in ("finetune", "retrain"):
        wait_for(study, stage, "started", timeout=60)
        shutil.rmtree(study / "cache", ignore_errors=True)
    done = running.wait()
    assert done.code == 0, done.err
    check_whole(study, labels=2, pseudo=UNLABELED, predicted=UNLABELED + TEST)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("}", ""),
        ('"image": "/', '"image": "../../'),
        ('"label": "labels/case_01/', '"label": "labels/case_01/../../../'),
        ('"reference": "references/', '"reference": "/etc/'),
        ('"role": "labeled"', '"role": ["labeled"]'),
        ('"value": 1', '"value": -1'),
    ],
)
def test_a_study_file_changed_by_hand_is_refused(
    sfr: Server, finished: Path, tmp_path: Path, old: str, new: str
) -> None:
    root = tmp_path / "study"
    root.mkdir()
    text = (finished / "study.json").read_text(encoding="utf-8")
    assert old in text
    (root / "study.json").write_text(text.replace(old, new), encoding="utf-8")
    done = sfr.run("run", root, *RUN)
    assert done.code == 2, done
    one_sentence(done.err, "study.json")
    assert [path.name for path in root.iterdir() if not path.name.startswith(".")] == ["study.json"]


def test_damaged_models_are_said_and_made_anew(
    sfr: Server, finished: Path, more: Path, tmp_path: Path
) -> None:
    root = copied(finished, tmp_path)
    for name in ("foundation/foundation", "sfr-mean_teacher/student"):
        weights = root / "models" / f"{name}.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    for words in (["export", root], ["predict", "--model", root / "models/sfr-mean_teacher", "--image",
                  more / "images/new_case_01.nrrd", "--output", tmp_path / "out.nrrd"]):  # fmt: skip
        done = sfr.run(*words)
        assert done.code == 2, done
        one_sentence(done.err, "student.safetensors")
    done = sfr.run("run", root, *RUN, "--json")
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    check_whole(root, labels=2, pseudo=UNLABELED, predicted=UNLABELED + TEST)


# 6. Foundations that are not what they seem


def pickled_code(path: Path, mark: Path, *, zipped: bool) -> Path:
    class Code:
        def __reduce__(self):
            return Path.touch, (mark,)

    content = pickle.dumps({"model": Code()}, protocol=2)
    if not zipped:
        path.write_bytes(content)
        return path
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize(
    "kind", ["empty", "noise", "words", "cut", "other network", "code", "zipped code", "folder", "missing"]
)
def test_a_bad_foundation_file_is_refused(
    sfr: Server, study: Path, finished: Path, tmp_path: Path, kind: str
) -> None:
    mark, path = tmp_path / "executed", tmp_path / "sam.pth"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "words":
        path.write_text("<html>404: not found</html>")
    elif kind == "cut":
        path = path.with_suffix(".safetensors")
        path.write_bytes((finished / "models/foundation/foundation.safetensors").read_bytes()[:-100])
    elif kind == "other network":
        path = path.with_suffix(".safetensors")
        save_file({"layer1.weight": np.zeros((4, 4), np.float32)}, path)
    elif kind in ("code", "zipped code"):
        pickled_code(path, mark, zipped=kind == "zipped code")
    elif kind == "folder":
        path.mkdir()
    done = sfr.run("run", study, "--foundation", path, *RUN[:2], *RUN[4:])
    assert done.code == 2, done
    one_sentence(done.err, path.name)
    assert not mark.exists()
    assert not (study / "models" / "foundation").exists()
