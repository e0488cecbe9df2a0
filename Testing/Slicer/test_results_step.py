"""The Results step, by its real buttons: loading, scores, export, and a student on a volume of no study."""

import json
import sys

import numpy as np
import pytest
import qt
import SimpleITK as sitk
import slicer
from panel_tools import Answers
from scene_tools import (
    GEOMETRIES,
    ROOT,
    STRUCTURES,
    addCase,
    addResult,
    cohortOf,
    geometry,
    grey,
    image,
    labelArray,
    openPanel,
    studyOf,
    turned,
    volumeNode,
)
from SFRSegmentationLib import scene

from SFRCore.study import Study
from SFRCore.volumes import Geometry

WORKER = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {core!r})
words = sys.argv[1:]
assert words[:2] == ["-m", "SFRCore"], words
words = words[2:]
if words[0] == "predict":
    import SimpleITK as sitk
    given = dict(zip(words[1:-1:2], words[2::2]))
    if {mood!r} == "slow":
        time.sleep(60)
    if {mood!r} == "broken":
        sys.exit("student.safetensors is missing")
    found = sitk.ReadImage(given["--image"])
    label = sitk.Cast(found > 250, sitk.sitkUInt8) * 4
    sitk.WriteImage(label, given["--output"])
    print(json.dumps({{"output": given["--output"]}}))
elif words[0] == "report":
    page = Path(words[1]) / "reports" / "report.html"
    page.parent.mkdir(exist_ok=True)
    page.write_text("<html>")
    print(json.dumps({{"report": str(page)}}))
else:
    sys.exit("unexpected " + words[0])
"""


@pytest.fixture
def widget():
    yield from openPanel()


@pytest.fixture
def results(widget, tmp_path):
    root = cohortOf(tmp_path / "study", "prediction")
    widget.logic.openStudy(root)
    widget.panel.open("results")
    yield widget.panel.steps["results"]


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker's Python that answers as SFRCore does, without PyTorch: what is tested is the panel's side."""

    def make(mood="well"):
        script = tmp_path / "worker.py"
        script.write_text(WORKER.format(core=str(ROOT), mood=mood))
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("SFR_PYTHON", str(program))

    return make


def table(step):
    model = step.ui.resultsView.model()
    return [
        [model.index(row, column).data() for column in range(model.columnCount())]
        for row in range(model.rowCount())
    ]


def select(step, *ids):
    selection = step.ui.resultsView.selectionModel()
    selection.clearSelection()
    for row, found in enumerate(step.rows):
        if found.id in ids:
            step.ui.resultsView.selectRow(row)


def segmentations():
    return sorted(node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))


def model(root, name="sfr-mean_teacher"):
    """A student's folder, as far as the panel reads it."""
    folder = root / "models" / name
    folder.mkdir(parents=True)
    structures = [structure.to_dict() for structure in STRUCTURES]
    (folder / "student.json").write_text(json.dumps({"structures": structures}))
    return folder


def test_without_predictions_it_says_what_to_do(widget, tmp_path):
    step = widget.panel.steps["results"]
    widget.logic.closeStudy()
    assert "Open a study in step 2" in step.ui.resultsSummaryLabel.text
    study = studyOf(tmp_path / "s")
    addCase(study, "a")
    widget.logic.openStudy(study.root)
    assert "run the study in step 3" in step.ui.resultsSummaryLabel.text and step.state == "empty"
    for name in ("loadImagesButton", "exportNiftiButton", "scoresButton", "applyButton", "loadButton"):
        button = getattr(step.ui, name)
        assert not button.enabled and "Waits for" in button.toolTip or name == "scoresButton"


def test_the_table_has_volumes_and_expected_dice(results):
    model = results.ui.resultsView.model()
    heads = [model.headerData(column, qt.Qt.Horizontal) for column in range(model.columnCount())]
    assert heads == ["Case", "Left atrium\n(ml)", "Appendage\n(ml)", "Expected\nDice", "Dice", "Role"]
    volume = f"{(labelArray() == 4).sum() * 0.002:.1f}"
    assert table(results)[0] == ["a", volume, "0.0", "0.50", "", "unlabeled"]
    assert results.section.text == "5. Results: 3 predicted"


def test_loading_all_and_some(results, waitFor):
    select(results, "b")
    results.ui.loadButton.click()
    waitFor(lambda: not results.busy)
    assert segmentations() == ["b prediction"]
    assert "1 of 1 done" in results.ui.workLabel.text
    select(results)
    results.ui.loadImagesButton.click()
    waitFor(lambda: not results.busy)
    assert segmentations() == ["a prediction", "b prediction", "c prediction"]
    volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    assert sorted(node.GetName() for node in volumes) == ["a", "b", "c"]


