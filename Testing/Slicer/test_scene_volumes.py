"""Loaded volumes into a study: by file or as a copy, on exactly their voxels, or refused with a reason."""

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from scene_tools import GEOMETRIES, geometry, grey, labelArray, segmentationNode, studyOf, turned, volumeNode
from SFRSegmentationLib import scene, study_nodes
from SFRSegmentationLib.node_geometry import geometry_of, index_to_ras
from SFRSegmentationLib.volume_nodes import file_behind, image_of, show_image

from SFRCore.errors import InputError
from SFRCore.volumes import read_image


@pytest.fixture
def study(tmp_path):
    return studyOf(tmp_path / "study")


def load(path, **properties):
    return slicer.util.loadVolume(str(path), {"show": False, **properties})


def under(volume, matrix):
    """Put a volume under a linear transform."""
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    volume.SetAndObserveTransformNodeID(transform.GetID())
    return transform


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_volume_and_its_image_are_the_same_voxels(name):
    node = volumeNode(GEOMETRIES[name])
    image = image_of(node)
    assert not geometry_of(node).difference(geometry(GEOMETRIES[name]))
    assert np.array_equal(sitk.GetArrayFromImage(image), grey())
    for index in ((0, 0, 0), (3, 7, 5), (10, 8, 5)):
        ras = (GEOMETRIES[name] @ [*index, 1])[:3]
        assert np.allclose(image.TransformIndexToPhysicalPoint(index), ras * [-1, -1, 1], atol=1e-9)
    back = show_image(image, "back")
    matrix = vtk.vtkMatrix4x4()
    back.GetIJKToRASMatrix(matrix)
    assert np.allclose(slicer.util.arrayFromVTKMatrix(matrix), GEOMETRIES[name], atol=1e-9)
    assert np.array_equal(slicer.util.arrayFromVolume(back), grey())
    assert np.allclose(index_to_ras(geometry_of(back)), GEOMETRIES[name], atol=1e-9)


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.float64, np.uint8, np.int32])
def test_every_kind_of_number_can_be_shown(kind):
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    assert np.array_equal(slicer.util.arrayFromVolume(show_image(sitk.GetImageFromArray(array), "v")), array)


def test_an_unmodified_file_is_referred_to(study, tmp_path):
    path = tmp_path / "Scan 01.nrrd"
    sitk.WriteImage(image_of(volumeNode(turned())), str(path))
    node = load(path)
    case = scene.add_volume(study, node)
    assert (case.id, case.image) == ("Scan 01", str(path))
    assert not (study.root / "images").exists()
    assert node.GetAttribute("SFR.CaseId") == "Scan 01"
    with pytest.raises(InputError, match="already has a case called Scan 01"):
        scene.add_volume(study, node)
    other = tmp_path / "other" / "Scan 01.nrrd"
    other.parent.mkdir()
    sitk.WriteImage(image_of(volumeNode(turned(), seed=2)), str(other))
    assert scene.add_volume(study, load(other)).id == "Scan 01_2"


def test_a_volume_without_a_file_is_copied(study):
    node = volumeNode(turned(), "Herz: Müller/2")
    case = scene.add_volume(study, node)
    assert case.id == "Herz_ Müller_2" and case.image == "images/Herz_ Müller_2.nrrd"
    stored = read_image(study.image_path(case.id))
    assert np.array_equal(sitk.GetArrayFromImage(stored), grey())
    assert not geometry_of(node).difference(geometry(turned()))
    assert scene.add_volume(study, volumeNode(turned(), "Herz: Müller/2", seed=1)).id == "Herz_ Müller_2_2"


def test_a_volume_is_added_once(study):
    node = volumeNode(turned(), "scan")
    case = scene.add_volume(study, node)
    with pytest.raises(InputError, match="already has a case called scan, and 'scan' is its image") as raised:
        scene.add_volume(study, node)
    assert "Label of the selected case" in raised.value.hint and list(study.cases) == [case.id]
    shown = scene.load_image(study, case.id)
    shown.SetName("renamed")
    with pytest.raises(InputError, match="and 'renamed' is its image"):
        scene.add_volume(study, shown)
    assert scene.add_volume(study, node, id="again").id == "again"


