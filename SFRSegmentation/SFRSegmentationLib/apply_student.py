"""A trained student on any loaded volume that is in no study: in the background, shown when it is done."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import slicer

from SFRCore.errors import InputError
from SFRCore.runtime.files import read_json
from SFRCore.study import Structure, Study
from SFRCore.volumes import read_label, write_volume

from .chores import Chore
from .segmentation_nodes import show_label, show_outlines
from .volume_nodes import check_scalar, file_behind, image_of
from .worker import start_command

STUDENT = "student.json"
_ASKED = "SFR.Applied"


@dataclass(frozen=True)
class Application:
    """One volume that is being segmented; `folder` is temporary and holds what is exchanged."""

    chore: Chore
    folder: Path
    output: Path
    model: Path
    name: str

    @property
    def volume(self) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The volume, None where it is gone: another one may have its id by now, so it was marked."""
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
            if node.GetAttribute(_ASKED) == str(self.folder):
                return node
        return None


def students(study: Study) -> list[Path]:
    """The folders of the study's trained students, the newest first."""
    found = [path for path in study.models_dir.glob(f"*/{STUDENT}") if path.is_file()]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def structures_of(model: Path) -> list[Structure]:
    """What a student segments; raises `InputError` for a folder that is no student's."""
    try:
        described = read_json(model / STUDENT)["structures"]
        return [Structure.from_dict(item, position=n) for n, item in enumerate(described)]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{model} is not a trained model.", hint="Choose a folder with student.json in it."
        ) from error


def start_apply(model: Path, volume: slicer.vtkMRMLScalarVolumeNode) -> Application:
    """Start `sfr predict` on a loaded volume; its own file is read where that holds exactly this volume.

    Raises `InputError` for what is no scalar volume, a non-linear transform, a folder that is no student's.
    """
    check_scalar(volume)
    structures_of(model)
    folder = Path(tempfile.mkdtemp(prefix="SFR-apply-", dir=slicer.app.temporaryPath))
    try:
        image = file_behind(volume) or write_volume(image_of(volume), folder / "image.nrrd")
        output = folder / "prediction.nrrd"
        words = ["predict", "--model", str(model), "--image", str(image), "--output", str(output)]
        chore = start_command(words)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    volume.SetAttribute(_ASKED, str(folder))
    return Application(chore, folder, output, model, volume.GetName())


def show_applied(done: Application) -> slicer.vtkMRMLSegmentationNode:
    """The result as a segmentation, beside its volume in the subject hierarchy where that is still there."""
    structures = structures_of(done.model)
    label = read_label(done.output, [structure.value for structure in structures])
    node = show_label(label, structures, f"{done.name} prediction")
    show_outlines(node, fill=0.3)
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    volume = done.volume
    beside = hierarchy.GetItemByDataNode(volume) if volume is not None else 0
    parent = hierarchy.GetItemParent(beside) if beside else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        hierarchy.CreateItem(parent, node)
    if volume is not None:
        node.SetNodeReferenceID("SFR.source", volume.GetID())
    return node


def tidy(done: Application) -> None:
    """Remove the temporary files, and the mark of the volume."""
    volume = done.volume
    if volume is not None:
        volume.RemoveAttribute(_ASKED)
    shutil.rmtree(done.folder, ignore_errors=True)
