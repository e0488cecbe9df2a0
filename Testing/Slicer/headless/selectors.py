"""What the node selectors of Slicer do: they follow the scene, list the nodes that fit, and pick none by
themselves.
"""

import slicer
import vtk

from .recorded import behaviour, emit, qt


class _NodeModel:
    """Follows a scene and keeps (node, text) rows that pass the filter of a selector."""

    def __init__(self, selector):
        self.selector, self.scene, self.tags, self.nodeTags, self.attributes = selector, None, [], {}, {}

    def setScene(self, scene):
        for tag in self.tags:
            self.scene.RemoveObserver(tag)
        for node, tag in self.nodeTags.values():
            node.RemoveObserver(tag)
        self.tags, self.nodeTags, self.scene = [], {}, scene
        if scene is not None:
            for event in (
                scene.NodeAddedEvent,
                scene.NodeRemovedEvent,
                scene.EndBatchProcessEvent,
                scene.EndCloseEvent,
            ):
                self.tags.append(scene.AddObserver(event, lambda *a: self.selector._refresh()))
        self.selector._refresh()

    def accepts(self, node):
        selector = self.selector
        if node.GetHideFromEditors() and not selector.showHidden:
            return False
        if not selector.nodeTypes:  # no type set: every node is listed
            matching = [node.GetClassName()]
        elif selector.showChildNodeTypes:
            matching = [t for t in selector.nodeTypes if node.IsA(t)]
        else:
            matching = [t for t in selector.nodeTypes if node.GetClassName() == t]
        if not matching or any(node.IsA(t) for t in selector.hideChildNodeTypes):
            return False
        for (nodeType, name), value in self.attributes.items():
            if node.IsA(nodeType) and (
                node.GetAttribute(name) is None
                or (value is not None and node.GetAttribute(name) != str(value))
            ):
                return False
        return True

    def nodes(self):
        if self.scene is None:
            return []
        found = [self.scene.GetNthNode(i) for i in range(self.scene.GetNumberOfNodes())]
        return [n for n in found if self.accepts(n)]

    def watch(self, nodes):
        for node in nodes:
            if node.GetID() not in self.nodeTags:
                self.nodeTags[node.GetID()] = (
                    node,
                    node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *a: self.selector._refresh()),
                )


def _comboBuild(self):
    layout = qt.QHBoxLayout(self)
    layout.setContentsMargins(0, 0, 0, 0)
    self._hCombo, self._hModel, self._hIds, self._hBusy = qt.QComboBox(), _NodeModel(self), [], False
    layout.addWidget(self._hCombo)
    self._hCombo.currentIndexChanged.connect(lambda index: self._indexChanged())
    self._hLast = ""


def _comboRefresh(self):
    nodes = self._hModel.nodes()
    self._hModel.watch(nodes)
    ids = ([""] if self.noneEnabled else []) + [n.GetID() for n in nodes]
    names = ([self.noneDisplay or "None"] if self.noneEnabled else []) + [n.GetName() or "" for n in nodes]
    if ids == self._hIds and names == [self._hCombo.itemText(i) for i in range(self._hCombo.count)]:
        return
    current = self.currentNodeID
    self._hBusy = True
    self._hCombo.clear()
    self._hIds = ids
    self._hCombo.addItems(names)
    self._hCombo.currentIndex = (
        ids.index(current) if current in ids else (0 if self.noneEnabled else -1)
    )  # never the first node by itself
    self._hBusy = False
    self._indexChanged()


def _comboIndexChanged(self):
    if self._hBusy or self.currentNodeID == self._hLast:
        return
    self._hLast = self.currentNodeID
    emit(self, "currentNodeChanged(vtkMRMLNode*)", self.currentNode())
    emit(self, "currentNodeChanged(bool)", self.currentNode() is not None)
    self.currentNodeIDChanged.emit(self._hLast)


def _comboSetID(self, nodeID):
    index = self._hIds.index(nodeID) if nodeID in self._hIds else (0 if self.noneEnabled else -1)
    self._hCombo.currentIndex = index


def _comboSetNode(self, node):
    if not (node is None or isinstance(node, (str, slicer.vtkMRMLNode))):
        raise ValueError(f"setCurrentNode: no overload takes {type(node).__name__}")
    _comboSetID(self, node if isinstance(node, str) else (node.GetID() if node is not None else ""))