def test_many_cases_are_loaded_after_a_question(results, waitFor):
    study = results.session.study
    for number in range(8):
        addCase(study, f"m{number}", seed=10 + number)
        addResult(study, f"m{number}", kind="prediction")
    results.refresh()
    results.panel.questions = Answers(False, False, True)
    results.ui.loadButton.click()
    results.ui.loadImagesButton.click()
    assert not results.busy and segmentations() == []
    voxels = labelArray().size
    assert scene.memory_of(study, results.selected(), images=False) == 11 * voxels
    assert scene.memory_of(study, results.selected(), images=True) == 11 * voxels * 3
    asked = [words[0] for words in results.panel.questions.asked]
    assert asked[0] == "Load the predictions of 11 cases? They take about 0 MB of memory."
    assert asked[1] == "Load 11 cases with their images? They take about 0 MB of memory."
    results._choose([row.id for row in results.rows][:10])
    results.ui.loadButton.click()
    waitFor(lambda: not results.busy)
    assert len(segmentations()) == 10
    select(results)
    results.ui.loadButton.click()
    waitFor(lambda: not results.busy)
    assert len(segmentations()) == 11 and results.panel.questions.answers == []


def test_a_prediction_that_cannot_be_read_does_not_stop_the_others(results, waitFor):
    results.session.study.result("b", "prediction").label_path.write_bytes(b"torn")
    results.ui.loadButton.click()
    waitFor(lambda: not results.busy)
    assert segmentations() == ["a prediction", "c prediction"]
    assert "b.nrrd" in results.panel.ui.errorLabel.text and "2 of 3" in results.ui.workLabel.text


def test_loading_is_stopped_in_the_middle(results, waitFor):
    results.ui.loadButton.click()
    waitFor(lambda: segmentations())
    results.ui.cancelApplyButton.click()
    loaded = len(segmentations())
    assert not results.busy and 0 < loaded < 3
    assert results.ui.workLabel.text == f"Stopped after {loaded} of 3."


def test_a_scene_closed_while_loading(results, waitFor):
    results.ui.loadButton.click()
    slicer.mrmlScene.Clear(0)
    assert not results.busy and "scene was closed" in results.ui.workLabel.text
    assert segmentations() == []


def test_export_of_files(results, tmp_path, waitFor):
    results.panel.questions = Answers(
        tmp_path / "out", tmp_path / "out", tmp_path / "out" / "table.csv", None
    )
    results.ui.exportSegmentationsButton.click()
    waitFor(lambda: not results.busy)
    results.ui.exportNiftiButton.click()
    waitFor(lambda: not results.busy)
    results.ui.exportTableButton.click()
    results.ui.exportTableButton.click()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "a.seg.nrrd", "a_seg.nii.gz", "b.seg.nrrd", "b_seg.nii.gz", "c.seg.nrrd", "c_seg.nii.gz", "table.csv",
    ]  # fmt: skip
    assert segmentations() == []
    stored = sitk.ReadImage(str(tmp_path / "out" / "a_seg.nii.gz"))
    assert np.array_equal(sitk.GetArrayFromImage(stored), labelArray())
    assert not Geometry.of(stored).difference(geometry(GEOMETRIES["plain"]))
    node = slicer.util.loadSegmentation(str(tmp_path / "out" / "a.seg.nrrd"), {})
    assert node.GetSegmentation().GetSegment("SFR_9").GetName() == "Appendage"
    lines = (tmp_path / "out" / "table.csv").read_text().splitlines()
    assert lines[0] == "case,role,structure,value,volume_ml,expected_dice,dice"
    assert lines[1].startswith("a,unlabeled,Left atrium,4,") and len(lines) == 7


