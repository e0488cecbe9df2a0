"""Results of a study as nodes: exact, named, coloured; doubt as an overlay; views moved and given back."""

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
    geometry,
    labelArray,
    studyOf,
    turned,
    volumeNode,
)
from SFRSegmentationLib import doubt, scene, study_nodes
from SFRSegmentationLib.doubtful_slices import (
    DoubtfulSlice,
    doubtful_slices,
    doubtful_spot,
    jump_to,
)
from SFRSegmentationLib.segment_labels import fingerprint
from SFRSegmentationLib.slice_layers import SliceLayers, set_overlay_opacity, show_layers

from SFRCore.errors import InputError


@pytest.fixture
def study(tmp_path):
    return studyOf(tmp_path / "study")


def composites():
    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


def sliceNode(name):
    return slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode()


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("kind", ["prediction", "pseudo_label"])
def test_a_result_lies_on_its_image_voxel_for_voxel(study, name, kind):
    addCase(study, "a", GEOMETRIES[name])
    addResult(study, "a", GEOMETRIES[name], kind)
    volume = scene.load_image(study, "a")
    node = scene.load_result(study, "a", kind)
    for structure in STRUCTURES:
        id = f"SFR_{structure.value}"
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, id, volume)
        assert np.array_equal(mask > 0, labelArray() == structure.value)
        segment = node.GetSegmentation().GetSegment(id)
        assert segment.GetName() == structure.name and segment.GetLabelValue() == structure.value
        assert np.allclose(np.array(segment.GetColor()) * 255, structure.color, atol=0.01)
    assert node.GetName() == ("a prediction" if kind == "prediction" else "a pseudo-label")


def test_the_review_state_is_the_status_of_the_segments(study):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    for id, wanted in (("a", logic.NotStarted), ("b", logic.Completed), ("c", logic.Flagged)):
        addCase(study, id, seed=ord(id))
        addResult(study, id)
        if id == "b":
            study.accept(id)
        if id == "c":
            study.reject(id)
        segment = scene.load_result(study, id, "pseudo_label").GetSegmentation().GetNthSegment(0)
        assert logic.GetSegmentStatus(segment) == wanted


def test_a_result_loaded_again_replaces_the_first(study):
    addCase(study, "a")
    addResult(study, "a", kind="prediction")
    scene.load_result(study, "a")
    other = labelArray()
    other[2] = 9
    addResult(study, "a", kind="prediction", label=other)
    node = scene.load_result(study, "a")
    assert slicer.util.getNodesByClass("vtkMRMLSegmentationNode") == [node]
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationDisplayNode")) == 1
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "SFR_9", scene.load_image(study, "a"))
    assert np.array_equal(mask > 0, other == 9)
    addCase(study, "b", seed=1)
    with pytest.raises(InputError, match="Case b has no prediction yet"):
        scene.load_result(study, "b")


def test_a_result_that_was_corrected_is_kept_when_it_is_loaded_again(study):
    addCase(study, "a")
    addResult(study, "a", kind="prediction")
    volume = scene.load_image(study, "a")
    for number in range(2):
        node = scene.load_result(study, "a")
        mask = (labelArray() == 9).astype(np.uint8)
        mask[2, number, :4] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "SFR_9", volume)
    fresh = scene.load_result(study, "a")
    kept = [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if node is not fresh]
    assert fresh.GetName() == "a prediction" and study_nodes.is_marked(fresh, study, "a", "prediction")
    assert [node.GetName() for node in kept] == ["a prediction (edited)", "a prediction (edited)_1"]
    assert not any(study_nodes.is_marked(node, study, None, "prediction") for node in kept)
    for number, node in enumerate(kept):
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "SFR_9", volume)
        assert mask[2, number, :4].all()
    assert not slicer.util.arrayFromSegmentBinaryLabelmap(fresh, "SFR_9", volume)[2, :2].any()


def test_what_changes_no_voxel_is_no_correction(study):
    addCase(study, "a", turned())
    addResult(study, "a", turned(), kind="prediction")
    volume = scene.load_image(study, "a")
    node = scene.load_result(study, "a")
    segmentation = node.GetSegmentation()
    segmentation.GetSegment("SFR_4").SetName("my atrium")
    segmentation.GetSegment("SFR_4").SetColor(0, 1, 0)
    node.CreateClosedSurfaceRepresentation()
    segmentation.SeparateSegmentLabelmap("SFR_9")
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "SFR_9", volume)
    slicer.util.updateSegmentBinaryLabelmapFromArray((mask > 0).astype(np.uint8), node, "SFR_9", volume)
    scene.load_result(study, "a")
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 1


