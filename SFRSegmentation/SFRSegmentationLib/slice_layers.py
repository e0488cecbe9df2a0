"""What the views show: remembered before SFR shows a case, given back afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import slicer
import vtk

from . import study_nodes


@dataclass(frozen=True)
class _View:
    background: str | None
    foreground: str | None
    label: str | None
    foreground_opacity: float
    label_opacity: float


@dataclass(frozen=True)
class _Plane:
    """How a slice view was turned (SliceToRAS, 16 numbers), its field of view in mm, and where that lay."""

    matrix: tuple[float, ...]
    field: tuple[float, float, float]
    origin: tuple[float, float, float]


class SliceLayers:
    """What every slice view showed, how it was turned and how near, when `remember` was called; and which
    results were visible beside the case, see `alone`.

    All are kept by id, never by node, so that none is held alive; what is gone by the time of `restore` stays
    empty.
    """

    def __init__(self) -> None:
        self._views: dict[str, _View] = {}
        self._planes: dict[str, _Plane] = {}
        self._hidden: list[str] = []

    @property
    def remembered(self) -> bool:
        """Whether there is something to give back."""
        return bool(self._views)

    def remember(self) -> None:
        """Note the layers of all slice views, once: a second call before `restore` changes nothing."""
        if self._views:
            return
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            self._views[composite.GetID()] = _View(
                composite.GetBackgroundVolumeID(),
                composite.GetForegroundVolumeID(),
                composite.GetLabelVolumeID(),
                composite.GetForegroundOpacity(),
                composite.GetLabelOpacity(),
            )
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            self._planes[node.GetID()] = _Plane(
                tuple(slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).ravel()),
                tuple(node.GetFieldOfView()),
                tuple(node.GetXYZOrigin()),
            )

    def alone(self, shown: slicer.vtkMRMLSegmentationNode | None) -> None:
        """Hide every loaded result but `shown`, until `restore`."""
        self._hidden += hide_other_results(shown)

    def restore(self) -> None:
        """Give every view back what it showed."""
        scene = slicer.mrmlScene
        for id, view in self._views.items():
            composite = scene.GetNodeByID(id)
            if composite is None or not composite.IsA("vtkMRMLSliceCompositeNode"):
                continue
            composite.SetBackgroundVolumeID(_present(view.background))
            composite.SetForegroundVolumeID(_present(view.foreground))
            composite.SetLabelVolumeID(_present(view.label))
            composite.SetForegroundOpacity(view.foreground_opacity)
            composite.SetLabelOpacity(view.label_opacity)
        for id, plane in self._planes.items():
            node = scene.GetNodeByID(id)
            if node is not None and node.IsA("vtkMRMLSliceNode"):
                _turn_back(node, plane)
        for id in self._hidden:
            node = scene.GetNodeByID(id)
            if node is not None and node.IsA("vtkMRMLSegmentationNode"):
                node.SetDisplayVisibility(True)
        self.forget()

    def forget(self) -> None:
        """Drop what was remembered: the scene it belonged to is closed."""
        self._views.clear()
        self._planes.clear()
        self._hidden.clear()


def show_layers(
    image: slicer.vtkMRMLVolumeNode, overlay: slicer.vtkMRMLVolumeNode | None, opacity: float, *, fit: bool
) -> None:
    """Show an image with an overlay in all slice views, without a label layer.

    `fit` brings the whole image into view, and turns the views into its planes, also back from those of an
    oblique image before: slice k is then one picture.
    """
    slicer.util.setSliceViewerLayers(
        background=image, foreground=overlay, label=None, foregroundOpacity=opacity if overlay else None
    )
    if not fit:
        return
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.RotateToVolumePlane(image)
    logics = slicer.app.applicationLogic().GetSliceLogics()
    for index in range(logics.GetNumberOfItems() if logics is not None else 0):
        logics.GetItemAsObject(index).FitSliceToBackground()


def set_overlay_opacity(overlay: slicer.vtkMRMLVolumeNode, opacity: float) -> None:
    """Opacity 0 to 1 of the foreground layer in the views that show `overlay`."""
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if composite.GetForegroundVolumeID() == overlay.GetID():
            composite.SetForegroundOpacity(opacity)


def hide_other_results(shown: slicer.vtkMRMLSegmentationNode | None) -> list[str]:
    """Hide the loaded results but `shown`, for outlines of several cases or models would be drawn over one
    another; returns the ids of those that were visible.
    """
    hidden = []
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        display = node.GetDisplayNode()
        if node is not shown and study_nodes.is_result(node) and display is not None:
            if display.GetVisibility():
                hidden.append(node.GetID())
            node.SetDisplayVisibility(False)
    return hidden


def _turn_back(node: slicer.vtkMRMLSliceNode, plane: _Plane) -> None:
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(plane.matrix)
    node.GetSliceToRAS().DeepCopy(matrix)
    node.UpdateMatrices()
    width, height, depth = plane.field
    # The view may have another shape by now: its width counts.
    columns, rows, _slices = node.GetDimensions()
    node.SetFieldOfView(width, width * rows / columns if columns and rows else height, depth)
    node.SetXYZOrigin(*plane.origin)


def _present(id: str | None) -> str | None:
    return id if id and slicer.mrmlScene.GetNodeByID(id) is not None else None
