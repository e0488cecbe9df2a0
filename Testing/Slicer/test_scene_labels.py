"""Segmentations and label maps as labels of a case: matched, exact, or refused with a reason."""

import itertools
import time

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from event_loop import measured
from scene_tools import (
    GEOMETRIES,
    SHAPE,
    STRUCTURES,
    addCase,
    geometry,
    image,
    labelArray,
    segmentationNode,
    studyOf,
    turned,
    volumeNode,
)
from SFRSegmentationLib import scene
from SFRSegmentationLib.segment_labels import _place, label_of
from SFRSegmentationLib.segment_matching import match_segments
from SFRSegmentationLib.segmentation_nodes import show_label
from SFRSegmentationLib.terminology import code_of, entry_of, entry_on

from SFRCore.errors import InputError
from SFRCore.study import Structure

NAMES = {4: "Left atrium", 9: "Appendage"}


@pytest.fixture
def study(tmp_path):
    return studyOf(tmp_path / "study")


def accepted(study, id):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(study.label_path(id))))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_drawn_segmentation_becomes_the_label(study, name):
    volume = volumeNode(GEOMETRIES[name])
    node = segmentationNode(volume, labelArray(), {9: " appendage ", 4: "LEFT_ATRIUM"})
    before = {n.GetID() for n in slicer.util.getNodesByClass("vtkMRMLNode")}
    case = scene.add_volume(study, volume, node)
    assert case.role == "labeled" and case.label_origin == "expert"
    assert np.array_equal(accepted(study, case.id), labelArray())
    stored = sitk.ReadImage(str(study.label_path(case.id)))
    assert not geometry(GEOMETRIES[name]).difference(scene.geometry_of(volume))
    assert sitk.GetArrayFromImage(stored).dtype == np.uint16
    assert {n.GetID() for n in slicer.util.getNodesByClass("vtkMRMLNode")} == before


@pytest.mark.parametrize("name", GEOMETRIES)
def test_values_come_back_as_they_were(name):
    node = show_label(image(labelArray(), GEOMETRIES[name]), STRUCTURES, "x")
    back = label_of(node, STRUCTURES, geometry(GEOMETRIES[name]))
    assert np.array_equal(sitk.GetArrayFromImage(back), labelArray())
    again = slicer.util.arrayFromSegmentBinaryLabelmap(node, "SFR_9", volumeNode(GEOMETRIES[name]))
    assert np.array_equal(again > 0, labelArray() == 9)


def test_a_grid_with_other_axes_is_placed_voxel_for_voxel():
    """The same voxels, stored in another order and direction."""
    array = labelArray()
    matrix = turned()
    swap = np.array([[0, 0, -1, 10], [1, 0, 0, 0], [0, -1, 0, 5], [0, 0, 0, 1.0]])
    stored = np.zeros((SHAPE[2], SHAPE[0], SHAPE[1]), np.uint8)
    for k, j, i in np.argwhere(array):
        a, b, c, _one = np.round(np.linalg.inv(swap) @ [i, j, k, 1]).astype(int)
        stored[c, b, a] = array[k, j, i]
    node = show_label(image(stored, matrix @ swap), STRUCTURES, "x")
    back = label_of(node, STRUCTURES, geometry(matrix))
    assert np.array_equal(sitk.GetArrayFromImage(back), array)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_voxels_are_placed_one_by_one_and_those_outside_counted(order):
    """Every order and direction of axes, inside, across the border and beside: against a list of voxels."""
    random = np.random.default_rng(0)
    for signs, start in itertools.product(
        itertools.product((1, -1), repeat=3), ((3, 6, 5), (-20, 5, 5), (30, 0, 0), (12, 11, 10), (0, 0, 0))
    ):
        turn = np.zeros((3, 3), int)
        turn[range(3), order] = signs
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn, start
        voxels, first = random.random((7, 8, 9)) > 0.5, [1, -2, 0]
        places = (np.argwhere(voxels)[:, ::-1] + first) @ turn.T + start
        inside = np.all((places >= 0) & (places < [12, 11, 10]), axis=1)
        expected = np.zeros((10, 11, 12), bool)
        expected[tuple(places[inside].T[::-1])] = True
        mask = np.zeros_like(expected)
        _place(voxels, first, matrix, mask, "'x'", True)
        assert np.array_equal(mask, expected)
        if not inside.all():
            with pytest.raises(InputError, match=f"{(~inside).sum()} voxels of the segment 'x' lie outside"):
                _place(voxels, first, matrix, mask, "'x'", False)


def test_a_sheared_grid_is_no_turn():
    sheared = np.eye(4)
    sheared[0, 1] = 1
    with pytest.raises(InputError, match="does not lie on the voxels"):
        _place(np.ones((2, 2, 2), bool), [0, 0, 0], sheared, np.zeros((5, 5, 5), bool), "'x'", False)


