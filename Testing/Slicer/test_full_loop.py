"""The whole loop on eight volumes with a real worker: by clicks in the panel, and by the README's script."""

import contextlib
import io
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from event_loop import LIMIT, EventLoop, measured
from panel_tools import Answers

import SFRCore.synthetic
from SFRCore.study import Study

ROOT = Path(__file__).resolve().parents[2]
REAL = ROOT.parent / "shared/data/hippocampus"
NAMES = [f"case_{number:02d}" for number in range(1, 9)]
STRUCTURES = {1: "Anterior lobe", 2: "Posterior lobe"}
SIZE = (32, 32, 16)
pytestmark = pytest.mark.timeout(900)  # whole trainings, which other jobs of the machine slow down


def real_cohort(folder):
    """Eight hippocampi, cut to SIZE around their labels so that a step takes a second: folders as invented
    ones have them.
    """
    images, labels = folder / "images", folder / "labels"
    images.mkdir(parents=True), labels.mkdir()
    for name, path in zip(NAMES, sorted((REAL / "images").glob("*.nii.gz")), strict=False):
        image, label = sitk.ReadImage(str(path)), sitk.ReadImage(str(REAL / "labels" / path.name))
        found = np.argwhere(sitk.GetArrayViewFromImage(label) > 0).mean(axis=0)[::-1]
        start = [
            int(np.clip(round(middle) - side // 2, 0, whole - side))
            for middle, side, whole in zip(found, SIZE, image.GetSize(), strict=True)
        ]
        for target, whole in ((images, image), (labels, label)):
            sitk.WriteImage(sitk.RegionOfInterest(whole, SIZE, start), str(target / f"{name}.nrrd"))
    return images, labels


@pytest.fixture(params=["invented", "hippocampus"])
def cohort(request, tmp_path):
    """Folders of eight images and of their labels, with the values 1 and 2."""
    if request.param == "invented":
        return SFRCore.synthetic.make_synthetic_cohort(tmp_path / "cohort", cases=8, size=SIZE, seed=3)
    if not REAL.is_dir():
        pytest.skip(f"needs the hippocampi of the Medical Segmentation Decathlon in {REAL}")
    return real_cohort(tmp_path / "cohort")


@pytest.fixture
def worker(workerPython, monkeypatch):
    monkeypatch.setenv("SFR_PYTHON", workerPython)


def drawn(volume, path):
    """A label file as a user has drawn it: a segmentation of the volume, its segments named."""
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{volume.GetName()} drawn")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for value, name in STRUCTURES.items():
        id = node.GetSegmentation().AddEmptySegment("", name)
        slicer.util.updateSegmentBinaryLabelmapFromArray((label == value).astype(np.uint8), node, id, volume)
    return node


def paint(view):
    """Draw a box of the first structure into the case under review; returns the voxels it has then."""
    segmentation = view.segmentation
    id = segmentation.GetSegmentation().GetNthSegmentID(0)
    voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, id, view.image).copy()
    voxels[5:9, 10:18, 12:20] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, segmentation, id, view.image)
    return voxels


