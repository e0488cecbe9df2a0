"""The environment itself: PythonQt's rules hold, stand-ins are closed, and complaints are heard."""

import ctk
import pytest
import qt
import slicer
from headless import qt_rules, recorded
from slicer.parameterNodeWrapper import parameterNodeWrapper


def test_properties_are_attributes():
    button = qt.QPushButton("Go")
    assert button.text == "Go"
    with pytest.raises(TypeError):
        button.text()
    with pytest.raises(AttributeError):
        button.enable = False
    with pytest.raises(AttributeError):
        button.text = 5
    with pytest.raises(ValueError, match="does not exist"):
        button.connect("cliked()", print)


def test_no_common_base_class():
    assert not isinstance(qt.QPushButton(), qt.QWidget)
    assert qt.QPushButton().inherits("QWidget")


def test_only_slots_of_ctk_can_be_called():
    section = ctk.ctkCollapsibleButton()
    section.collapsed = True
    assert section.collapsed and not section.checked
    with pytest.raises(AttributeError):
        section.setCollapsed(True)
    with pytest.raises(NotImplementedError):
        slicer.qMRMLSegmentEditorWidget().rotateSliceViewsToSegmentation()
    with pytest.raises(AttributeError):
        slicer.app.quitNow()
    assert not hasattr(slicer, "arrayFromVolume")


def test_behaviour_for_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="has no setCollapsed"):
        recorded.behaviour("ctkCollapsibleButton", setCollapsed=lambda self, on: None)


def test_selector_picks_nothing_by_itself():
    selector = slicer.qMRMLNodeComboBox()
    selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    selector.setMRMLScene(slicer.mrmlScene)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "v")
    assert selector.currentNode() is None and selector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    told = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", told.append)
    selector.setCurrentNode(node)
    assert told == [node] and selector.currentNodeID == node.GetID()
    selector.setMRMLScene(None)


def test_slider_needs_bounds():
    @parameterNodeWrapper
    class Parameters:
        level: float = 1.0

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    parameters = Parameters(node)
    slider = ctk.ctkSliderWidget()
    slider.setProperty("SlicerParameterName", "level")
    gui = type("", (), {})()
    gui.slider = slider
    with pytest.raises(RuntimeError, match="bounded"):
        parameters.connectGui(gui)
    with pytest.raises(TypeError):
        parameters.level = "high"


def test_only_connections_with_a_tag_can_be_undone():
    """As in Slicer, whose connectGui returns nothing."""

    @parameterNodeWrapper
    class Parameters:
        shown: bool = True

    parameters = Parameters(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode"))
    boxes = [qt.QCheckBox(), qt.QCheckBox()]
    gui = type("", (), {})()
    gui.box = boxes[0]
    boxes[0].setProperty("SlicerParameterName", "shown")
    parameters.disconnectGui(parameters.connectGui(gui))
    parameters.disconnectGui(parameters.connectParametersToGui({"shown": boxes[1]}))
    parameters.shown = False
    assert [box.checked for box in boxes] == [False, True]


def test_errors_in_slots_and_in_vtk_are_heard(slicerState, capsys):
    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.click()
    assert [type(error) for error in qt_rules.slotErrors] == [ZeroDivisionError]
    qt_rules.slotErrors.clear()
    slicer.mrmlScene.EndState(slicer.mrmlScene.ImportState)
    assert "no previous state" in slicerState.errors.drain()[0][1]
