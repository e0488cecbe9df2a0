"""The MRML side of a headless Slicer: a real scene with real logics, and slicer.app, modules and mrmlScene
installed.
"""

import json
import os
import sys
import tempfile
import types

import slicer
import vtk

from .application import Application, CppModule
from .views import SliceView

MODULE_LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Models": "vtkSlicerModelsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Plots": "vtkSlicerPlotsLogic",
}

SCHEMA = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/%s-context-schema.json#"


class VtkErrorLog(list):
    """Collects VTK errors and warnings, so that a test can assert that there were none."""

    def __init__(self):
        super().__init__()
        self.window = vtk.vtkStringOutputWindow()
        self.window.AddObserver("ErrorEvent", self._onEvent("ERROR"))
        self.window.AddObserver("WarningEvent", self._onEvent("WARNING"))
        vtk.vtkOutputWindow.SetInstance(self.window)
        vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)

    def _onEvent(self, level):
        def onEvent(caller, event, text=None):
            self.append((level, (text or "").strip()))

        onEvent.CallDataType = vtk.VTK_STRING
        return onEvent

    def drain(self):
        entries = list(self)
        self.clear()
        return entries


class Environment:
    def __init__(self, sliceViewNames=("Red", "Yellow", "Green")):
        self.errors = VtkErrorLog()
        self.scene = slicer.vtkMRMLScene()
        self.appLogic = slicer.vtkSlicerApplicationLogic()
        self.temporaryDirectory = tempfile.mkdtemp(prefix="slicer-headless-")
        self.appLogic.SetTemporaryPath(self.temporaryDirectory)

        self.writeShareDirectory()

        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)

        self.appLogic.SetMRMLScene(self.scene)
        self.remoteIO = slicer.vtkMRMLRemoteIOLogic()  # without its cache no .mrb can be read
        cache = os.path.join(self.temporaryDirectory, "cache")
        os.makedirs(cache)
        with open(os.path.join(cache, ".slicer-cache"), "w"):
            pass  # a folder without it is not taken for a cache
        self.remoteIO.GetCacheManager().SetRemoteCacheDirectory(cache)
        self.remoteIO.SetMRMLScene(self.scene)
        self.remoteIO.AddDataIOToScene()
        self.sliceLogics, self.viewLogics = vtk.vtkCollection(), vtk.vtkCollection()
        self.appLogic.SetSliceLogics(self.sliceLogics)
        self.appLogic.SetViewLogics(self.viewLogics)
        for factory in (
            slicer.vtkMRMLSliceViewDisplayableManagerFactory,
            slicer.vtkMRMLThreeDViewDisplayableManagerFactory,
        ):
            factory.GetInstance().SetMRMLApplicationLogic(self.appLogic)

        self.logics, self.modules = {}, {}
        for name, className in MODULE_LOGICS.items():
            logic = getattr(slicer, className)()
            if hasattr(logic, "SetModuleShareDirectory"):
                logic.SetModuleShareDirectory(os.path.join(self.temporaryDirectory, "share"))
            logic.SetMRMLApplicationLogic(self.appLogic)
            logic.SetMRMLScene(self.scene)
            self.appLogic.SetModuleLogic(name, logic)
            self.logics[name] = logic
            self.modules[name] = CppModule(name, logic)
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)

        self.sliceViews = {}
        for name, orientation in zip(sliceViewNames, ("Axial", "Sagittal", "Coronal"), strict=True):
            node = self.scene.CreateNodeByClass("vtkMRMLSliceNode")  # this applies the orientation presets
            node.UnRegister(None)
            node.SetName(name)
            node.SetSingletonTag(name)
            node.SetLayoutName(name)
            node = self.scene.AddNode(node)
            node.SetOrientation(orientation)
            self.sliceViews[name] = SliceView(self, node)
        self.install()

    def writeShareDirectory(self):
        """Our own tiny share folder: without it the colour and terminology logics report errors at start."""
        share = os.path.join(self.temporaryDirectory, "share")
        os.makedirs(os.path.join(share, "ColorFiles"))
        self.appLogic.SetHomeDirectory(self.temporaryDirectory)
        self.appLogic.SetShareDirectory("share")  # relative to the home directory
        for table in ("GenericColors", "GenericAnatomyColors", "DarkBrightChartColors"):
            with open(os.path.join(share, "ColorFiles", table + ".txt"), "w") as f:
                f.write("0 background 0 0 0 0\n")
                for i in range(1, 256):
                    f.write(f"{i} region_{i} {i * 67 % 256} {i * 131 % 256} {i * 199 % 256} 255\n")
        code = {"CodingSchemeDesignator": "SCT", "CodeValue": "85756007", "CodeMeaning": "Tissue"}
        kind = dict(code, recommendedDisplayRGBValue=[128, 174, 128])
        for name in (
            "SegmentationCategoryTypeModifier-SlicerGeneralAnatomy",
            "SegmentationCategoryTypeModifier-DICOM-Master",
        ):
            category = dict(code, showAnatomy=False, Type=[kind])
            with open(os.path.join(share, name + ".term.json"), "w") as f:
                json.dump(
                    {
                        "@schema": SCHEMA % "segment",
                        "SegmentationCategoryTypeContextName": name.replace(
                            "SegmentationCategoryTypeModifier-", "Segmentation category and type - "
                        ),
                        "SegmentationCodes": {"Category": [category]},
                    },
                    f,
                )
        with open(os.path.join(share, "AnatomicRegionAndModifier-DICOM-Master.term.json"), "w") as f:
            json.dump(
                {
                    "@schema": SCHEMA % "anatomic",
                    "AnatomicContextName": "Anatomic codes - DICOM master list",
                    "AnatomicCodes": {"AnatomicRegion": [dict(code, CodeMeaning="Brain")]},
                },
                f,
            )

    def install(self):
        modules = types.ModuleType("slicer.modules")
        moduleNames = types.ModuleType("slicer.moduleNames")
        for name, module in self.modules.items():
            setattr(modules, name.lower(), module)
            setattr(moduleNames, name, name)
        sys.modules["slicer.modules"], sys.modules["slicer.moduleNames"] = modules, moduleNames
        slicer.modules, slicer.moduleNames = modules, moduleNames
        slicer.app = Application(self)
        slicer.mrmlScene = self.scene
        # The pip package re-exports everything in slicer.util as slicer.<name>; the application does not.
        for name in slicer.util.__all__:
            if name != "util" and getattr(slicer, name, None) is getattr(slicer.util, name, None):
                delattr(slicer, name)
