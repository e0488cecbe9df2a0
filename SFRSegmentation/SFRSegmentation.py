"""SFR Segmentation for 3D Slicer: few labeled volumes in, a segmented cohort out. This file only wires."""

import importlib.util
import sys
import unittest
from pathlib import Path

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

HERE = Path(__file__).resolve().parent
# In an installed extension and a build tree SFRCore lies beside this file; in the source tree, one folder up.
if importlib.util.find_spec("SFRCore") is None:
    sys.path.insert(0, str(HERE.parent))


class SFRSegmentation(ScriptedLoadableModule):
    """The module as Slicer lists it."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("SFR Segmentation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "SegmentEditor", "SubjectHierarchy", "Volumes"]
        parent.contributors = ["SFR contributors"]
        parent.helpText = _(
            "Draw a few volumes of a cohort, press one button, and get the others segmented, "
            "the doubtful ones first for you to correct. "
            'See the <a href="{url}">documentation</a>.'
        ).format(url="https://github.com/SlicerSFR/SlicerSFR")
        parent.acknowledgementText = _(
            "The method is SFR: a foundation model fine-tuned on stitched slices labels the cohort, and a "
            "small 3D network is retrained on both (IEEE Transactions on Medical Imaging, 2025)."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Offer the invented cohort in Slicer's Sample Data module."""
    from SFRSegmentationLib.sample_data import register

    register()


class SFRSegmentationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel's life: made, entered, left, and told of what happens to the scene."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.panel = None

    def setup(self):
        """Build the panel; nothing is installed, downloaded or asked."""
        super().setup()
        from SFRSegmentationLib.module_logic import SFRSegmentationLogic
        from SFRSegmentationLib.panel import Panel

        widget = slicer.util.loadUI(self.resourcePath("UI/SFRSegmentation.ui"))
        self.layout.addWidget(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = SFRSegmentationLogic()
        self.panel = Panel(widget, self.logic, self.resourcePath)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndClose)
        self.logic.session.listen(self.onChanged)
        self.initializeParameterNode()

    def cleanup(self):
        """The module is unloaded or reloaded, or Slicer quits; jobs go on."""
        self.removeObservers()
        logic, panel = getattr(self, "logic", None), getattr(self, "panel", None)
        if logic is not None:
            logic.session.forget(self.onChanged)
        if panel is not None:
            panel.cleanup()
            self.panel = None
        if logic is not None:
            logic.session.setStudy(None)

    def enter(self):
        """The user comes to the module."""
        if self.panel is not None:
            self.initializeParameterNode()
            self.panel.enter()

    def exit(self):
        """The user goes to another module."""
        if self.panel is not None:
            self.panel.setParameters(None)
            self.panel.exit()

    def onSceneStartClose(self, caller, event):
        """No node may be held while the scene is closed."""
        self.panel.sceneClosing()

    def onSceneEndClose(self, caller, event):
        """Start again with the scene that is there now; a user who is elsewhere is not interrupted."""
        if self.parent.isEntered:
            self.initializeParameterNode()
        self.panel.sceneChanged()

    def initializeParameterNode(self):
        """Bind the panel to the scene's parameter node, and open the study it names where it is here.

        Where another one is open that one stays: the scene's is offered, and the scene goes on naming it.
        """
        parameters = self.logic.getParameterNode()
        self.panel.setParameters(parameters)
        study, folder = self.logic.session.study, parameters.studyFolder
        cases = self.panel.steps["cases"]
        if study is None:
            if folder:
                cases.reopen(folder)
        elif not folder:
            parameters.studyFolder = str(study.root)
        else:
            cases.offer("" if Path(folder) == study.root else folder)

    def onChanged(self, what):
        """The scene remembers which study is open."""
        from SFRSegmentationLib.session import STUDY

        if what == STUDY:
            study = self.logic.session.study
            self.logic.getParameterNode().studyFolder = "" if study is None else str(study.root)

    def onReload(self):
        """Reload the module with its packages, which Slicer's own reload leaves as they were.

        They are forgotten rather than reloaded one by one: imported anew they come in the right order.
        """
        for name in [name for name in sys.modules if name.split(".")[0] in ("SFRSegmentationLib", "SFRCore")]:
            del sys.modules[name]
        super().onReload()


def __getattr__(name):
    """SFRSegmentationLogic, made when it is first used: SimpleITK and scipy, which it takes along, are not
    imported at each start of Slicer.
    """
    if name == "SFRSegmentationLogic":
        from SFRSegmentationLib.module_logic import SFRSegmentationLogic

        return SFRSegmentationLogic
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class SFRSegmentationTest(ScriptedLoadableModuleTest):
    """What can be tested inside Slicer without the worker's packages; the rest is in Testing/Slicer."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        """For the Reload and Test button."""
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(type(self)).run(result)
        problems = [*result.errors, *result.failures]
        if problems:
            raise AssertionError(problems[0][1])

    def test_panel_opens_and_survives_a_closed_scene(self):
        """The panel opens on a bare Slicer and bears a scene that is closed under it."""
        widget = slicer.util.getModuleWidget("SFRSegmentation")
        panel = widget.panel
        self.assertEqual(list(panel.steps), ["setUp", "cases", "train", "review", "results"])
        slicer.mrmlScene.Clear(0)
        widget.enter()
        self.assertIsNotNone(panel.parameters)
        if not widget.parent.isEntered:
            widget.exit()

    def test_study_from_a_loaded_volume(self):
        """A loaded volume with its segmentation becomes a labeled case of a new study."""
        import numpy as np
        from SFRSegmentationLib.module_logic import SFRSegmentationLogic

        from SFRCore.errors import SFRError

        logic = SFRSegmentationLogic()
        folder = Path(slicer.util.tempDirectory()) / "study"
        logic.createStudy(folder, structures={1: "Organ"})
        voxels = np.zeros((8, 16, 16), np.int16)
        voxels[2:6, 4:12, 4:12] = 100
        volume = slicer.util.addVolumeFromArray(voxels, name="scan")
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
        segmentation.CreateDefaultDisplayNodes()
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment = segmentation.GetSegmentation().AddEmptySegment("organ", "organ")
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            (voxels > 0).astype(np.uint8), segmentation, segment, volume
        )
        case = logic.addVolume(volume, segmentation)
        self.assertEqual(case.role, "labeled")
        with self.assertRaises(SFRError):
            logic.setRole(case.id, "nonsense")
        logic.closeStudy()
