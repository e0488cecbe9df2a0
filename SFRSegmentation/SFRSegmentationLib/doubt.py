"""Doubt (1 - confidence) as a coloured overlay: its colours, legend, and what is shown of it."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
import slicer

from SFRCore.volumes import Geometry

from .node_geometry import index_to_ras

COLORS = "SFR doubt"
_RAMP = ((0.0, (1.0, 0.95, 0.35)), (0.5, (0.98, 0.55, 0.15)), (1.0, (0.70, 0.05, 0.45)))
_STEPS = 256


def largest_doubt(structures: int) -> float:
    """Where the scale of doubt ends: with C classes (structures and background) a model that knows nothing
    says 1/C for each, so doubt is at most 1 - 1/C.
    """
    return 1.0 - 1.0 / (structures + 1)


def doubt_of(confidence: np.ndarray) -> np.ndarray:
    """Doubt, float32 in 0..1, from confidence of 0..255, of any shape."""
    doubt = np.subtract(255, confidence, dtype=np.float32)
    doubt /= 255
    return doubt


def show_doubt(
    confidence: sitk.Image, name: str, *, structures: int, threshold: float
) -> slicer.vtkMRMLScalarVolumeNode:
    """A new volume with the doubt of a case, coloured from 0 to `largest_doubt`, on the confidence's voxels.

    It is made anew from the study whenever it is needed, so it is not saved with the scene.
    """
    matrix = index_to_ras(Geometry.of(confidence))
    node = slicer.util.addVolumeFromArray(doubt_of(sitk.GetArrayViewFromImage(confidence)), matrix, name)
    node.SetSaveWithScene(False)
    display = node.GetDisplayNode()
    display.SetSaveWithScene(False)
    display.SetAndObserveColorNodeID(_colors().GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(0.0, largest_doubt(structures))
    display.SetInterpolate(False)
    set_threshold(node, threshold)
    return node


def set_threshold(node: slicer.vtkMRMLScalarVolumeNode, threshold: float) -> None:
    """Show only doubt of at least `threshold` (0..1)."""
    display = node.GetDisplayNode()
    display.AutoThresholdOff()
    display.SetThreshold(threshold, 1.0)
    display.ApplyThresholdOn()


def show_legend(node: slicer.vtkMRMLScalarVolumeNode, title: str) -> None:
    """A colour legend of the doubt in the slice views, with numbers of two decimals."""
    legend = slicer.modules.colors.logic().AddDefaultColorLegendDisplayNode(node)
    if legend is None:
        return
    legend.SetTitleText(title)
    legend.SetLabelFormat("%.2f")
    legend.SetNumberOfLabels(3)
    legend.SetSize(0.12, 0.4)
    legend.SetSaveWithScene(False)


def set_legend_visible(node: slicer.vtkMRMLScalarVolumeNode, visible: bool) -> None:
    """Show or hide the legend of a doubt volume."""
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(node)
    if legend is not None:
        legend.SetVisibility(visible)


def _colors() -> slicer.vtkMRMLColorTableNode:
    """The colour table of doubt, one for the scene: yellow, orange, purple, for colour-blind eyes too."""
    node = slicer.mrmlScene.GetSingletonNode(COLORS, "vtkMRMLColorTableNode")
    if node is not None:
        return node
    node = slicer.vtkMRMLColorTableNode()
    node.SetName(COLORS)
    node.SetSingletonTag(COLORS)
    node.SetTypeToUser()
    node.SetNumberOfColors(_STEPS)
    places = [place for place, _color in _RAMP]
    for step in range(_STEPS):
        share = step / (_STEPS - 1)
        color = [float(np.interp(share, places, part)) for part in zip(*(c for _p, c in _RAMP), strict=True)]
        node.SetColor(step, f"{share:.2f}", *color, 1.0)
    node.SetSaveWithScene(False)
    return slicer.mrmlScene.AddNode(node)