def _comboAddNode(self, nodeType=None):
    node = self._hModel.scene.AddNewNodeByClass(
        nodeType or self.nodeTypes[0],
        self._hModel.scene.GenerateUniqueName(
            self.baseName or (nodeType or self.nodeTypes[0]).replace("vtkMRML", "").replace("Node", "")
        ),
    )
    if self.selectNodeUponCreation:
        _comboSetNode(self, node)
    self.nodeAdded.emit(node)
    return node


def _checkableRefresh(self):
    _comboRefresh(self)
    self._hStates = {i: s for i, s in getattr(self, "_hStates", {}).items() if i in self._hIds}


def _setCheckState(self, node, state):
    before = self.checkState(node)
    self._hStates[node.GetID()] = state
    if before != state:
        self.checkedNodesChanged.emit()


def _setScene(self, scene):
    """`setMRMLScene` of every widget with a scene; `_onScene` is told where there is one."""
    self.__dict__["_hScene"] = scene
    if hasattr(self, "_onScene"):
        self._onScene(scene)
    if "mrmlSceneChanged" in dir(type(self)):
        self.mrmlSceneChanged.emit(scene)


SCENE = {"setMRMLScene": _setScene}


def _onComboScene(self, scene):
    self._hModel.setScene(scene)
    self.setEnabled(scene is not None)


def _comboNodeID(self):
    index = self._hCombo.currentIndex
    return self._hIds[index] if 0 <= index < len(self._hIds) else ""


def _currentNode(self):
    scene = self._hModel.scene
    return scene.GetNodeByID(self.currentNodeID) if scene and self.currentNodeID else None


def _addAttribute(self, nodeType, name, value=None):
    self._hModel.attributes[nodeType, name] = value
    self._refresh()


def _removeAttribute(self, nodeType, name):
    del self._hModel.attributes[nodeType, name]
    self._refresh()


_refreshing = {
    f"_set_{name}": lambda self, value: self._refresh()
    for name in (
        "nodeTypes",
        "noneEnabled",
        "showHidden",
        "showChildNodeTypes",
        "hideChildNodeTypes",
        "noneDisplay",
    )  # fmt: skip
}
behaviour(
    "qMRMLNodeComboBox",
    {"showChildNodeTypes": True, "addEnabled": True, "removeEnabled": True, "selectNodeUponCreation": True},
    _build=_comboBuild,
    _refresh=_comboRefresh,
    _indexChanged=_comboIndexChanged,
    _onScene=_onComboScene,
    _get_currentNodeID=_comboNodeID,
    _set_currentNodeID=_comboSetID,
    currentNode=_currentNode,
    setCurrentNode=_comboSetNode,
    setCurrentNodeID=_comboSetID,
    setCurrentNodeIndex=lambda self, i: setattr(self._hCombo, "currentIndex", i + bool(self.noneEnabled)),
    nodeCount=lambda self: len(self._hModel.nodes()),
    nodeFromIndex=lambda self, i: self._hModel.nodes()[i],
    addNode=_comboAddNode,
    removeCurrentNode=lambda self: self._hModel.scene.RemoveNode(self.currentNode()),
    addAttribute=_addAttribute,
    removeAttribute=_removeAttribute,
    **_refreshing,
    **SCENE,
)
behaviour(
    "qMRMLCheckableNodeComboBox",
    _refresh=_checkableRefresh,
    checkState=lambda self, node: getattr(self, "_hStates", {}).get(node.GetID(), qt.Qt.Unchecked),
    setCheckState=_setCheckState,
    checkedNodes=lambda self: tuple(n for n in self._hModel.nodes() if self.checkState(n) == qt.Qt.Checked),
    uncheckedNodes=lambda self: tuple(n for n in self._hModel.nodes() if self.checkState(n) != qt.Qt.Checked),
    allChecked=lambda self: not self.uncheckedNodes(),
    noneChecked=lambda self: not self.checkedNodes(),
    check=lambda self, node: _setCheckState(self, node, qt.Qt.Checked),
    uncheck=lambda self, node: _setCheckState(self, node, qt.Qt.Unchecked),
)
behaviour("qMRMLWidget", **SCENE)
behaviour("qSlicerWidget", **SCENE)
behaviour("qMRMLSliderWidget", **SCENE)
