"""The Review step, by its real buttons: the queue, the views, corrections that are never lost, decisions."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from scene_tools import (
    GEOMETRIES,
    SHAPE,
    STRUCTURES,
    addCase,
    addResult,
    cohortOf,
    labelArray,
    openPanel,
    studyOf,
    turned,
    volumeNode,
)

from SFRCore.errors import DiskFull
from SFRCore.study import Study


class Answers:
    """Stands for the dialogs: what to answer, and what was asked."""

    def __init__(self, answer=True):
        self.answer, self.asked = answer, []

    def confirm(self, text, title, detail=""):
        self.asked.append(text)
        return self.answer


@pytest.fixture
def root(tmp_path):
    return cohortOf(tmp_path / "study")


@pytest.fixture(autouse=True)
def rescued(tmp_path, monkeypatch):
    """Where corrections go that no study takes: a folder that outlives Slicer."""
    monkeypatch.setenv("SFR_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "rescued"


@pytest.fixture
def widget():
    yield from openPanel()


@pytest.fixture
def review(widget, root):
    widget.logic.openStudy(root)
    widget.panel.questions = Answers()
    widget.panel.open("review")
    step = widget.panel.steps["review"]
    yield step
    step.leaveCase()


def rows(step):
    model = step.ui.queueView.model()
    return [[model.index(row, column).data() for column in range(4)] for row in range(model.rowCount())]


def choose(step, id):
    """Click the row of a case."""
    model = step.ui.queueView.model()
    row = [item.id for item in step.queue].index(id)
    step.ui.queueView.clicked.emit(model.index(row, 0))


def draw(step, k=2):
    """What a stroke of the editor does: it changes a segment."""
    node = step.view.segmentation
    array = slicer.util.arrayFromSegmentBinaryLabelmap(node, "SFR_4", step.view.image)
    array = (array > 0).astype(np.uint8)
    array[k, 7:9, 7:10] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, "SFR_4", step.view.image)


def drawn(k=2):
    label = labelArray()
    label[k, 7:9, 7:10] = 4
    return label


def labelIn(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def fillDisk(patch):
    """Nothing can be written into the study while the patch holds."""

    def full(*arguments, **options):
        raise DiskFull("The disk is full.", hint="Make room.")

    for module in ("review", "folder"):
        patch.setattr(f"SFRCore.study.{module}.write_volume", full)


def error(step):
    return step.panel.ui.errorLabel.text


def nodes():
    kinds = ("vtkMRMLScalarVolumeNode", "vtkMRMLSegmentationNode")
    return sorted(node.GetName() for kind in kinds for node in slicer.util.getNodesByClass(kind))


def removeByHand(node):
    """What Delete in the Data module does."""
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    hierarchy.RemoveItem(hierarchy.GetItemByDataNode(node), False)
    slicer.mrmlScene.RemoveNode(node)


def composites():
    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


def test_without_a_study_it_says_what_to_do(widget):
    step = widget.panel.steps["review"]
    widget.logic.closeStudy()
    assert "Open a study in step 2" in step.ui.summaryLabel.text
    assert step.state == "empty" and not step.ui.retrainButton.enabled
    assert "Waits for a study" in step.ui.retrainButton.toolTip


def test_before_a_run_it_says_what_to_do(widget, tmp_path):
    study = studyOf(tmp_path / "s")
    addCase(study, "a")
    widget.logic.openStudy(study.root)
    step = widget.panel.steps["review"]
    assert "run the study in step 3" in step.ui.summaryLabel.text and step.state == "empty"


def test_the_queue_has_the_least_certain_first(review):
    assert [row[:3] for row in rows(review)] == [
        ["a", "0.50", "pseudo-label"],
        ["b", "0.60", "pseudo-label"],
        ["c", "0.70", "pseudo-label"],
    ]
    assert "3 cases to look at" in review.ui.summaryLabel.text
    assert review.section.text == "4. Review: 3 to look at"


def test_choosing_a_case_shows_it_at_its_most_doubtful_slice(review):
    choose(review, "a")
    assert nodes() == ["a", "a (in review)", "a doubt"]
    image, overlay = review.view.image, review.view.overlay
    for composite in composites():
        assert composite.GetBackgroundVolumeID() == image.GetID()
        assert composite.GetForegroundVolumeID() == overlay.GetID()
        assert composite.GetForegroundOpacity() == pytest.approx(review.ui.opacitySlider.value)
    red = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
    assert red.GetSliceOffset() == pytest.approx(-7 + 2 * 4)
    assert "Doubtful slice 1 of 2 (slice 5)" in review.ui.sliceLabel.text
    assert review.ui.caseLabel.text == "a: pseudo-label, expected Dice Left atrium 0.50, Appendage 0.50"
    review.ui.nextSliceButton.click()
    assert red.GetSliceOffset() == pytest.approx(-7 + 2 * 1)
    review.ui.nextSliceButton.click()
    review.ui.previousSliceButton.click()
    assert "2 of 2" in review.ui.sliceLabel.text
    review.ui.mostDoubtfulButton.click()
    assert red.GetSliceOffset() == pytest.approx(-7 + 2 * 4)


def test_the_sliders_change_what_is_seen(review):
    choose(review, "a")
    review.ui.opacitySlider.value = 0.8
    assert {composite.GetForegroundOpacity() for composite in composites()} == {0.8}
    review.ui.thresholdSlider.value = 0.4
    assert review.view.overlay.GetDisplayNode().GetLowerThreshold() == pytest.approx(0.4)
    review.ui.showDoubtCheckBox.click()
    assert {composite.GetForegroundVolumeID() for composite in composites()} == {None}
    review.ui.showDoubtCheckBox.click()
    assert {composite.GetForegroundOpacity() for composite in composites()} == {0.8}


def test_another_case_takes_the_place_of_the_first(review):
    choose(review, "a")
    review.ui.nextCaseButton.click()
    assert nodes() == ["b", "b (in review)", "b doubt"]
    review.ui.previousCaseButton.click()
    review.ui.previousCaseButton.click()
    assert review.view.id == "c"


def test_accept_makes_a_label_and_goes_on(review, root):
    choose(review, "a")
    assert not review.ui.acceptCorrectedButton.enabled
    assert "Nothing was corrected yet" in review.ui.acceptCorrectedButton.toolTip
    review.ui.acceptButton.click()
    study = Study.open(root)
    assert study.case("a").role == "labeled" and study.label_path("a").name == "001-accepted.nrrd"
    assert np.array_equal(labelIn(study.label_path("a")), labelArray())
    assert review.view.id == "b" and [row[0] for row in rows(review)] == ["b", "c"]
    assert review.ui.retrainButton.enabled
    assert "1 accepted or corrected since the last training" in review.ui.retrainLabel.text


def test_a_correction_becomes_the_label_as_it_was_drawn(review, root):
    choose(review, "a")
    draw(review)
    assert review.ui.noteLabel.text == "You see your corrections."
    assert not review.ui.acceptButton.enabled and review.ui.acceptCorrectedButton.enabled
    review.ui.acceptCorrectedButton.click()
    study = Study.open(root)
    assert study.case("a").review == "corrected" and study.draft("a") is None
    assert np.array_equal(labelIn(study.label_path("a")), drawn())


def test_reject_and_bring_back(review, root):
    choose(review, "b")
    review.ui.rejectButton.click()
    assert Study.open(root).case("b").review == "rejected"
    assert review.view.id == "c" and [row[0] for row in rows(review)] == ["a", "c"]
    assert review.ui.bringBackButton.text == "Bring 1 rejected back"
    review.ui.bringBackButton.click()
    assert [row[0] for row in rows(review)] == ["a", "b", "c"]


def test_the_last_case_gives_the_views_back(review):
    mine = volumeNode(np.eye(4), "mine")
    slicer.util.setSliceViewerLayers(background=mine, foreground=None)
    for id in "abc":
        choose(review, id)
        review.ui.acceptButton.click()
    assert review.view is None and nodes() == ["mine"]
    assert {composite.GetBackgroundVolumeID() for composite in composites()} == {mine.GetID()}
    assert review.section.text == "4. Review: all reviewed"
    assert not review.ui.caseFrame.visible


def test_edits_are_kept_when_the_case_changes(review, root):
    choose(review, "a")
    draw(review)
    choose(review, "b")
    assert np.array_equal(labelIn(Study.open(root).draft("a")), drawn())
    assert rows(review)[0][3] == "begun, not accepted"
    choose(review, "a")
    assert review.view.edited and not review.view.unsaved
    assert "kept in the study" in review.ui.noteLabel.text
    review.ui.acceptCorrectedButton.click()
    assert np.array_equal(labelIn(Study.open(root).label_path("a")), drawn())


def test_edits_are_kept_when_the_module_is_left(review, root, widget):
    mine = volumeNode(np.eye(4), "mine")
    slicer.util.setSliceViewerLayers(background=mine, foreground=None)
    choose(review, "a")
    draw(review)
    widget.exit()
    assert Study.open(root).draft("a") is not None
    assert {composite.GetBackgroundVolumeID() for composite in composites()} == {mine.GetID()}
    assert not review.keys.shortcuts
    widget.enter()
    assert {c.GetBackgroundVolumeID() for c in composites()} == {review.view.image.GetID()}
    draw(review, k=3)
    widget.panel.open("cases")
    label = drawn()
    label[3, 7:9, 7:10] = 4
    assert np.array_equal(labelIn(Study.open(root).draft("a")), label)


def test_edits_are_kept_when_the_scene_is_closed(review, root):
    choose(review, "a")
    review.ui.correctButton.click()
    draw(review)
    slicer.mrmlScene.Clear(0)
    assert np.array_equal(labelIn(Study.open(root).draft("a")), drawn())
    assert review.view is None and nodes() == []
    assert review.panel.parameters is not None
    choose(review, "a")
    assert review.view.edited and "a (in review)" in nodes()


def test_edits_are_kept_when_the_segmentation_is_removed(review, root):
    choose(review, "a")
    review.ui.correctButton.click()
    draw(review)
    removeByHand(review.view.segmentation)
    assert np.array_equal(labelIn(Study.open(root).draft("a")), drawn())
    assert "removed from the scene" in review.ui.noteLabel.text
    assert not review.ui.acceptCorrectedButton.enabled and not review.ui.correctButton.checked
    choose(review, "a")
    assert review.view.edited and review.ui.acceptCorrectedButton.enabled
    assert nodes() == ["a", "a (in review)", "a doubt"]


def test_an_image_or_overlay_that_is_removed_is_borne(review):
    choose(review, "a")
    removeByHand(review.view.overlay)
    review.ui.opacitySlider.value = 0.1
    review.ui.thresholdSlider.value = 0.3
    review.ui.showDoubtCheckBox.click()
    review.ui.showDoubtCheckBox.click()
    removeByHand(review.view.image)
    assert "image was removed" in review.ui.noteLabel.text and not review.ui.acceptButton.enabled
    review.ui.nextSliceButton.click()
    choose(review, "a")
    assert nodes() == ["a", "a (in review)", "a doubt"] and review.ui.acceptButton.enabled
    assert {composite.GetBackgroundVolumeID() for composite in composites()} == {review.view.image.GetID()}
    removeByHand(review.view.image)
    choose(review, "b")
    assert nodes() == ["b", "b (in review)", "b doubt"]


def test_the_views_come_back_to_the_slice_that_the_panel_names(widget, tmp_path):
    """Also those of an oblique case, which are turned into its planes."""
    study = studyOf(tmp_path / "oblique")
    matrix = turned()
    addCase(study, "a", matrix)
    addResult(study, "a", matrix, doubts=[0, 0.3, 0, 0, 0.6, 0])
    widget.logic.openStudy(study.root)
    mine = volumeNode(np.eye(4), "mine")
    slicer.util.setSliceViewerLayers(background=mine, foreground=None, fit=True)
    red = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceNode()
    red.SetOrientation("Axial")

    def pose():
        return slicer.util.arrayFromVTKMatrix(red.GetSliceToRAS()).copy()

    step = widget.panel.steps["review"]
    before = pose()
    widget.panel.open("review")
    choose(step, "a")
    step.ui.nextSliceButton.click()
    shown = pose()
    widget.panel.open("results")
    assert np.allclose(pose(), before)
    red.SetSliceOffset(red.GetSliceOffset() + 3)
    widget.panel.open("review")
    assert "2 of 2 (slice 2)" in step.ui.sliceLabel.text
    assert np.allclose(pose(), shown)
    inside = np.linalg.inv(pose()) @ matrix @ [*(size / 2 for size in SHAPE[:0:-1]), 1, 1]
    assert inside[2] == pytest.approx(0, abs=1e-3)
    red.SetFieldOfView(5, 5, 1)
    widget.panel.open("review")
    assert red.GetFieldOfView()[0] == 5
    red.SetOrientation("Axial")
    step.leaveCase()


def test_an_image_that_the_user_asks_for_stays(review):
    """Show in Slicer, or Load with images, of the case under review."""
    choose(review, "a")
    image = review.view.image
    assert review.logic.loadImage("a") is image
    choose(review, "b")
    assert nodes() == ["a", "b", "b (in review)", "b doubt"]
    choose(review, "a")
    assert review.view.image is image
    review.leaveCase()
    assert nodes() == ["a"]


def test_an_image_that_the_user_drew_on_stays(review):
    choose(review, "a")
    image = review.view.image
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "my tumour")
    mine.SetReferenceImageGeometryParameterFromVolumeNode(image)
    choose(review, "b")
    assert mine.GetNodeReference(mine.GetReferenceImageGeometryReferenceRole()) is image


def test_loaded_results_are_hidden_while_a_case_is_reviewed(review):
    from SFRSegmentationLib.scene import load_result

    study = review.session.study
    *loaded, hidden = [load_result(study, id, "pseudo_label") for id in ("a", "b", "c")]
    hidden.SetDisplayVisibility(False)
    choose(review, "b")
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    assert [node for node in nodes if node.GetDisplayNode().GetVisibility()] == [review.view.segmentation]
    loaded[0].SetDisplayVisibility(True)
    review.ui.showDoubtCheckBox.toggle()
    assert loaded[0].GetDisplayNode().GetVisibility(), "what the user shows beside the case stays"
    review.ui.showDoubtCheckBox.toggle()
    review.leaveCase()
    review.layers.restore()
    assert all(node.GetDisplayNode().GetVisibility() for node in loaded)
    assert not hidden.GetDisplayNode().GetVisibility()


def test_the_views_keep_their_zoom(review):
    red = slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
    red.SetFieldOfView(300.0, 300.0, 1.0)
    red.SetXYZOrigin(12.0, -7.0, 0.0)
    before = red.GetFieldOfView(), red.GetXYZOrigin()
    choose(review, "a")
    assert red.GetFieldOfView() != before[0]
    review.leaveCase()
    review.layers.restore()
    assert (red.GetFieldOfView(), red.GetXYZOrigin()) == before


def test_a_straight_case_after_an_oblique_one_is_seen_straight(widget, tmp_path):
    study = studyOf(tmp_path / "two")
    for id, name, dice in (("tilted", "oblique", 0.3), ("straight", "plain", 0.6)):
        addCase(study, id, GEOMETRIES[name])
        addResult(study, id, GEOMETRIES[name], doubts=[0, 0, 0.6, 0, 0, 0], dice=dice)
    red = slicer.mrmlScene.GetNodeByID("vtkMRMLSliceNodeRed")
    red.SetOrientation("Axial")
    widget.logic.openStudy(study.root)
    widget.panel.open("review")
    step = widget.panel.steps["review"]
    for id, straight in (("tilted", False), ("straight", True)):
        step.showCase(id)
        axes = np.abs(slicer.util.arrayFromVTKMatrix(red.GetSliceToRAS())[:3, :3])
        assert np.allclose(axes, np.round(axes), atol=1e-6) == straight, (id, axes)
    assert red.GetOrientation() == "Axial"
    step.leaveCase()
    step.layers.restore()


def test_a_scene_saved_amid_a_correction_leaves_the_keys_alone(review, tmp_path):
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.SetOrientation("Axial")
    choose(review, "a")
    review.ui.correctButton.click()
    assert review.editor.active
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path)
    with zipfile.ZipFile(path) as archive:
        scene = next(archive.read(name) for name in archive.namelist() if name.endswith(".mrml")).decode()
    assert "<SegmentEditor" not in scene and "<SegmentationDisplay" not in scene
    review.leaveCase()
    # As scenes do that an earlier version saved.
    review.editor._make_node().SetActiveEffectName("Paint")
    slicer.util.loadScene(path)
    slicer.app.processEvents()
    assert not review.editor.active and all(key.enabled for key in review.keys.shortcuts.values())


def test_edits_are_kept_after_a_while(review, root, waitFor):
    choose(review, "a")
    review._autosave.setInterval(10)
    draw(review)
    waitFor(lambda: not review.view.unsaved)
    assert Study.open(root).draft("a") is not None
    draw(review, k=3)
    assert review.view.unsaved


def test_saving_that_failed_is_tried_again(review, root, monkeypatch, waitFor):
    choose(review, "a")
    review._autosave.setInterval(10)
    with monkeypatch.context() as patch:
        fillDisk(patch)
        draw(review)
        waitFor(lambda: error(review) == "The disk is full. Make room.")
        assert review.view.unsaved
    waitFor(lambda: not review.view.unsaved)
    assert np.array_equal(labelIn(Study.open(root).draft("a")), drawn())
    assert not review._autosave.active


def test_undo_and_redo_are_edits_too(review, root):
    """What the editor's undo does: it restores a state of vtkSegmentationHistory, which fires only
    SegmentModified.
    """
    choose(review, "a")
    history = slicer.vtkSegmentationHistory()
    history.SetSegmentation(review.view.segmentation.GetSegmentation())
    for restore, found in ((None, drawn()), ("Previous", labelArray()), ("Next", drawn())):
        if restore is None:
            history.SaveState()
            draw(review)
        else:
            assert getattr(history, f"Restore{restore}State")()
        assert review.view.unsaved and review._autosave.active
        assert review.keepEdits() and not review._autosave.active
        assert np.array_equal(labelIn(Study.open(root).draft("a")), found)
    assert history.RestorePreviousState()
    choose(review, "b")
    choose(review, "a")
    assert np.array_equal(sitk.GetArrayFromImage(review.view.label()), labelArray())


def test_a_name_a_color_or_a_surface_is_no_edit(review):
    choose(review, "a")
    node = review.view.segmentation
    segment = node.GetSegmentation().GetSegment("SFR_4")
    segment.SetName("my atrium")
    segment.SetColor(0, 1, 0)
    slicer.vtkSlicerSegmentationsModuleLogic.SetSegmentStatus(segment, 1)
    node.CreateClosedSurfaceRepresentation()
    assert not review.view.edited and not review.view.unsaved


def test_discarding_corrections(review, root):
    choose(review, "a")
    draw(review)
    review.panel.questions.answer = False
    review.ui.startOverButton.click()
    assert review.view.edited
    review.panel.questions.answer = True
    review.ui.startOverButton.click()
    assert not review.view.edited and Study.open(root).draft("a") is None
    assert np.array_equal(sitk.GetArrayFromImage(review.view.label()), labelArray())
    draw(review)
    assert review.view.edited


def test_a_correction_that_cannot_be_a_label_is_refused_and_kept(review, root):
    choose(review, "a")
    node = review.view.segmentation
    id = node.GetSegmentation().AddEmptySegment("", "Tumor")
    mask = np.zeros_like(labelArray())
    mask[2, 8, 8] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, id, review.view.image)
    review.ui.acceptCorrectedButton.click()
    assert "'Tumor' of 'a (in review)' is no structure of the study" in error(review)
    assert review.view.id == "a" and Study.open(root).case("a").label is None
    choose(review, "b")
    choose(review, "a")
    segmentation = review.view.segmentation.GetSegmentation()
    assert [segmentation.GetNthSegment(n).GetName() for n in range(3)][2] == "Value 10"


def test_a_renamed_segment_is_still_its_structure(review, root):
    choose(review, "a")
    review.view.segmentation.GetSegmentation().GetSegment("SFR_4").SetName("my atrium")
    draw(review)
    review.ui.acceptCorrectedButton.click()
    assert np.array_equal(labelIn(Study.open(root).label_path("a")), drawn())


def test_a_read_only_study_is_shown_and_edits_stay(widget, root):
    widget.logic._open(Study.open(root, readonly=True))
    step = widget.panel.steps["review"]
    widget.panel.open("review")
    choose(step, "a")
    assert not step.ui.acceptButton.enabled and "read-only" in step.ui.acceptButton.toolTip
    draw(step)
    assert not step.ui.acceptCorrectedButton.enabled
    choose(step, "b")
    assert "read-only" in error(step) and "a corrections (not saved)" in error(step)
    assert "a corrections (not saved)" in nodes()
    step.leaveCase()


def test_a_module_unloaded_over_a_read_only_study_loses_nothing(widget, root, rescued, caplog):
    """As when Slicer quits: the scene goes next."""
    widget.logic._open(Study.open(root, readonly=True))
    step = widget.panel.steps["review"]
    widget.panel.open("review")
    choose(step, "a")
    draw(step)
    slicer.util.reloadScriptedModule("SFRSegmentation")
    (path,) = rescued.iterdir()
    assert path.name.startswith("study-a-") and np.array_equal(labelIn(path), drawn())
    assert str(path) in caplog.text
    assert nodes() == []


def test_a_scene_closed_over_a_read_only_study_loses_nothing(widget, root, rescued):
    widget.logic._open(Study.open(root, readonly=True))
    step = widget.panel.steps["review"]
    widget.panel.open("review")
    choose(step, "a")
    draw(step)
    slicer.mrmlScene.Clear(0)
    path = error(step).partition("saved as ")[2].rstrip(".")
    assert Path(path).parent == rescued
    assert np.array_equal(labelIn(path), drawn())


def test_a_segmentation_removed_over_a_read_only_study_is_rescued(widget, root, rescued):
    widget.logic._open(Study.open(root, readonly=True))
    step = widget.panel.steps["review"]
    widget.panel.open("review")
    choose(step, "a")
    draw(step)
    removeByHand(step.view.segmentation)
    assert "read-only" in error(step)
    path = error(step).partition("were kept in ")[2].rstrip(".")
    assert Path(path).parent == rescued
    assert np.array_equal(labelIn(path), drawn())
    step.leaveCase()


def test_a_full_disk_is_said_and_the_edit_kept(review, root, monkeypatch):
    choose(review, "a")
    draw(review)
    with monkeypatch.context() as patch:
        fillDisk(patch)
        review.ui.acceptCorrectedButton.click()
        assert error(review) == "The disk is full. Make room."
        assert review.view.id == "a" and review.view.edited and review.view.unsaved
        assert Study.open(root).case("a").label is None
        choose(review, "b")
        assert "a corrections (not saved)" in nodes()
        choose(review, "c")
        choose(review, "a")
    assert "a corrections (not saved)" in nodes()


def test_two_sessions_on_one_study(review, root):
    """Another Slicer corrects the same case: both corrections stay, each as a file of its own."""
    choose(review, "a")
    draw(review)
    other = Study.open(root)
    theirs = labelArray()
    theirs[4, 0:3, 0:3] = 9
    other.save_draft("a", _like(review, theirs))
    choose(review, "b")
    assert "Somebody else corrected this case" in error(review)
    kept = sorted((root / "drafts" / "a").iterdir())
    assert len(kept) == 2
    assert {labelIn(path).tobytes() for path in kept} == {
        theirs.astype(np.uint16).tobytes(),
        drawn().astype(np.uint16).tobytes(),
    }
    choose(review, "a")
    other.accept_label("a", _like(review, theirs), "corrected")
    review.logic.reloadStudy()
    assert "Somebody has decided on this case" in review.ui.noteLabel.text
    review.ui.acceptCorrectedButton.click()
    history = Study.open(root).history("a")
    assert [version.path.name for version in history] == ["001-corrected.nrrd", "002-corrected.nrrd"]
    assert np.array_equal(labelIn(history[0].path), theirs)
    assert np.array_equal(labelIn(history[1].path), drawn())


def test_a_draft_of_somebody_else_survives_an_acceptance(review, root):
    choose(review, "a")
    draw(review)
    theirs = labelArray()
    theirs[4, 0:3, 0:3] = 9
    Study.open(root).save_draft("a", _like(review, theirs))
    review.view.unsaved = False
    review.ui.acceptCorrectedButton.click()
    kept = [path for path in (root / "drafts" / "a").iterdir() if path.name != "draft.nrrd"]
    assert len(kept) == 1 and np.array_equal(labelIn(kept[0]), theirs)


def test_a_result_that_came_meanwhile_is_not_accepted_unseen(review, root):
    choose(review, "a")
    new = labelArray()
    new[5] = 9
    addResult(Study.open(root), "a", kind="prediction", label=new)
    review.ui.acceptButton.click()
    assert "segmented case a again" in error(review)
    assert Study.open(root).case("a").label is None
    choose(review, "b")
    choose(review, "a")
    review.ui.acceptButton.click()
    assert np.array_equal(labelIn(Study.open(root).label_path("a")), new)


def test_keys_do_what_the_buttons_do_and_rest_while_drawing(review, root):
    choose(review, "a")
    keys = review.keys.shortcuts
    assert {key.key.toString() for key in keys.values()} == {f"Ctrl+Shift+{k}" for k in "AEXNPJO"}
    keys["nextCase"].activated.emit()
    assert review.view.id == "b"
    keys["previousCase"].activated.emit()
    keys["overlay"].activated.emit()
    assert not review.ui.showDoubtCheckBox.checked
    keys["overlay"].activated.emit()
    keys["acceptCorrected"].activated.emit()
    assert error(review) == "Nothing was corrected yet."
    review.ui.correctButton.click()
    assert review.editor.active and not any(key.enabled for key in keys.values())
    review.ui.correctButton.click()
    assert not review.editor.active and all(key.enabled for key in keys.values())
    keys["accept"].activated.emit()
    assert Study.open(root).case("a").label_origin == "accepted"
    keys["reject"].activated.emit()
    assert Study.open(root).case("b").review == "rejected"
    review.panel.open("cases")
    assert review.keys.shortcuts == {}


def test_the_editor_is_ready_to_paint_the_least_certain_structure(review, root):
    study = Study.open(root)
    addResult(study, "a", expected_dice_by_structure={"4": 0.9, "9": 0.4}, dice=0.4)
    choose(review, "a")
    review.ui.correctButton.click()
    node = review.editor.widget.mrmlSegmentEditorNode()
    assert node.GetSegmentationNode() is review.view.segmentation
    assert node.GetSourceVolumeNode() is review.view.image
    assert node.GetSelectedSegmentID() == "SFR_9" and node.GetActiveEffectName() == "Paint"
    node.SetActiveEffectName("Erase")
    review.ui.correctButton.click()
    review.ui.correctButton.click()
    assert node.GetActiveEffectName() == "Erase"
    review.ui.nextCaseButton.click()
    assert node.GetSegmentationNode() is None and not review.ui.correctButton.checked


def test_a_label_can_be_accepted_while_a_job_runs(review, root):
    from SFRCore.runtime.worker import Worker

    with Worker(root, "run", {}):
        choose(review, "a")
        review.ui.acceptButton.click()
        assert Study.open(root).case("a").role == "labeled"
        review.refresh()


def test_retrain_starts_a_run(review, root, monkeypatch):
    started = []
    monkeypatch.setattr(review.logic, "start", lambda command, **options: started.append(command) or True)
    choose(review, "a")
    review.ui.acceptButton.click()
    review.ui.retrainButton.click()
    assert started == ["run"] and review.panel.openKey == "train"


def test_a_study_closed_under_the_review(review, root):
    choose(review, "a")
    draw(review)
    review.logic.closeStudy()
    assert review.view is None and nodes() == []
    assert Study.open(root).draft("a") is not None


def test_a_result_that_cannot_be_read_is_said(review, root):
    study = Study.open(root)
    study.result("a", "pseudo_label").confidence_path.write_bytes(b"torn")
    choose(review, "a")
    assert "a.nrrd" in error(review) and review.view is None and nodes() == []


def test_a_damaged_draft_is_said_and_kept(review, root):
    draft = root / "drafts" / "a" / "draft.nrrd"
    os.makedirs(draft.parent)
    draft.write_bytes(b"torn")
    choose(review, "a")
    assert "cannot be read" in review.ui.noteLabel.text and draft.read_bytes() == b"torn"
    assert not review.view.edited


def test_the_panel_reloaded_with_a_case_open(review, widget, root):
    choose(review, "a")
    draw(review)
    slicer.util.reloadScriptedModule("SFRSegmentation")
    assert Study.open(root).draft("a") is not None
    assert [name for name in nodes() if "review" in name or "doubt" in name] == []


def _like(step, array):
    return step.view.geometry.apply(sitk.GetImageFromArray(array.astype(np.uint16)))


def test_structures_have_names_and_values(review):
    choose(review, "a")
    segmentation = review.view.segmentation.GetSegmentation()
    for structure in STRUCTURES:
        assert segmentation.GetSegment(f"SFR_{structure.value}").GetName() == structure.name