@pytest.mark.parametrize("name", ["a_seg.nii.gz", "a.seg.nrrd"])
def test_files_of_the_user_are_not_replaced_unasked(results, tmp_path, waitFor, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    button = results.ui.exportNiftiButton if "nii" in name else results.ui.exportSegmentationsButton
    results.panel.questions = Answers(out, False, out, True)
    button.click()
    assert not results.busy
    assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == "mine"
    text, _title, files = results.panel.questions.asked[-1]
    assert text == f"1 of the 3 files to write are in {out} already. Replace them?" and files == name
    button.click()
    waitFor(lambda: not results.busy)
    assert len(list(out.iterdir())) == 3 and (out / name).read_bytes() != b"mine"


def test_export_to_a_place_that_cannot_be_written(results, tmp_path, waitFor):
    (tmp_path / "file").write_text("")
    results.panel.questions = Answers(tmp_path / "file")
    results.ui.exportNiftiButton.click()
    waitFor(lambda: not results.busy)
    assert "0 of 3 done" in results.ui.workLabel.text and results.panel.ui.errorLabel.text


def test_scores_are_shown_while_they_belong_to_the_prediction(results):
    study = results.session.study
    assert "No predicted case has a reference" in results.ui.scoresButton.toolTip
    study.set_reference("a", image(labelArray(), GEOMETRIES["plain"]))
    scores = {"cases": {"a": {"structures": {"Left atrium": {"dice": 0.9}, "Appendage": {"dice": 0.7}}}}}
    study.reports_dir.mkdir(exist_ok=True)
    (study.reports_dir / "scores.json").write_text(json.dumps(scores))
    results.refresh()
    assert results.ui.scoresButton.enabled
    assert table(results)[0][-2] == "0.800" and table(results)[1][-2] == ""
    addResult(study, "a", kind="prediction")
    results.refresh()
    assert table(results)[0][-2] == ""


def test_scores_by_the_worker(results, waitFor, workerPython, monkeypatch):
    monkeypatch.setenv("SFR_PYTHON", workerPython)
    results.session.study.set_reference("a", image(labelArray(), GEOMETRIES["plain"]))
    results.refresh()
    results.ui.scoresButton.click()
    assert not results.ui.scoresButton.enabled
    waitFor(lambda: not results.busy, 60)
    assert results.panel.ui.errorLabel.text == ""
    assert table(results)[0][-2] == "1.000"


def test_the_report_is_opened(results, worker, waitFor, monkeypatch):
    worker()
    opened = []
    monkeypatch.setattr(results, "openPage", opened.append)
    results.ui.reportButton.click()
    waitFor(lambda: not results.busy)
    assert [path.name for path in opened] == ["report.html"]


def test_a_student_segments_a_volume_that_is_in_no_study(results, worker, waitFor, tmp_path):
    worker()
    model(results.session.study.root)
    volume = volumeNode(turned(), "follow-up")
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(turned((1, 1, 1), (3, 2, 1))))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    results.refresh()
    assert "choose one above" in results.ui.applyButton.toolTip
    results.ui.applySelector.setCurrentNode(volume)
    assert results.ui.applyButton.enabled
    results.ui.applyButton.click()
    assert results.ui.workLabel.text == "Segmenting follow-up…" and not results.ui.applyButton.enabled
    waitFor(lambda: not results.busy)
    assert segmentations() == ["follow-up prediction"]
    node = slicer.util.getNode("follow-up prediction")
    from SFRSegmentationLib.node_geometry import geometry_of
    from SFRSegmentationLib.segment_labels import label_of

    back = sitk.GetArrayFromImage(label_of(node, STRUCTURES, geometry_of(volume)))
    assert np.array_equal(back, (grey() > 250) * 4)
    assert results.application is None and "follow-up prediction" in results.ui.workLabel.text


def test_the_same_from_the_console(results, worker):
    worker()
    model(results.session.study.root)
    node = results.logic.segmentVolume(volumeNode(turned(), "follow-up"))
    assert node.GetName() == "follow-up prediction" and node.GetSegmentation().GetNumberOfSegments() == 2


def test_a_segmentation_can_be_cancelled(results, worker, waitFor):
    worker("slow")
    model(results.session.study.root)
    results.ui.applySelector.setCurrentNode(volumeNode(turned(), "x"))
    results.refresh()
    results.ui.applyButton.click()
    folder = results.application.folder
    assert folder.is_dir()
    results.ui.cancelApplyButton.click()
    waitFor(lambda: not results.busy)
    assert "cancelled" in results.ui.workLabel.text and not folder.exists() and segmentations() == []


def test_a_segmentation_that_fails_is_said(results, worker, waitFor):
    worker("broken")
    model(results.session.study.root)
    results.ui.applySelector.setCurrentNode(volumeNode(turned(), "x"))
    results.refresh()
    results.ui.applyButton.click()
    waitFor(lambda: not results.busy)
    assert results.ui.workLabel.text == "Segmenting x: failed."
    assert "student.safetensors is missing" in results.panel.ui.errorLabel.text


