"""Volumes of awkward geometry, their label maps, and studies with results."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer
from headless import scripted

from SFRCore.study import Structure, Study
from SFRCore.volumes import Geometry

ROOT = Path(__file__).resolve().parents[2]
STRUCTURES = [
    Structure(4, "Left atrium", (230, 75, 53), "SCT^82471001^Left atrium"),
    Structure(9, "Appendage", (77, 187, 213)),
]
SHAPE = (6, 9, 11)


def turned(spacing=(0.7, 0.9, 2.5), degrees=(10, 20, -15), origin=(-31.5, 12.25, 101.0)):
    """(4, 4) IJK to RAS of an oblique, anisotropic volume."""
    rotation = np.eye(3)
    for (i, j), angle in zip(((1, 2), (0, 2), (0, 1)), np.deg2rad(degrees), strict=True):
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i] = np.sin(angle)
        turn[i, j] = -turn[j, i]
        rotation = turn @ rotation
    matrix = np.eye(4)
    matrix[:3, :3] = rotation @ np.diag(spacing)
    matrix[:3, 3] = origin
    return matrix


def flipped():
    """(4, 4) IJK to RAS, left-handed, with two axes swapped."""
    matrix = np.zeros((4, 4))
    matrix[0, 1], matrix[1, 0], matrix[2, 2], matrix[3, 3] = -0.8, 1.1, -3.0, 1
    matrix[:3, 3] = 40, -20, 15
    return matrix


def plain():
    """(4, 4) IJK to RAS of an axial volume as most scanners give it."""
    matrix = np.diag([-1.0, -1.0, 2.0, 1.0])
    matrix[:3, 3] = 5, 6, -7
    return matrix


GEOMETRIES = {"oblique": turned(), "flipped": flipped(), "plain": plain()}


def grey(seed=0, shape=SHAPE):
    """(Z, Y, X) int16 voxels, each different enough to show a swap of axes."""
    return np.random.default_rng(seed).integers(-50, 500, shape).astype(np.int16)


def labelArray(shape=SHAPE):
    """(Z, Y, X) uint8 with 4 and 9, in the first and the last voxel too."""
    label = np.zeros(shape, np.uint8)
    label[1:4, 2:6, 3:8] = 4
    label[3:5, 5:8, 1:3] = 9
    label[0, 0, 0], label[-1, -1, -1] = 4, 9
    return label


def volumeNode(matrix, name="scan", seed=0, shape=SHAPE):
    return slicer.util.addVolumeFromArray(grey(seed, shape), matrix, name)


def geometry(matrix, shape=SHAPE):
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    return Geometry(shape[::-1], tuple(spacing), tuple(lps[:3, 3]), tuple((lps[:3, :3] / spacing).ravel()))


def image(array, matrix):
    return geometry(matrix, array.shape).apply(sitk.GetImageFromArray(array))


def segmentationNode(volume, label, names, overlapping=False):
    """A segmentation as a user makes it: one segment after the other, drawn on `volume`."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for value, name in names.items():
        id = node.GetSegmentation().AddEmptySegment("", name)
        mask = (label == value) | (overlapping & (label > 0))
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(np.uint8), node, id, volume)
    return node


def studyOf(folder, structures=STRUCTURES, **options):
    return Study.create(folder, structures=structures, **options)


def addCase(study, id, matrix=GEOMETRIES["plain"], seed=0, shape=SHAPE, **options):
    return study.add(image(grey(seed, shape), matrix), id=id, **options)


def addResult(
    study, id, matrix=GEOMETRIES["plain"], kind="pseudo_label", label=None, doubts=None, dice=0.8, **numbers
):
    """A result as a run writes it; `doubts` (by slice, 0..1) are put near the label of that slice."""
    label = labelArray() if label is None else label
    depth = label.shape[0]
    doubts = [0.0] * depth if doubts is None else doubts
    confidence = np.full(label.shape, 255, np.uint8)
    for k, doubt in enumerate(doubts):
        confidence[k, 4:6, 3:6] = round(255 * (1 - doubt))
    slices = [{"index": k, "mean_confidence": 1 - d / 9, "doubt": 6 * d} for k, d in enumerate(doubts)]
    values = [structure.value for structure in study.structures]
    numbers = {
        "mean_confidence": 0.9,
        "expected_dice": dice,
        "expected_dice_by_structure": {str(value): dice for value in values},
        "volume_ml": {str(value): float((label == value).sum()) * 0.002 for value in values},
        "slices": slices,
        "doubtful_slice": int(np.argmax(doubts)),
        "slice_axis": 2,
        "made_by": {"model": "test"},
        **numbers,
    }
    return study.write_result(id, kind, image(label, matrix), image(confidence, matrix), numbers)


DOUBTS = {"a": [0, 0.3, 0, 0, 0.6, 0], "b": [0, 0, 0.4, 0, 0, 0], "c": [0, 0, 0, 0.2, 0, 0]}
_templates = {}


def cohortOf(folder, kind="pseudo_label"):
    """A study of three unlabeled cases with results, "a" the least certain; made once, then copied."""
    if kind not in _templates:
        study = studyOf(Path(tempfile.mkdtemp()) / "study")
        for position, (id, doubts) in enumerate(DOUBTS.items()):
            addCase(study, id, seed=position)
            addResult(study, id, kind=kind, doubts=doubts, dice=0.5 + 0.1 * position)
        _templates[kind] = study.root
    return Path(shutil.copytree(_templates[kind], folder))


def openPanel():
    """The panel for one test, not reloaded: that takes longer than most tests."""
    name = "SFRSegmentation"
    if name not in slicer.app.moduleManager().modulesNames():
        scripted.loadScriptedModule(str(ROOT / name / f"{name}.py"))
    panel = slicer.util.getModuleWidget(name)
    questions = panel.panel.questions
    panel.panel.clearError()
    panel.parent.enter()
    yield panel
    panel = slicer.util.getModuleWidget(name)
    panel.panel.questions = questions
    panel.logic.closeStudy()
    panel.parent.exit()
