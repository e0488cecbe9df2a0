"""Stand-ins for slicer.ScriptedLoadableModule, slicer.i18n and slicer.parameterNodeWrapper, and the module
loader.
"""

import importlib.util
import os
import sys
import types
import unittest

import slicer

from .parameter_node import WithinRange, parameterNodeWrapper
from .recorded import behaviour, qt


class ModuleObject:
    """The qSlicerScriptedLoadableModule seen by a script as `parent` of its module class."""

    def __init__(self, name, path):
        self.name, self.path, self.title, self.icon = name, path, name, None
        self.categories, self.dependencies, self.contributors = [], [], []
        self.helpText = self.acknowledgementText = ""
        self.hidden, self.associatedNodeTypes, self._hRepresentation = False, [], None
        self._logic = slicer.vtkSlicerScriptedLoadableModuleLogic()

    def __setattr__(self, name, value):
        if (
            name not in ("name", "path")
            and not name.startswith("_")
            and hasattr(self, "_logic")
            and name not in self.__dict__
        ):
            raise AttributeError(f"'{name}' does not exist on qSlicerScriptedLoadableModule")
        object.__setattr__(self, name, value)

    def logic(self):
        return self._logic

    def widgetRepresentation(self):
        if self._hRepresentation is None:
            self._hRepresentation = slicer.qSlicerScriptedLoadableModuleWidget()
            self._hRepresentation._hModule, self._hRepresentation._hPython = self, None
            self._hRepresentation.reload()
        return self._hRepresentation


def _reload(self):
    module = sys.modules[self._hModule.name]
    widget = getattr(module, self._hModule.name + "Widget")(self)
    setattr(slicer.modules, self._hModule.name + "Widget", widget)
    self._hPython = widget
    widget.setup()


def _build(self):
    self.setLayout(qt.QVBoxLayout())
    self.setMRMLScene(slicer.mrmlScene)


def _enter(self):
    self._hEntered = True
    self._hPython.enter()


def _exit(self):
    self._hEntered = False
    self._hPython.exit()


def _refuse(self, value):
    raise AttributeError("isEntered is read-only")


behaviour(
    "qSlicerScriptedLoadableModuleWidget",
    _build=_build,
    self=lambda self: self._hPython,
    reload=_reload,
    enter=_enter,
    exit=_exit,
    _hEntered=False,
    _get_isEntered=lambda self: self._hEntered,
    _set_isEntered=_refuse,
)


class ScriptedLoadableModule:
    def __init__(self, parent):
        super().__init__()
        self.parent, self.moduleName = parent, type(self).__name__
        if not hasattr(slicer, "selfTests"):
            slicer.selfTests = {}
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def runTest(self, msec=100, **arguments):
        test = getattr(sys.modules[type(self).__module__], self.moduleName + "Test")()
        test.messageDelay = msec
        test.runTest(**arguments)


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        super().__init__()
        name = type(self).__name__
        self.moduleName = name[:-6] if name.endswith("Widget") else name
        self.developerMode = False
        if parent is None:
            raise NotImplementedError("free-standing module widgets are not emulated")
        self.parent, self.layout = parent, parent.layout()
        slicer.app.moduleManager().connect(
            "moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded
        )

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self):
        pass

    def cleanup(self):
        pass

    def onReload(self):
        slicer.util.reloadScriptedModule(self.moduleName)

    def _onModuleAboutToBeUnloaded(self, moduleName):
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect(
                "moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded
            )


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        super().__init__()
        name = type(self).__name__
        self.moduleName = name[:-5] if name.endswith("Logic") else name
        self.isSingletonParameterNode = True

    def getParameterNode(self):
        for node in self.getAllParameterNodes():
            return node
        return slicer.mrmlScene.AddNode(self.createParameterNode())

    def getAllParameterNodes(self):
        nodes = slicer.util.getNodesByClass("vtkMRMLScriptedModuleNode")
        return [
            n
            for n in nodes
            if n.GetAttribute("ModuleName") == self.moduleName
            or (self.isSingletonParameterNode and n.GetSingletonTag() == self.moduleName)
        ]

    def createParameterNode(self):
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    def __init__(self, *args, **kwargs):
        super().__init__(*(args or ("runTest",)), **kwargs)
        self.messageDelay = 0

    def delayDisplay(self, message, requestedDelay=None, msec=None):
        slicer.util.delayDisplay(message, 0)

    def runTest(self):
        for name in [n for n in dir(self) if n.startswith("test")]:
            self.setUp()
            getattr(self, name)()
            self.tearDown()


def _publish(name, **members):
    module = types.ModuleType("slicer." + name)
    module.__dict__.update(members, __all__=list(members))
    sys.modules["slicer." + name] = module
    setattr(slicer, name, module)


def install():
    """Put the Python modules that the application adds into `slicer` and sys.modules."""
    slicer.qSlicerScriptedLoadableModule = ModuleObject
    _publish(
        "ScriptedLoadableModule",
        ScriptedLoadableModule=ScriptedLoadableModule,
        ScriptedLoadableModuleWidget=ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic=ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest=ScriptedLoadableModuleTest,
    )
    _publish("i18n", tr=lambda text: text, translate=lambda context, text: text)
    _publish("parameterNodeWrapper", parameterNodeWrapper=parameterNodeWrapper, WithinRange=WithinRange)


def loadScriptedModule(path):
    """What the module factory does: import, create the module object, register it; the GUI is created on
    first request.
    """
    name = os.path.splitext(os.path.basename(path))[0]
    sys.path.insert(0, os.path.dirname(path))
    spec = importlib.util.spec_from_file_location(name, path)
    python = importlib.util.module_from_spec(spec)
    sys.modules[name] = python
    spec.loader.exec_module(python)
    parent = ModuleObject(name, path)
    setattr(slicer.modules, name.lower(), parent)
    setattr(slicer.moduleNames, name, name)
    slicer.app._environment.modules[name] = parent
    setattr(slicer.modules, name + "Instance", getattr(python, name)(parent))
    return parent