def test_a_prediction_in_a_scene_that_was_saved_is_still_known(study, tmp_path):
    addCase(study, "a", turned())
    addResult(study, "a", turned(), kind="prediction")
    node = scene.load_result(study, "a")
    before = fingerprint(node)
    path = tmp_path / "x.seg.nrrd"
    slicer.util.saveNode(node, str(path), {})
    assert fingerprint(slicer.util.loadSegmentation(str(path), {})) == before


def test_a_structure_that_was_not_found_has_an_empty_segment(study):
    addCase(study, "a")
    addResult(study, "a", label=np.where(labelArray() == 4, 4, 0).astype(np.uint8))
    node = scene.load_result(study, "a", "pseudo_label")
    assert node.GetSegmentation().GetNumberOfSegments() == 2
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "SFR_9", scene.load_image(study, "a"))
    assert mask.sum() == 0


def test_everything_of_a_study_is_in_one_folder(study):
    for id in "ab":
        addCase(study, id, seed=ord(id))
        addResult(study, id, kind="prediction")
        scene.load_image(study, id)
        scene.load_result(study, id)
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode()
    folders = slicer.util.getSubjectHierarchyItemChildren(hierarchy.GetSceneItemID())
    assert [hierarchy.GetItemName(item) for item in folders] == ["SFR: study"]
    inside = slicer.util.getSubjectHierarchyItemChildren(folders[0])
    assert {hierarchy.GetItemDataNode(item).GetName() for item in inside} == {
        "a", "b", "a prediction", "b prediction",
    }  # fmt: skip


def test_doubt_is_one_minus_confidence_and_its_scale_ends_where_doubt_does(study):
    addCase(study, "a", turned())
    result = addResult(study, "a", turned(), doubts=[0, 0.2, 0, 0.6, 0, 0])
    _label, confidence = scene.maps_of(result)
    node = doubt.show_doubt(confidence, "a doubt", structures=2, threshold=0.1)
    expected = 1 - sitk.GetArrayFromImage(confidence) / 255
    assert np.allclose(slicer.util.arrayFromVolume(node), expected, atol=1e-6)
    assert not scene.geometry_of(node).difference(geometry(turned()))
    display = node.GetDisplayNode()
    assert (display.GetWindowLevelMin(), display.GetWindowLevelMax()) == pytest.approx((0, 2 / 3))
    assert doubt.largest_doubt(1) == 0.5
    assert display.GetApplyThreshold() and display.GetLowerThreshold() == pytest.approx(0.1)
    assert not node.GetSaveWithScene() and not display.GetInterpolate()
    doubt.set_threshold(node, 0.5)
    assert display.GetLowerThreshold() == pytest.approx(0.5)
    doubt.show_legend(node, "Doubt")
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    assert legend.GetTitleText() == "Doubt" and legend.GetVisibility()
    doubt.set_legend_visible(node, False)
    assert not legend.GetVisibility()
    again = doubt.show_doubt(confidence, "again", structures=2, threshold=0.1)
    assert again.GetDisplayNode().GetColorNode() is display.GetColorNode()
    study_nodes.remove(node)
    study_nodes.remove(again)
    assert slicer.util.getNodesByClass("vtkMRMLColorLegendDisplayNode") == []
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeDisplayNode") == []


def test_layers_are_given_back():
    mine, overlay = volumeNode(turned(), "mine"), volumeNode(turned(), "pet", seed=1)
    slicer.util.setSliceViewerLayers(background=mine, foreground=overlay, label=None, foregroundOpacity=0.3)
    sliceNode("Red").SetOrientation("Coronal")
    before = [_view(composite) for composite in composites()]
    turnedBefore = slicer.util.arrayFromVTKMatrix(sliceNode("Red").GetSliceToRAS()).copy()
    layers = SliceLayers()
    layers.remember()
    case, case_doubt = volumeNode(turned(), "case", seed=2), volumeNode(turned(), "doubt", seed=3)
    show_layers(case, case_doubt, 0.6, fit=True)
    layers.remember()
    assert {composite.GetBackgroundVolumeID() for composite in composites()} == {case.GetID()}
    assert {composite.GetForegroundOpacity() for composite in composites()} == {0.6}
    set_overlay_opacity(case_doubt, 0.2)
    assert {composite.GetForegroundOpacity() for composite in composites()} == {0.2}
    assert not np.allclose(
        slicer.util.arrayFromVTKMatrix(sliceNode("Red").GetSliceToRAS())[:3, :3], turnedBefore[:3, :3]
    )
    layers.restore()
    assert [_view(composite) for composite in composites()] == before
    assert np.allclose(slicer.util.arrayFromVTKMatrix(sliceNode("Red").GetSliceToRAS()), turnedBefore)
    sliceNode("Red").SetOrientation("Axial")
    assert not layers.remembered


