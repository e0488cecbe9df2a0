"""What Slicer's segment table and Segment Editor do; its effects, undo and masks are not emulated."""

import slicer

from .recorded import behaviour, qt


def _tableBuild(self):
    layout = qt.QVBoxLayout(self)
    layout.setContentsMargins(0, 0, 0, 0)
    self._hTable, self._hNode, self._hObserver, self._hSegmentIds = qt.QTableWidget(), None, None, []
    layout.addWidget(self._hTable)
    self._hTable.setColumnCount(3)
    self._hTable.setHorizontalHeaderLabels(["Color", "Opacity", "Name"])
    self._hTable.horizontalHeader().stretchLastSection = True
    self._hTable.setSelectionBehavior(qt.QAbstractItemView.SelectRows)
    self._hTable.itemSelectionChanged.connect(lambda: self.selectionChanged.emit(None, None))


def _tableSetNode(self, node):
    if node is not None and not node.IsA("vtkMRMLSegmentationNode"):
        raise ValueError("not a segmentation node")
    if self._hNode is not None:
        for tag in self._hObserver:
            self._hNode.RemoveObserver(tag)
    self._hNode = node
    if node is not None:
        segmentation = slicer.vtkSegmentation
        self._hObserver = [
            node.AddObserver(e, lambda *a: self._fill())
            for e in (
                segmentation.SegmentAdded,
                segmentation.SegmentRemoved,
                segmentation.SegmentModified,
                segmentation.SegmentsOrderModified,
            )
        ]
    self._fill()


def _tableFill(self):
    segmentation = self._hNode.GetSegmentation() if self._hNode is not None else None
    self._hSegmentIds = (
        [segmentation.GetNthSegmentID(i) for i in range(segmentation.GetNumberOfSegments())]
        if segmentation
        else []
    )
    self._hTable.setRowCount(len(self._hSegmentIds))
    for row, segmentID in enumerate(self._hSegmentIds):
        segment = segmentation.GetSegment(segmentID)
        color = qt.QTableWidgetItem("")
        color.setBackground(qt.QBrush(qt.QColor.fromRgbF(*segment.GetColor())))
        self._hTable.setItem(row, 0, color)
        self._hTable.setItem(row, 1, qt.QTableWidgetItem("1.00"))
        self._hTable.setItem(row, 2, qt.QTableWidgetItem(segment.GetName()))


def _tableSelect(self, ids):
    self._hTable.clearSelection()
    self._hTable.setSelectionMode(qt.QAbstractItemView.MultiSelection)
    for segmentID in ids:
        self._hTable.selectRow(self._hSegmentIds.index(segmentID))
    self._hTable.setSelectionMode(qt.QAbstractItemView.ExtendedSelection)


behaviour(
    "qMRMLSegmentsTableView",
    {"selectionMode": 3, "headerVisible": True, "visibilityColumnVisible": True, "colorColumnVisible": True},
    _build=_tableBuild,
    _fill=_tableFill,
    _get_segmentCount=lambda self: len(self._hSegmentIds),
    setSegmentationNode=_tableSetNode,
    segmentationNode=lambda self: self._hNode,
    selectedSegmentIDs=lambda self: tuple(
        self._hSegmentIds[r] for r in sorted({i.row() for i in self._hTable.selectedIndexes()})
    ),
    setSelectedSegmentIDs=_tableSelect,
    clearSelection=lambda self: self._hTable.clearSelection(),
    rowForSegmentID=lambda self, segmentID: (
        self._hSegmentIds.index(segmentID) if segmentID in self._hSegmentIds else -1
    ),
    segmentIDForRow=lambda self, row: self._hSegmentIds[row],
    displayedSegmentIDs=lambda self: tuple(self._hSegmentIds),
)


def _editorBuild(self):
    qt.QVBoxLayout(self).addWidget(
        qt.QLabel("(here: Slicer's Segment Editor, which is not part of this picture)")
    )
    self._hEditorNode, self._hEffect = None, None


def _editorSet(method, signal=None):
    def setter(self, node):
        if self._hEditorNode is None:
            # The real widget logs an error and does nothing.
            raise RuntimeError("set the segment editor node first")
        getattr(self._hEditorNode, method)(node)
        if signal:
            getattr(self, signal).emit(node)

    return setter


def _editorEffect(self, effect):
    """Which effect is active is kept in the node, as in Slicer; here only its name is known."""
    if self._hEditorNode is not None:
        self._hEditorNode.SetActiveEffectName(effect or "")


behaviour(
    "qMRMLSegmentEditorWidget",
    {
        "segmentationNodeSelectorVisible": True,
        "sourceVolumeNodeSelectorVisible": True,
        "maximumNumberOfUndoStates": 10,
        "switchToSegmentationsButtonVisible": True,
        "maskingSectionVisible": True,
    },  # fmt: skip
    _build=_editorBuild,
    setMRMLScene=lambda self, scene: self.__dict__.update(_hScene=scene),
    setMRMLSegmentEditorNode=lambda self, node: self.__dict__.update(_hEditorNode=node),
    mrmlSegmentEditorNode=lambda self: self._hEditorNode,
    setSegmentationNode=_editorSet("SetAndObserveSegmentationNode", "segmentationNodeChanged"),
    segmentationNode=lambda self: self._hEditorNode.GetSegmentationNode(),
    setSourceVolumeNode=_editorSet("SetAndObserveSourceVolumeNode", "sourceVolumeNodeChanged"),
    sourceVolumeNode=lambda self: self._hEditorNode.GetSourceVolumeNode(),
    setCurrentSegmentID=_editorSet("SetSelectedSegmentID", "currentSegmentIDChanged"),
    currentSegmentID=lambda self: self._hEditorNode.GetSelectedSegmentID() or "",
    installKeyboardShortcuts=lambda self, parent=None: None,
    uninstallKeyboardShortcuts=lambda self: None,
    setupViewObservations=lambda self: None,
    removeViewObservations=lambda self: None,
    updateWidgetFromMRML=lambda self: None,
    setEffectNameOrder=lambda self, names: None,
    setActiveEffect=_editorEffect,
    setActiveEffectByName=_editorEffect,
)