def test_a_large_structure_is_a_label_at_once():
    """Autosave does this while the user paints: 8 million voxels of a whole-body scan."""
    mask = np.zeros((200, 512, 512), bool)
    box = np.ones((120, 270, 250), bool)
    begin = time.process_time()
    _place(box, [130, 130, 40], np.eye(4), mask, "'x'", False)
    seconds = time.process_time() - begin
    measured(f"8.1 million voxels of a segment placed in {seconds:.2f} s")
    assert mask.sum() == box.size and seconds < 1.0


def test_a_segmentation_of_another_grid_is_refused_or_resampled(study):
    addCase(study, "a", turned())
    fine = turned(spacing=(0.35, 0.45, 1.25))
    array = labelArray().repeat(2, 0).repeat(2, 1).repeat(2, 2)
    offset = np.eye(4)
    offset[:3, 3] = -0.5, -0.5, -0.5
    node = show_label(image(array, fine @ offset), STRUCTURES, "fine")
    with pytest.raises(InputError, match="'Left atrium' does not lie on the voxels of the image") as raised:
        scene.set_label(study, "a", node)
    assert raised.value.code == "other_grid" and study.case("a").label is None
    scene.set_label(study, "a", node, resample=True)
    same = (accepted(study, "a") == labelArray()).mean()
    assert same > 0.98 and (accepted(study, "a") == 9).sum() > 5


def test_voxels_outside_the_image_are_said(study):
    addCase(study, "a", turned())
    shift = np.eye(4)
    shift[:3, 3] = 1, 0, 0
    node = show_label(image(labelArray(), turned() @ shift), STRUCTURES, "shifted")
    with pytest.raises(InputError, match="1 voxels of the segment 'Appendage' lie outside the image"):
        scene.set_label(study, "a", node)
    scene.set_label(study, "a", node, resample=True)
    assert np.array_equal(accepted(study, "a")[:, :, 1:], labelArray()[:, :, :-1])


def test_overlapping_segments_are_refused():
    volume = volumeNode(turned())
    node = segmentationNode(volume, labelArray(), NAMES, overlapping=True)
    with pytest.raises(InputError, match="belong to Left atrium and to Appendage") as raised:
        label_of(node, STRUCTURES, geometry(turned()))
    assert str((labelArray() > 0).sum()) in raised.value.message


def test_a_drawn_segmentation_under_another_transform_is_refused(study):
    volume = volumeNode(turned())
    node = segmentationNode(volume, labelArray(), NAMES)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[0, 3] = 0.4
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(InputError, match="does not lie on the voxels"):
        scene.add_volume(study, volume, node)
    assert not study.cases


def test_segments_that_match_nothing_are_named(study):
    volume = volumeNode(turned())
    node = segmentationNode(volume, labelArray(), {4: "Leber", 9: "Milz"})
    with pytest.raises(InputError, match=r"\(Left atrium, Appendage\): it has 'Leber', 'Milz'"):
        scene.add_volume(study, volume, node)
    node = segmentationNode(volume, labelArray(), {4: "Left atrium", 9: "Milz"})
    with pytest.raises(
        InputError, match="The segment 'Milz' of 'drawn' is no structure of the study. Appendage"
    ):
        scene.add_volume(study, volume, node)
    study.other_as_background = True
    case = scene.add_volume(study, volume, node)
    assert np.array_equal(accepted(study, case.id), np.where(labelArray() == 4, 4, 0))


def test_two_segments_of_one_structure_are_refused():
    volume = volumeNode(turned())
    node = segmentationNode(volume, labelArray(), {4: "Left atrium", 9: "left Atrium"})
    with pytest.raises(InputError, match="'Left atrium' and 'left Atrium' of 'drawn' are both Left atrium"):
        match_segments(node, STRUCTURES)


def test_a_terminology_matches_where_no_name_does():
    volume = volumeNode(turned())
    node = segmentationNode(volume, labelArray(), {4: "Vorhof", 9: "Appendage"})
    segment = node.GetSegmentation().GetNthSegment(0)
    assert code_of(entry_on(segment)) == ""
    segment.SetTag(
        slicer.vtkSegment.GetTerminologyEntryTagName(),
        "Another context~SCT^123037004^Anatomical Structure~SCT^82471001^Atrium~^^~r~^^~^^",
    )
    matching = match_segments(node, STRUCTURES)
    assert set(matching.ids) == {4, 9} and not matching.others


def test_the_only_segment_of_a_study_with_one_structure_needs_no_name():
    volume = volumeNode(turned())
    one = [Structure(1, "Liver", (1, 2, 3))]
    assert match_segments(segmentationNode(volume, labelArray(), {4: "Segment_1"}), one).ids[1]
    with pytest.raises(InputError, match="has 'Tumor'"):
        match_segments(segmentationNode(volume, labelArray(), {4: "Tumor"}), one)


def test_an_empty_segmentation_is_refused():
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing")
    with pytest.raises(InputError, match="'nothing' has no segments"):
        match_segments(node, STRUCTURES)


def test_a_surface_is_refused():
    node = segmentationNode(volumeNode(turned()), labelArray(), NAMES)
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.GetSegmentation().RemoveRepresentation("Binary labelmap")
    with pytest.raises(InputError, match="is a surface"):
        label_of(node, STRUCTURES, geometry(turned()))


