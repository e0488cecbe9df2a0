"""The steps as methods, for the console: with the panel and without it, the same."""

import json
import subprocess
from pathlib import Path

import pytest
import slicer
from panel_tools import cohort, give_result, loaded_volume, study_of

from SFRCore.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["panel's", "own"])
def logic(request, widget):
    import SFRSegmentation

    if request.param == "own":
        return SFRSegmentation.SFRSegmentationLogic()
    assert slicer.util.getModuleLogic("SFRSegmentation") is widget.logic
    return widget.logic


def test_study_from_nodes_and_files(logic, tmp_path):
    heard = []
    with pytest.raises(InputError, match="No study is open"):
        logic.reviewQueue()
    logic.session.listen(heard.append)
    logic.createStudy(tmp_path / "s", structures={1: "Anterior lobe", 2: "Posterior lobe"})
    volume, segmentation = loaded_volume()
    assert logic.addVolume(volume, segmentation, role="labeled").id == "scan"
    images, labels = cohort(tmp_path / "cohort", cases=2)
    assert [case.role for case in logic.addFolder(images, labels=labels)] == ["labeled", "labeled"]
    logic.setRole(["case_01", "case_02"], "ignored")
    assert [case.role for case in logic.study.cases.values()] == ["labeled", "ignored", "ignored"]
    assert heard == ["study", "cases", "cases", "cases"]


def test_review_from_the_console(logic, tmp_path):
    study = study_of(tmp_path, cases=6)
    for id, dice in (("case_03", 0.7), ("case_04", 0.5), ("case_05", 0.6)):
        give_result(study, id, dice=dice)
    logic.openStudy(study.root)
    assert [item.id for item in logic.reviewQueue()] == ["case_04", "case_05", "case_03"]
    logic.accept("case_04")
    logic.reject("case_05")
    node = logic.loadPrediction("case_03")
    logic.loadImage("case_03")
    logic.acceptCorrected("case_03", node)
    cases = logic.study.cases
    assert [cases[id].review for id in ("case_03", "case_04", "case_05")] == [
        "corrected",
        "accepted",
        "rejected",
    ]
    assert logic.reviewQueue() == []


def test_what_cannot_be_done_is_said(logic, tmp_path):
    study = study_of(tmp_path)
    logic.openStudy(study.root)
    with pytest.raises(InputError, match="There is no job 'fly'"):
        logic.start("fly")
    with pytest.raises(InputError, match="cannot be repeated"):
        logic.startAgain(["fly"])
    with pytest.raises(InputError, match="no prediction"):
        logic.loadPrediction("case_03")


def test_every_step_of_the_panel_is_a_method(logic, tmp_path, monkeypatch):
    monkeypatch.setenv("SFR_DATA", str(tmp_path / "data"))
    study = logic.openStudy(logic.makeSample())
    assert len(study.cases) == 12 and len(study.labeled_cases()) == 4
    waiting = [case.id for case in study.cases.values() if case.role == "unlabeled"][:2]
    for id in waiting:
        give_result(study, id)
    logic.reject(waiting[0])
    assert [item.id for item in logic.reviewQueue()] == waiting[1:]
    logic.bringBack(waiting[0])
    assert len(logic.reviewQueue()) == 2
    written = logic.exportPredictions(tmp_path / "out") + logic.exportPredictions(
        tmp_path / "out", nifti=True
    )
    assert sorted(path.name for path in written) == sorted(
        [f"{id}.seg.nrrd" for id in waiting] + [f"{id}_seg.nii.gz" for id in waiting]
    )
    assert all(id in logic.exportTable(tmp_path / "out.csv").read_text() for id in waiting)
    images = study.image_path(waiting[0]).parent
    images.rename(tmp_path / "moved")
    assert len(logic.relink(tmp_path / "moved")) == 12
    assert len(logic.pack()) == 12 and study.outside_files() == []
    assert logic.removePackages() == 0
    with pytest.raises(InputError, match="no trained model"):
        logic.segmentVolume(logic.loadImage(waiting[0]))


def test_a_dicom_series_from_the_console(logic, tmp_path):
    from test_cases_step import dicom_series

    dicom_series(tmp_path / "dicom", 1)
    logic.createStudy(tmp_path / "s", {1: "Organ"})
    assert logic.addDicom(tmp_path / "dicom").id == "case_0001"


def test_public_methods_are_documented(logic):
    silent = [
        name for name in dir(type(logic)) if name[0].islower() and callable(getattr(type(logic), name))
        and getattr(type(logic), name).__module__.startswith("SFR") and not getattr(type(logic), name).__doc__
    ]  # fmt: skip
    assert silent == []


def test_words_of_the_command_line():
    from SFRSegmentationLib.worker import words_of

    options = {
        "foundation": "vit_b", "iterations_retrain": 5, "patch": (96, 96, 64), "yes": True, "fast": False,
        "faithful": False, "seed": None, "method_options": {"ramp": (0.1, 40)},
        "recipe_options": {"rounds": 2},
    }  # fmt: skip
    assert words_of(options) == [
        "--foundation", "vit_b", "--iterations-retrain", "5", "--patch", "96,96,64", "--yes", "--dense",
        "--method-option", "ramp=0.1,40", "--recipe-option", "rounds=2",
    ]  # fmt: skip


def test_catalogue_agrees_with_the_worker(workerPython):
    """What is read from the sources here is what the worker finds by importing them."""
    from SFRSegmentationLib import catalogue, train_words

    asked = (
        "import json\n"
        "from SFRCore.foundation.spec import SPECS\n"
        "from SFRCore.recipes import available_recipes\n"
        "from SFRCore.ssl import available_methods\n"
        "from SFRCore.students import student_types\n"
        "recipes = {name: recipe.summary for name, recipe in available_recipes().items()}\n"
        "print(json.dumps([recipes, list(available_methods()), list(student_types()), list(SPECS)]))\n"
    )
    answer = subprocess.run([workerPython, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    recipes, methods, students, foundations = json.loads(answer.stdout)
    assert catalogue.recipes() == recipes and next(iter(catalogue.recipes())) == "sfr"
    assert sorted(catalogue.methods()) == sorted(methods) and len(methods) >= 19
    assert sorted(catalogue.students()) == sorted(students) and catalogue.students()[0] == "vnet"
    assert sorted(train_words.foundation_words()) == sorted(foundations)
    assert set(recipes) == set(train_words.recipe_words())
    assert all(words.endswith((".", ")", "n")) and len(words) > 20 for words in catalogue.methods().values())


def test_module_s_own_tests(widget):
    """What Slicer runs with Reload and Test."""
    import SFRSegmentation

    SFRSegmentation.SFRSegmentationTest().runTest()
