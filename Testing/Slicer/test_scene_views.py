"""What the slice views really draw: outlines, doubt above the threshold, and what was there before."""

import numpy as np
import pytest
import slicer
import vtk
from headless.views import SliceView
from scene_tools import GEOMETRIES, addCase, addResult, geometry, labelArray, studyOf, volumeNode
from SFRSegmentationLib.case_view import CaseView
from SFRSegmentationLib.doubt import set_threshold
from SFRSegmentationLib.slice_layers import SliceLayers
from vtk.util.numpy_support import vtk_to_numpy

SIZE = 240
SLICE = 2


@pytest.fixture
def red() -> SliceView:
    """A slice view of the harness, of a size at which voxels can be counted."""
    view = slicer.app.layoutManager().sliceWidget("Red")
    if view.window is None:
        view.size = (SIZE, SIZE)
        view.build()
    view.sliceNode.SetOrientation("Axial")
    return view


@pytest.fixture
def case(tmp_path):
    study = studyOf(tmp_path / "study")
    addCase(study, "a")
    addResult(study, "a", doubts=[0, 0, 0.6, 0, 0, 0])
    view = CaseView(study, "a")
    display = view.image.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(-50, 500)
    view.show(with_doubt=True, opacity=1.0, threshold=0.1, fit=True)
    view.jump(0)
    yield view
    view.close()


def pixels(view):
    """(rows, columns, 3) of what the view draws, the first row at the top."""
    view.render()
    capture = vtk.vtkWindowToImageFilter()
    capture.SetInput(view.window)
    capture.ReadFrontBufferOff()
    capture.Update()
    picture = capture.GetOutput()
    columns, rows, _one = picture.GetDimensions()
    return vtk_to_numpy(picture.GetPointData().GetScalars()).reshape(rows, columns, 3)[::-1].astype(int)


def at(view, index):
    """(row, column) of the middle of a voxel of the plain geometry."""
    ras = GEOMETRIES["plain"] @ [*index, 1]
    inverse = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(view.sliceNode.GetXYToRAS(), inverse)
    x, y, _z, _one = inverse.MultiplyPoint(ras)
    return view.size[1] - 1 - round(y), round(x)


def is_grey(color):
    return max(color) - min(color) <= 2


def test_only_doubt_above_the_threshold_is_colored(red, case):
    case.segmentation.GetDisplayNode().SetVisibility(False)
    picture = pixels(red)
    doubtful, certain = at(red, (4, 4, SLICE)), at(red, (9, 1, SLICE))
    color = picture[doubtful]
    assert not is_grey(color) and color[0] > color[1] and is_grey(picture[certain])
    set_threshold(case.overlay, 0.65)
    assert is_grey(pixels(red)[doubtful])
    set_threshold(case.overlay, 0.5)
    assert np.array_equal(pixels(red)[doubtful], color)


def test_the_segmentation_is_an_outline_in_its_color(red, case):
    case.show(with_doubt=False, opacity=1.0, threshold=0.1, fit=False)
    picture = pixels(red)
    atrium = np.abs(picture - [230, 75, 53]).max(axis=2) <= 3
    rows, columns = np.nonzero(atrium)
    place = labelArray()[SLICE] == 4
    j, i = np.nonzero(place)
    corners = [at(red, (i.min() - 0.5, j.min() - 0.5, SLICE)), at(red, (i.max() + 0.5, j.max() + 0.5, SLICE))]
    tops, sides = sorted(row for row, _c in corners), sorted(column for _r, column in corners)
    assert abs(rows.min() - tops[0]) <= 2 and abs(rows.max() - tops[1]) <= 2
    assert abs(columns.min() - sides[0]) <= 2 and abs(columns.max() - sides[1]) <= 2
    assert is_grey(picture[at(red, (5, 4, SLICE))])


def test_the_views_draw_what_they_did_before(red, case):
    mine = volumeNode(GEOMETRIES["plain"], "mine", seed=5)
    case.close()
    slicer.util.setSliceViewerLayers(background=mine, foreground=None, label=None, fit=True)
    before = pixels(red)
    layers = SliceLayers()
    layers.remember()
    again = CaseView(case.study, "a")
    again.show(with_doubt=True, opacity=0.5, threshold=0.1, fit=True)
    again.jump(0)
    assert not np.array_equal(pixels(red), before)
    again.close()
    layers.restore()
    assert np.array_equal(pixels(red), before)


def test_the_views_stand_on_the_doubtful_slice(red, case):
    ras = GEOMETRIES["plain"] @ [0, 0, SLICE, 1]
    assert red.sliceNode.GetSliceOffset() == pytest.approx(ras[2])
    assert case.places[0].index == SLICE and not case.geometry.difference(geometry(GEOMETRIES["plain"]))