def test_what_was_changed_after_loading_is_copied(study, tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(image_of(volumeNode(turned())), str(path))
    node = load(path)
    assert file_behind(node) == path
    array = slicer.util.arrayFromVolume(node)
    array[0, 0, 0] += 7
    slicer.util.arrayFromVolumeModified(node)
    assert file_behind(node) is None
    case = scene.add_volume(study, node)
    assert sitk.GetArrayFromImage(read_image(study.image_path(case.id)))[0, 0, 0] == grey()[0, 0, 0] + 7


def test_a_volume_loaded_elsewhere_than_its_file_says_is_copied(study, tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(image_of(volumeNode(turned())), str(path))
    node = load(path, center=True)
    assert file_behind(node) is None
    case = scene.add_volume(study, node)
    assert case.image == "images/a.nrrd"
    assert not scene.case_geometry(study, case.id).difference(geometry_of(node))


def test_files_that_slicer_may_remove_are_copied(study, tmp_path, monkeypatch):
    path = tmp_path / "unpacked" / "a.nrrd"
    path.parent.mkdir()
    sitk.WriteImage(image_of(volumeNode(turned())), str(path))
    monkeypatch.setattr(slicer.app, "temporaryPath", str(path.parent))
    assert file_behind(load(path)) is None


def test_a_file_that_is_gone_is_copied(study, tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(image_of(volumeNode(turned())), str(path))
    node = load(path)
    path.unlink()
    assert scene.add_volume(study, node).image == "images/a.nrrd"


def test_names_of_dicom_volumes_are_not_taken(study):
    node = volumeNode(turned(), "DOE^JOHN 1970")
    node.SetAttribute("DICOM.instanceUIDs", "1.2.3")
    assert scene.add_volume(study, node).id == "case_0001"


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_linear_transform_is_applied_exactly(study, name):
    node = volumeNode(GEOMETRIES[name])
    moved = turned(spacing=(1, 1, 1), degrees=(5, -40, 70), origin=(9, 8, 7))
    under(node, moved)
    drawn = segmentationNode(node, labelArray(), {4: "Left atrium", 9: "Appendage"})
    case = scene.add_volume(study, node, drawn)
    stored = read_image(study.image_path(case.id))
    assert np.array_equal(sitk.GetArrayFromImage(stored), grey())
    assert not geometry_of(node).difference(geometry(moved @ GEOMETRIES[name]))
    assert not scene.case_geometry(study, case.id).difference(geometry(moved @ GEOMETRIES[name]))
    label = sitk.ReadImage(str(study.label_path(case.id)))
    assert np.array_equal(sitk.GetArrayFromImage(label), labelArray())


def test_nested_and_scaling_transforms(study):
    node = volumeNode(turned())
    inner = under(node, np.diag([2.0, 2.0, 2.0, 1.0]))
    outer = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 3
    outer.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(shift))
    inner.SetAndObserveTransformNodeID(outer.GetID())
    case = scene.add_volume(study, node)
    wanted = geometry(shift @ np.diag([2.0, 2.0, 2.0, 1.0]) @ turned())
    assert not scene.case_geometry(study, case.id).difference(wanted)


def test_an_identity_transform_leaves_the_file_in_use(study, tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(image_of(volumeNode(turned())), str(path))
    node = load(path)
    under(node, np.eye(4))
    assert scene.add_volume(study, node).image == str(path)


def test_a_shearing_transform_is_refused(study):
    node = volumeNode(turned())
    shear = np.eye(4)
    shear[0, 1] = 0.3
    under(node, shear)
    with pytest.raises(InputError, match="'scan' are not at right angles"):
        scene.add_volume(study, node)
    assert not study.cases


def test_a_non_linear_transform_is_refused(study):
    node = volumeNode(turned())
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    spline = vtk.vtkThinPlateSplineTransform()
    points = vtk.vtkPoints()
    for point in ((0, 0, 0), (10, 0, 0), (0, 10, 0), (0, 0, 10)):
        points.InsertNextPoint(point)
    moved = vtk.vtkPoints()
    moved.DeepCopy(points)
    moved.SetPoint(1, 12, 1, 0)
    spline.SetBasisToR()
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(moved)
    transform.SetAndObserveTransformToParent(spline)
    node.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(InputError, match="'scan' is warped by the transform 'warp'") as raised:
        scene.add_volume(study, node)
    assert "harden" in raised.value.hint
    assert not study.cases


def test_the_frame_that_is_shown_of_a_sequence_is_copied(study):
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    for frame in range(3):
        node = volumeNode(turned(), f"f{frame}", seed=frame)
        sequence.SetDataNodeAtValue(node, str(frame))
        slicer.mrmlScene.RemoveNode(node)
    browser = slicer.mrmlScene.AddNode(slicer.vtkMRMLSequenceBrowserNode())
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    proxy = volumeNode(turned(), "cine", seed=1)
    browser.AddProxyNode(proxy, sequence, False)
    browser.SetSelectedItemNumber(1)
    case = scene.add_volume(study, browser.GetProxyNode(sequence))
    assert case.id == "cine frame 2" and case.image.startswith("images/")
    assert np.array_equal(sitk.GetArrayFromImage(read_image(study.image_path(case.id))), grey(1))
    with pytest.raises(InputError, match="already has a case called cine frame 2"):
        scene.add_volume(study, browser.GetProxyNode(sequence))
    browser.SetSelectedItemNumber(2)
    assert scene.add_volume(study, browser.GetProxyNode(sequence)).id == "cine frame 3"


def test_what_is_no_grey_volume_is_refused(study):
    colour = slicer.util.addVolumeFromArray(
        np.zeros((3, 4, 5, 3), np.uint8), name="photo", nodeClassName="vtkMRMLVectorVolumeNode"
    )
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    labels = slicer.util.addVolumeFromArray(labelArray(), turned(), "labels", "vtkMRMLLabelMapVolumeNode")
    for node, said in (
        (colour, "'photo' has colours or vectors"),
        (empty, "'empty' is empty"),
        (labels, "'labels' is a label map"),
        (None, "No volume is chosen"),
    ):
        with pytest.raises(InputError, match=said):
            scene.add_volume(study, node)
    assert not study.cases


def test_a_volume_of_one_value_is_refused(study):
    node = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.int16), name="blank")
    with pytest.raises(InputError, match="same value in every voxel"):
        scene.add_volume(study, node)


def test_the_image_of_a_case_is_loaded_once(study, tmp_path):
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(image_of(volumeNode(turned())), str(path))
    node = load(path)
    study.add(path)
    assert scene.load_image(study, "a") is node
    slicer.mrmlScene.RemoveNode(node)
    first = scene.load_image(study, "a")
    assert np.array_equal(slicer.util.arrayFromVolume(first), grey())
    assert not geometry_of(first).difference(geometry(turned()))
    assert scene.load_image(study, "a") is first
    under(first, np.diag([2.0, 2.0, 2.0, 1.0]))
    assert scene.load_image(study, "a") is not first


@pytest.mark.parametrize("added", [True, False])
def test_an_image_that_was_altered_is_loaded_anew(study, tmp_path, added):
    """Whether it came from the scene or from the study: reviewed is what the model saw."""
    if added:
        id, node = "x", volumeNode(turned(), "x")
        scene.add_volume(study, node, id=id)
    else:
        id = "a"
        path = tmp_path / "a.nrrd"
        sitk.WriteImage(image_of(volumeNode(turned())), str(path))
        study.add(path)
        node = scene.load_image(study, id)
    assert scene.load_image(study, id) is node
    slicer.util.arrayFromVolume(node)[:] = 7
    slicer.util.arrayFromVolumeModified(node)
    again = scene.load_image(study, id)
    assert again is not node and np.array_equal(slicer.util.arrayFromVolume(again), grey())
    assert scene.load_image(study, id) is again


def test_a_map_of_doubt_is_no_case(study):
    node = volumeNode(turned(), "a doubt")
    study_nodes.mark(node, study, "a", study_nodes.DOUBT)
    with pytest.raises(InputError, match="map of doubt"):
        scene.add_volume(study, node)