def test_label_maps_are_taken_in_the_studys_values(study):
    volume = volumeNode(turned())
    node = slicer.util.addVolumeFromArray(labelArray(), turned(), "map", "vtkMRMLLabelMapVolumeNode")
    case = scene.add_volume(study, volume, node)
    assert np.array_equal(accepted(study, case.id), labelArray())
    other = slicer.util.addVolumeFromArray(labelArray() * 2, turned(), "map", "vtkMRMLLabelMapVolumeNode")
    with pytest.raises(InputError, match="contains the values 8, 18"):
        scene.set_label(study, case.id, other)
    small = slicer.util.addVolumeFromArray(labelArray()[:3], turned(), "map", "vtkMRMLLabelMapVolumeNode")
    with pytest.raises(InputError, match="does not lie on its image's voxels"):
        scene.set_label(study, case.id, small)
    with pytest.raises(InputError, match="neither a segmentation nor a label map"):
        scene.set_label(study, case.id, volume)


def test_every_label_is_a_new_file_and_a_reference_is_kept_apart(study):
    addCase(study, "a", turned())
    volume = scene.load_image(study, "a")
    node = segmentationNode(volume, labelArray(), NAMES)
    assert scene.set_label(study, "a", node).name == "001-expert.nrrd"
    assert scene.set_label(study, "a", node, origin="corrected").name == "002-corrected.nrrd"
    addCase(study, "t", turned(), seed=3, role="test")
    node = segmentationNode(scene.load_image(study, "t"), labelArray(), NAMES)
    assert scene.set_reference(study, "t", node).parent.name == "references"


def test_a_segmentation_of_another_volume_is_no_label_unless_it_is_meant(study):
    one, two = volumeNode(turned(), "one"), volumeNode(turned(), "two", seed=1)
    node = segmentationNode(one, labelArray(), NAMES)
    with pytest.raises(InputError, match="'drawn' was drawn on 'one', not on 'two'") as raised:
        scene.add_volume(study, two, node)
    assert raised.value.code == "other_volume" and not study.cases
    case = scene.add_volume(study, two)
    for change in (scene.set_label, scene.set_reference):
        with pytest.raises(InputError, match="'drawn' was drawn on 'one', not on 'two'"):
            change(study, case.id, node)
    assert study.case(case.id).label is None
    scene.set_label(study, case.id, node, other_volume=True)
    assert np.array_equal(accepted(study, case.id), labelArray())


def test_a_segmentation_of_the_same_image_is_a_label(study, tmp_path):
    """Of the volume that was added, of the same voxels, of the case's file; and of nothing that is known."""
    volume, clone = volumeNode(turned(), "scan"), volumeNode(turned(), "scan clone")
    case = scene.add_volume(study, volume, segmentationNode(volume, labelArray(), NAMES))
    read = slicer.util.loadVolume(str(study.image_path(case.id)))
    unknown = segmentationNode(volume, labelArray(), NAMES)
    unknown.RemoveNodeReferenceIDs(unknown.GetReferenceImageGeometryReferenceRole())
    drawn = [segmentationNode(on, labelArray(), NAMES) for on in (volume, clone, read)]
    names = [scene.set_label(study, case.id, node).name for node in [*drawn, unknown]]
    assert names[-1] == "005-expert.nrrd"


def test_an_empty_label_is_refused_unless_it_is_meant(study):
    volume = volumeNode(turned())
    node = segmentationNode(volume, labelArray() * 0, NAMES)
    with pytest.raises(InputError, match="'drawn' is empty") as raised:
        scene.add_volume(study, volume, node)
    assert raised.value.code == "empty_label" and not study.cases
    empty = slicer.util.addVolumeFromArray(labelArray() * 0, turned(), "map", "vtkMRMLLabelMapVolumeNode")
    case = scene.add_volume(study, volume)
    with pytest.raises(InputError, match="'map' is empty"):
        scene.set_label(study, case.id, empty)
    scene.set_label(study, case.id, node, empty=True)
    assert study.case(case.id).role == "labeled" and not accepted(study, case.id).any()


def test_a_segmentation_file_keeps_values_names_colours_and_terminology(tmp_path):
    node = show_label(image(labelArray(), turned()), STRUCTURES, "x")
    path = tmp_path / "x.seg.nrrd"
    slicer.util.saveNode(node, str(path), {})
    stored = sitk.ReadImage(str(path))
    assert set(np.unique(sitk.GetArrayFromImage(stored))) == {0, 4, 9}
    slicer.mrmlScene.RemoveNode(node)
    again = slicer.util.loadSegmentation(str(path), {})
    segment = again.GetSegmentation().GetSegment("SFR_4")
    assert segment.GetName() == "Left atrium"
    assert np.allclose(np.array(segment.GetColor()) * 255, (230, 75, 53), atol=0.01)
    assert code_of(entry_on(segment)) == "SCT^82471001"
    assert entry_on(segment) == entry_of(STRUCTURES[0])
    back = label_of(again, STRUCTURES, geometry(turned()))
    assert np.array_equal(sitk.GetArrayFromImage(back), labelArray())
