"""Narrow stand-ins for slicer.app, its managers and the C++ modules: an attribute that is not written here is
an error.
"""

import os
import sys


class CppModule:
    """Stands in for a C++ qSlicerLoadableModule: it has a logic and no widget."""

    def __init__(self, name, logic):
        self.name, self.title, self.path, self._logic = name, name, "", logic

    def logic(self):
        return self._logic


class ModuleManager:
    def __init__(self, environment):
        self._environment = environment
        self._aboutToBeUnloaded = []

    def module(self, name):
        return self._environment.modules.get(name)

    def modulesNames(self):
        return tuple(self._environment.modules)

    def connect(self, signature, slot):
        if signature != "moduleAboutToBeUnloaded(QString)":
            raise ValueError(signature)
        self._aboutToBeUnloaded.append(slot)
        return True

    def disconnect(self, signature, slot):
        if slot in self._aboutToBeUnloaded:
            self._aboutToBeUnloaded.remove(slot)
        return True


class IOManager:
    """The part of qSlicerCoreIOManager that load/save functions of slicer.util call."""

    EXTENSIONS = {
        ".seg.nrrd": "SegmentationFile",
        ".seg.nhdr": "SegmentationFile",
        ".nrrd": "VolumeFile",
        ".nhdr": "VolumeFile",
        ".nii": "VolumeFile",
        ".nii.gz": "VolumeFile",
        ".mha": "VolumeFile",
        ".h5": "TransformFile",
        ".tfm": "TransformFile",
        ".mrml": "SceneFile",
        ".mrb": "SceneFile",
        ".tsv": "TableFile",
        ".csv": "TableFile",
    }

    def __init__(self, environment):
        self._environment = environment

    def fileType(self, fileName):
        for extension in sorted(self.EXTENSIONS, key=len, reverse=True):
            if str(fileName).lower().endswith(extension):
                return self.EXTENSIONS[extension]
        return "NoFile"

    def fileWriterFileType(self, node):
        for className, fileType in (
            ("vtkMRMLSegmentationNode", "SegmentationFile"),
            ("vtkMRMLVolumeNode", "VolumeFile"),
            ("vtkMRMLTransformNode", "TransformFile"),
            ("vtkMRMLTableNode", "TableFile"),
        ):
            if node.IsA(className):
                return fileType
        return "NoFile"

    def loadNodes(self, fileType, properties, loadedNodes, userMessages):
        fileName = properties["fileName"]
        if not isinstance(fileName, str):
            raise TypeError("fileName must be str")
        environment, node = self._environment, None
        name = properties.get("name")
        if not os.path.isfile(fileName):
            return False
        if fileType == "SceneFile":
            scene, clear = environment.scene, bool(properties.get("clear"))
            if fileName.endswith(".mrb"):
                return bool(scene.ReadFromMRB(fileName, clear))
            scene.SetURL(fileName)
            return bool(scene.Connect() if clear else scene.Import())
        if fileType == "VolumeFile":
            options = 0
            for bit, key in (
                (1, "labelmap"),
                (2, "center"),
                (4, "singleFile"),
                (8, "autoWindowLevel"),
                (16, "discardOrientation"),
            ):
                if properties.get(key, key == "autoWindowLevel"):
                    options |= bit
            base = name or os.path.basename(fileName).split(".")[0]
            node = environment.logics["Volumes"].AddArchetypeVolume(fileName, base, options, None)
            if node and properties.get("show", True):
                selection = environment.appLogic.GetSelectionNode()
                if node.IsA("vtkMRMLLabelMapVolumeNode"):
                    selection.SetReferenceActiveLabelVolumeID(node.GetID())
                else:
                    selection.SetActiveVolumeID(node.GetID())
                environment.appLogic.PropagateVolumeSelection()
        elif fileType == "SegmentationFile":
            node = environment.logics["Segmentations"].LoadSegmentationFromFile(
                fileName,
                bool(properties.get("autoOpacities", True)),
                name or os.path.basename(fileName).split(".")[0],
                None,
            )
        elif fileType == "TransformFile":
            node = environment.logics["Transforms"].AddTransform(fileName, environment.scene)
        else:
            raise NotImplementedError(fileType)
        if not node:
            return False
        loadedNodes.AddItem(node)
        return True

    def saveNodes(self, fileType, properties, userMessages):
        scene = self._environment.scene
        fileName = properties["fileName"]
        if not isinstance(fileName, str):
            raise TypeError(
                "fileName must be str"
            )  # the real one converts to a QVariant: a pathlib.Path is lost
        if fileType == "SceneFile":
            scene.SetURL(fileName)
            scene.SetRootDirectory(os.path.dirname(fileName))
            return bool(scene.WriteToMRB(fileName) if fileName.endswith(".mrb") else scene.Commit())
        node = scene.GetNodeByID(properties["nodeID"])
        node.AddDefaultStorageNode(fileName)
        storage = node.GetStorageNode()
        storage.SetFileName(fileName)
        if "useCompression" in properties:
            storage.SetUseCompression(properties["useCompression"])
        return bool(storage.WriteData(node))


class LayoutManager:
    def __init__(self, environment):
        self._environment = environment
        self.threeDViewCount = self.tableViewCount = self.plotViewCount = 0

    def sliceViewNames(self):
        return tuple(self._environment.sliceViews)

    def sliceWidget(self, name):
        return self._environment.sliceViews.get(name)

    def mrmlSliceLogics(self):
        return self._environment.sliceLogics

    def resetSliceViews(self):
        for view in self._environment.sliceViews.values():
            view.fit()


class Application:
    def __init__(self, environment):
        self._environment = environment
        self.applicationName = "Slicer"
        self.temporaryPath = environment.temporaryDirectory
        self.majorVersion, self.minorVersion = 5, 12
        self._layoutManager, self._slots = LayoutManager(environment), {}
        self._ioManager = IOManager(environment)
        self._moduleManager = ModuleManager(environment)

    def mrmlScene(self):
        return self._environment.scene

    def applicationLogic(self):
        return self._environment.appLogic

    def layoutManager(self):
        return self._layoutManager

    def coreIOManager(self):
        return self._ioManager

    def ioManager(self):
        return self._ioManager

    def moduleManager(self):
        return self._moduleManager

    def testingEnabled(self):
        return True

    def topLevelWidgets(self):
        qt = sys.modules.get("qt")
        return qt._topLevelWidgets() if qt else ()

    def processEvents(self):
        qt = sys.modules.get("qt")
        if qt:
            qt._app.processEvents()

    def setOverrideCursor(self, cursor):
        sys.modules["qt"].QApplication.setOverrideCursor(cursor)

    def restoreOverrideCursor(self):
        sys.modules["qt"].QApplication.restoreOverrideCursor()

    def settings(self):
        return sys.modules["qt"].QSettings()

    userSettings = settings

    def connect(self, signature, slot):
        self._slots.setdefault(signature, [])
        if signature not in ("startupCompleted()", "aboutToQuit()", "lastWindowClosed()"):
            raise ValueError(signature)
        self._slots[signature].append(slot)
        return True

    def emitSignal(self, signature):  # for tests only
        for slot in list(self._slots.get(signature, ())):
            slot()

    def translate(self, context, text):
        return text

    def startupEnvironment(self):
        return sys.modules["qt"].QProcessEnvironment.systemEnvironment()

    def pauseRender(self):
        pass

    def resumeRender(self):
        pass