@pytest.mark.usefixtures("ownHeap")
def test_the_loop_by_clicks(widget, worker, cohort, tmp_path):
    images, labels = cohort
    panel, logic = widget.panel, widget.logic
    cases, train, review, results = (panel.steps[key] for key in ("cases", "train", "review", "results"))
    loop = EventLoop()
    # Several seconds without load; another job of the machine may take the processors for a while.
    following = partial(loop.until, seconds=400, say=lambda: train.ui.jobLabel.text)

    # Load, and mark two as labeled.
    panel.open("cases")
    panel.questions = Answers(tmp_path / "study", "1=Anterior lobe, 2=Posterior lobe")
    (tmp_path / "study").mkdir()
    cases.ui.newStudyButton.click()
    for number, name in enumerate(NAMES):
        volume = slicer.util.loadVolume(str(images / f"{name}.nrrd"))
        cases.ui.volumeSelector.setCurrentNode(volume)
        cases.ui.segmentationSelector.setCurrentNode(
            drawn(volume, labels / f"{name}.nrrd") if number < 2 else None
        )
        cases.ui.addVolumeButton.click()
    roles = [case.role for case in logic.study.cases.values()]
    assert roles == ["labeled"] * 2 + ["unlabeled"] * 6, panel.ui.errorLabel.text

    # Run: a process of its own.
    panel.open("train")
    train.choices.choose("foundation", "tiny16")
    train.choices.choose("device", "cpu")
    train.ui.finetuneSteps.value, train.ui.retrainSteps.value = 4, 10
    train.ui.runButton.click()
    assert logic.session.busy, panel.ui.errorLabel.text
    following(lambda: len(review.queue) == 6 or not logic.session.busy)

    # Pseudo-labels appear while it runs, with doubt over the image; one is corrected and accepted meanwhile.
    panel.open("review")
    review.ui.nextCaseButton.click()
    view = review.view
    assert logic.session.busy and view.result.kind == "pseudo_label"
    shown = slicer.app.layoutManager().sliceWidget("Red").sliceLogic().GetSliceCompositeNode()
    assert shown.GetBackgroundVolumeID() == view.image.GetID()
    assert shown.GetForegroundVolumeID() == view.overlay.GetID() and shown.GetForegroundOpacity() > 0
    assert view.segmentation.GetDisplayNode().GetVisibility()
    corrected, voxels = view.id, paint(view)
    review.ui.acceptCorrectedButton.click()
    assert logic.session.busy, "the job ended before the label was accepted"
    case = logic.study.case(corrected)
    assert (case.role, case.label_origin) == ("labeled", "corrected"), panel.ui.errorLabel.text
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(logic.study.label_path(corrected))))
    assert np.array_equal(label == 1, voxels > 0)

    following(lambda: not logic.session.busy)
    assert logic.session.job.state == "finished", train.ui.jobLabel.text
    assert logic.study.case(corrected).label_origin == "corrected"

    # Retrain on three labels, from the previous weights.
    panel.open("review")
    review.ui.retrainButton.click()
    first = logic.session.job
    assert logic.session.busy, panel.ui.errorLabel.text
    following(lambda: not logic.session.busy)
    assert logic.session.job is first and first.state == "finished", train.ui.jobLabel.text
    assert first.progress.stages["retrain"].state == "done"
    assert first.progress.stages["retrain"].total == 2, "a fifth of the steps"

    measured(f"following two real runs held the event loop {loop} at most")
    assert loop.longest < LIMIT

    # Load the predictions: each lies on its image, voxel for voxel.
    panel.open("results")
    results.ui.loadButton.click()
    loop.until(lambda: not results.busy)
    nodes = {
        node.GetAttribute("SFR.CaseId"): node
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        if node.GetAttribute("SFR.Kind") == "prediction"
    }
    assert sorted(nodes) == NAMES[2:]
    for name, node in nodes.items():
        image = logic.loadImage(name)
        wanted = sitk.GetArrayFromImage(
            sitk.ReadImage(str(logic.study.result(name, "prediction").label_path))
        )
        for number, value in enumerate(STRUCTURES):
            id = node.GetSegmentation().GetNthSegmentID(number)
            found = slicer.util.arrayFromSegmentBinaryLabelmap(node, id, image)
            assert np.array_equal(found > 0, wanted == value), name


def script():
    """The script of the README's section on Slicer, as it stands there."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## In Slicer")[1].split("\n## ")[0]
    (found,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return found


def test_the_script_has_fifteen_lines():
    assert len([line for line in script().splitlines() if line.strip()]) <= 15


def test_the_loop_by_the_script_of_the_readme(widget, worker, cohort, monkeypatch):
    """Exactly that script; on hippocampi its line that invents a cohort gives these."""
    monkeypatch.setattr(SFRCore.synthetic, "make_synthetic_cohort", lambda *words, **more: cohort)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(script(), "README.md", "exec"), {"slicer": slicer})
    study = Study.open(widget.logic.study.root)
    labeled = [case for case in study.cases.values() if case.role == "labeled"]
    assert [case.id for case in labeled[:2]] == NAMES[:2] and len(study.cases) == 8
    (corrected,) = [case.id for case in labeled if case.label_origin == "corrected"]
    runs = sorted(path.name for path in (study.root / "runs").iterdir())
    assert len(runs) == 2
    for name in NAMES[2:]:
        assert (f"{name} prediction" in said.getvalue()) == (name != corrected)
        assert slicer.util.getNodes(f"{name} prediction")