def test_layers_that_are_gone_stay_empty():
    mine = volumeNode(turned(), "mine")
    slicer.util.setSliceViewerLayers(background=mine, foreground=None)
    layers = SliceLayers()
    layers.remember()
    slicer.mrmlScene.RemoveNode(mine)
    layers.restore()
    assert {composite.GetBackgroundVolumeID() for composite in composites()} == {None}


def test_the_views_are_turned_only_for_an_oblique_case():
    show_layers(volumeNode(GEOMETRIES["plain"]), None, 0.5, fit=True)
    axes = slicer.util.arrayFromVTKMatrix(sliceNode("Red").GetSliceToRAS())[:3, :3]
    assert np.allclose(np.abs(axes), np.eye(3), atol=1e-9)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_views_go_to_a_voxel(name):
    volume = volumeNode(GEOMETRIES[name])
    show_layers(volume, None, 0.5, fit=True)
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.RotateToVolumePlane(volume)
    index = (3, 6, 2)
    jump_to(geometry(GEOMETRIES[name]), index)
    ras = (GEOMETRIES[name] @ [*index, 1])[:3]
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        matrix = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
        assert (np.linalg.inv(matrix) @ [*ras, 1])[2] == pytest.approx(0, abs=1e-3)


def test_a_jump_moves_no_picture_within_its_view():
    volume = volumeNode(GEOMETRIES["plain"])
    show_layers(volume, None, 0.5, fit=True)
    node = sliceNode("Red")
    zoom = node.GetFieldOfView()
    before = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).copy()
    plain = geometry(GEOMETRIES["plain"])
    jump_to(plain, [*((size - 1) / 2 for size in plain.size[:2]), 4])
    after = slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS())
    assert node.GetFieldOfView() == zoom
    assert np.allclose(after[:2, 3], before[:2, 3])
    assert after[2, 3] == pytest.approx((GEOMETRIES["plain"] @ [0, 0, 4, 1])[2])


def test_doubtful_slices_are_peaks_the_largest_first(study):
    addCase(study, "a", shape=(20, 9, 11))
    doubts = [0.0] * 20
    doubts[4:7] = [0.5, 0.6, 0.5]
    doubts[15:17] = [0.3, 0.25]
    doubts[10] = 0.05
    result = addResult(study, "a", label=np.zeros((20, 9, 11), np.uint8), doubts=doubts)
    places = doubtful_slices(result, geometry(GEOMETRIES["plain"], (20, 9, 11)))
    assert [(place.axis, place.index) for place in places] == [(2, 5), (2, 15)]


def test_a_case_without_doubt_has_one_slice_to_look_at(study):
    addCase(study, "a")
    result = addResult(study, "a")
    assert [place.index for place in doubtful_slices(result, geometry(GEOMETRIES["plain"]))] == [0]
    odd = addResult(study, "a", slices=[], doubtful_slice=99)
    assert [place.index for place in doubtful_slices(odd, geometry(GEOMETRIES["plain"]))] == [SHAPE[0] - 1]


def test_the_most_doubtful_spot_of_a_slice(study):
    addCase(study, "a")
    result = addResult(study, "a", doubts=[0, 0, 0.5, 0, 0, 0])
    label, confidence = scene.maps_of(result)
    i, j, k = doubtful_spot(confidence, label, DoubtfulSlice(2, 2, 1.0))
    assert k == 2 and 3 <= i <= 5 and 4 <= j <= 5


def _view(composite):
    return (
        composite.GetBackgroundVolumeID(),
        composite.GetForegroundVolumeID(),
        composite.GetLabelVolumeID(),
        composite.GetForegroundOpacity(),
        composite.GetLabelOpacity(),
    )
