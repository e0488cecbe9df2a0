"""Slicer's Segment Editor inside the panel: made when first needed, awake only while the user corrects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
import vtk
from slicer.util import VTKObservationMixin

EFFECTS = ["Paint", "Draw", "Erase", "Level tracing", "Islands", "Smoothing", "Scissors"]
_NODE = "SFRSegmentEditor"


class EditorHost(VTKObservationMixin):
    """`onEffect(active)` is told when an effect begins or ends, so that keys can rest meanwhile."""

    def __init__(self, layout: Any, onEffect: Callable[[bool], None]) -> None:
        VTKObservationMixin.__init__(self)
        self._layout, self._onEffect = layout, onEffect
        self.widget: Any = None
        self._effect = EFFECTS[0]
        self._shortcuts = False

    @property
    def active(self) -> bool:
        """Whether an effect is at work."""
        node = self._node()
        return node is not None and bool(node.GetActiveEffectName())

    def show(self, segmentation: slicer.vtkMRMLSegmentationNode, image: slicer.vtkMRMLVolumeNode) -> None:
        """Edit a segmentation on its image; no effect is active yet."""
        if self.widget is None:
            self._make()
        node = self._node() or self._make_node()
        if self.widget.mrmlSegmentEditorNode() is not node:
            self.widget.setMRMLSegmentEditorNode(node)
        node.SetOverwriteMode(node.OverwriteAllSegments)
        if not self.hasObserver(node, vtk.vtkCommand.ModifiedEvent, self._on_node):
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._on_node)
        self.widget.setSegmentationNode(segmentation)
        self.widget.setSourceVolumeNode(image)

    def start(self, segment: str) -> None:
        """Take up the effect that was used last, at first Paint, on a segment."""
        self.widget.setCurrentSegmentID(segment)
        self.widget.setActiveEffectByName(self._effect)
        if not self._shortcuts:
            self.widget.installKeyboardShortcuts()
            self._shortcuts = True

    def rest(self) -> None:
        """End the effect, also one that a loaded scene brought, and leave the views and keys to others."""
        node = self._node()
        if self.widget is None:
            if node is not None:
                node.SetActiveEffectName("")
            return
        if node is not None and node.GetActiveEffectName():
            self._effect = node.GetActiveEffectName()
        self.widget.setActiveEffect(None)
        self.widget.removeViewObservations()
        if self._shortcuts:
            self.widget.uninstallKeyboardShortcuts()
            self._shortcuts = False

    def clear(self) -> None:
        """Let go of the segmentation and the image."""
        if self.widget is None:
            return
        self.rest()
        if self._node() is not None:
            self.widget.setSegmentationNode(None)
            self.widget.setSourceVolumeNode(None)

    def cleanup(self) -> None:
        """Take the editor out of the panel."""
        self.clear()
        self.removeObservers()
        if self.widget is not None:
            self.widget.setMRMLScene(None)
            self.widget.setParent(None)
            self.widget.deleteLater()
            self.widget = None

    def _make(self) -> None:
        self.widget = slicer.qMRMLSegmentEditorWidget()
        self.widget.setMaximumNumberOfUndoStates(10)
        self.widget.segmentationNodeSelectorVisible = False
        self.widget.sourceVolumeNodeSelectorVisible = False
        self.widget.switchToSegmentationsButtonVisible = False
        self.widget.addRemoveSegmentButtonsVisible = False
        self.widget.autoShowSourceVolumeNode = False
        self.widget.setEffectNameOrder(EFFECTS)
        self.widget.unorderedEffectsVisible = False
        self.widget.setMRMLSegmentEditorNode(self._make_node())
        self.widget.setMRMLScene(slicer.mrmlScene)
        self._layout.addWidget(self.widget)

    def _node(self) -> slicer.vtkMRMLSegmentEditorNode | None:
        return slicer.mrmlScene.GetSingletonNode(_NODE, "vtkMRMLSegmentEditorNode")

    def _make_node(self) -> slicer.vtkMRMLSegmentEditorNode:
        known = self._node()
        if known is not None:
            return known
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
        node.UnRegister(None)
        node.SetSingletonTag(_NODE)
        node.SetSaveWithScene(False)
        return slicer.mrmlScene.AddNode(node)

    def _on_node(self, caller: object, event: str) -> None:
        self._onEffect(self.active)
