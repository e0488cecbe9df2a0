"""The slice views' layers: remembered before SFR shows a case, given back afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import slicer
import vtk

_OBLIQUE = 1e-3


@dataclass(frozen=True)
class _View:
    background: str | None
    foreground: str | None
    label: str | None
    foreground_opacity: float
    label_opacity: float


class SliceLayers:
    """What every slice view showed, and how it was turned, when `remember` was called.

    Views and volumes are kept by id, never by node, so that none is held alive; what is gone by the time of
    `restore` stays empty.
    """

    def __init__(self) -> None:
        self._views: dict[str, _View] = {}
        self._turned: dict[str, list[float]] = {}

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
            self._turned[node.GetID()] = list(slicer.util.arrayFromVTKMatrix(node.GetSliceToRAS()).ravel())

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
        for id, elements in self._turned.items():
            node = scene.GetNodeByID(id)
            if node is not None and node.IsA("vtkMRMLSliceNode"):
                matrix = vtk.vtkMatrix4x4()
                matrix.DeepCopy(elements)
                node.GetSliceToRAS().DeepCopy(matrix)
                node.UpdateMatrices()
        self.forget()

    def forget(self) -> None:
        """Drop what was remembered: the scene it belonged to is closed."""
        self._views.clear()
        self._turned.clear()


def show_layers(
    image: slicer.vtkMRMLVolumeNode, overlay: slicer.vtkMRMLVolumeNode | None, opacity: float, *, fit: bool
) -> None:
    """Show an image with an overlay in all slice views, without a label layer.

    `fit` brings the whole image into view, and turns the views into its planes where it lies oblique: slice k
    is then one picture.
    """
    slicer.util.setSliceViewerLayers(
        background=image, foreground=overlay, label=None, foregroundOpacity=opacity if overlay else None
    )
    if not fit:
        return
    if is_oblique(image):
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


def is_oblique(volume: slicer.vtkMRMLVolumeNode) -> bool:
    """Whether the axes of a volume are turned against those of the patient."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    axes = slicer.util.arrayFromVTKMatrix(matrix)[:3, :3]
    axes = np.abs(axes / np.linalg.norm(axes, axis=0))
    return bool(np.abs(axes - np.round(axes)).max() > _OBLIQUE)


def _present(id: str | None) -> str | None:
    return id if id and slicer.mrmlScene.GetNodeByID(id) is not None else None