def test_the_volume_removed_while_it_is_segmented(results, worker, waitFor):
    worker()
    model(results.session.study.root)
    volume = volumeNode(turned(), "x")
    results.ui.applySelector.setCurrentNode(volume)
    results.refresh()
    results.ui.applyButton.click()
    slicer.mrmlScene.RemoveNode(volume)
    waitFor(lambda: not results.busy)
    assert segmentations() == ["x prediction"]


def test_a_result_never_comes_to_the_patient_of_another_scene(results, worker, waitFor):
    """The next scene gives its first volume the id that the segmented one had."""
    worker()
    model(results.session.study.root)
    volume = volumeNode(GEOMETRIES["plain"], "patient A")
    id = volume.GetID()
    results.ui.applySelector.setCurrentNode(volume)
    results.refresh()
    results.ui.applyButton.click()
    slicer.mrmlScene.Clear(0)
    other = volumeNode(GEOMETRIES["plain"], "patient B")
    assert other.GetID() == id
    waitFor(lambda: not results.busy)
    assert segmentations() == [] and "cancelled" in results.ui.workLabel.text


def test_a_result_belongs_to_its_own_volume(results, worker, waitFor):
    """Another volume may have got the id of one that was removed."""
    from SFRSegmentationLib.apply_student import start_apply

    worker("slow")
    model(results.session.study.root)
    volume = volumeNode(GEOMETRIES["plain"], "patient A")
    done = start_apply(results.session.study.models_dir / "sfr-mean_teacher", volume)
    assert done.volume is volume
    slicer.mrmlScene.RemoveNode(volume)
    volumeNode(GEOMETRIES["plain"], "patient B")
    assert done.volume is None
    done.chore.cancel()


def test_the_last_loaded_case_is_shown_alone(results, waitFor):
    results.ui.loadImagesButton.click()
    waitFor(lambda: not results.busy)
    last = results.rows[-1].id
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    shown = [node.GetName() for node in nodes if node.GetDisplayNode().GetVisibility()]
    assert len(nodes) == len(results.rows) > 1 and shown == [f"{last} prediction"]
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    backgrounds = {
        slicer.mrmlScene.GetNodeByID(node.GetBackgroundVolumeID()).GetName() for node in composites
    }
    assert backgrounds == {last} and f"{last} is shown" in results.ui.workLabel.text


def test_a_study_closed_while_loading(results, waitFor):
    results.ui.loadButton.click()
    results.logic.closeStudy()
    waitFor(lambda: not results.busy)
    assert results.rows == []


def test_loading_ends_with_the_study(results, tmp_path):
    """Both studies have cases of the same names."""
    other = cohortOf(tmp_path / "other", "prediction")
    results.ui.loadButton.click()
    results.logic.openStudy(other)
    assert not results.busy and results.ui.loadButton.enabled
    assert "stopped after 0 of 3, because the study was left" in results.ui.workLabel.text
    for _turn in range(20):
        slicer.app.processEvents()
    assert segmentations() == []


def test_a_report_of_the_study_that_was_left_is_not_opened(results, worker, waitFor, monkeypatch, tmp_path):
    opened = []
    worker()
    monkeypatch.setattr(type(results), "openPage", lambda self, path: opened.append(path))
    page = results.session.study.root / "reports" / "report.html"
    results.ui.reportButton.click()
    results.logic.openStudy(cohortOf(tmp_path / "other", "prediction"))
    assert not results.busy and "goes on for the study that was left" in results.ui.workLabel.text
    waitFor(page.exists)
    results.ui.reportButton.click()
    waitFor(lambda: not results.busy)
    assert [path.parents[1].name for path in opened] == ["other"]


def test_a_selection_stays_with_its_cases(results):
    select(results, "b")
    results.refresh()
    assert results.selected() == ["b"]
    addResult(results.session.study, "a", kind="prediction", dice=0.9)
    results.refresh()
    assert results.selected() == ["b"] and table(results)[0][3] == "0.90"
    results.session.study.result_paths("a", "prediction")[2].unlink()
    results.refresh()
    assert [row[0] for row in table(results)] == ["b", "c"] and results.selected() == ["b"]


def test_what_is_no_model_is_not_offered(results):
    root = results.session.study.root
    (root / "models" / "adapters").mkdir(parents=True)
    results.refresh()
    assert results.ui.studentCombo.count == 0
    assert "Waits for a trained model" in results.ui.applyButton.toolTip
    model(root)
    results.refresh()
    assert results.ui.studentCombo.currentText == "sfr-mean_teacher"


def test_predictions_in_order_of_the_study(results):
    study = Study.open(results.session.study.root)
    assert [row[0] for row in table(results)] == list(study.cases)
