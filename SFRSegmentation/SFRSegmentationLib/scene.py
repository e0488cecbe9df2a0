"""The bridge between the MRML scene and a study: loaded nodes become cases, results become nodes.

It imports no widget and shows no dialog; what cannot be used raises `InputError` with a reason and a hint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import SimpleITK as sitk
import slicer

from SFRCore.errors import InputError, SFRError
from SFRCore.study import Case, CaseResult, Study
from SFRCore.study.case import case_id_from
from SFRCore.study.pairing import image_stem
from SFRCore.volumes import Geometry, image_info, read_image
from SFRCore.volumes.reading import read_any

from . import study_nodes
from .label_checks import check_drawn_on, check_not_empty, shows
from .node_geometry import geometry_of
from .segment_labels import fingerprint, label_of
from .segmentation_nodes import set_status, show_label, show_outlines
from .volume_nodes import (
    case_id_of,
    check_scalar,
    file_behind,
    has_other_voxels,
    image_of,
    note_voxels,
    sequence_of,
    show_image,
)

_LOADED_AS = "SFR.LoadedAs"
_KEPT = "SFR.Kept"
_SAMPLE = 20
KIND_NAMES = {"prediction": "prediction", "pseudo_label": "pseudo-label"}


def add_volume(
    study: Study,
    volume: slicer.vtkMRMLScalarVolumeNode,
    segmentation: slicer.vtkMRMLNode | None = None,
    *,
    role: str | None = None,
    id: str | None = None,
    resample: bool = False,
    other_volume: bool = False,
    empty: bool = False,
) -> Case:
    """Add a loaded volume to a study, with a segmentation or label map of it as its label.

    The study refers to the volume's file where there is one that holds exactly this volume; else the volume
    is copied into the study, with linear parent transforms applied to its grid. Of a sequence the frame that
    is shown is taken. `role` and `resample` are those of `Study.add`. `other_volume` allows a segmentation
    that was drawn on another volume of the scene, `empty` one without a voxel.

    Raises `InputError` for what is no scalar volume, a volume that is a case already (unless it is to have
    another `id`), a non-linear or shearing transform, or a label that does not fit (see `label_of`,
    `check_drawn_on`, `check_not_empty`); the study is then unchanged.
    """
    check_scalar(volume)
    if id is None:
        _refuse_twin(study, volume)
    label = None
    if segmentation is not None:
        if not other_volume:
            check_drawn_on(segmentation, volume.GetName(), lambda source: source.GetID() == volume.GetID())
        label = node_label(study, segmentation, geometry_of(volume), resample=resample)
        if not empty:
            check_not_empty(label, segmentation)
    path = file_behind(volume)
    if path is not None:
        wanted = id or _id_of_file(study, path)
        case = study.add(path, label=label, role=role, id=wanted, resample=resample)
    else:
        wanted = id or _free_id(study, case_id_of(volume))
        case = study.add(image_of(volume), label=label, role=role, id=wanted, resample=resample)
    study_nodes.mark(volume, study, case.id, "image")
    note_voxels(volume)
    return case


def set_label(
    study: Study,
    id: str,
    segmentation: slicer.vtkMRMLNode,
    *,
    origin: str = "expert",
    resample: bool = False,
    other_volume: bool = False,
    empty: bool = False,
) -> Path:
    """Make a segmentation or label map the newest label of a case; `other_volume`, `empty` and what is raised
    are as for `add_volume`.
    """
    label = _label_of_case(study, id, segmentation, resample, other_volume, empty)
    return study.accept_label(id, label, origin, resample=resample)


def set_reference(
    study: Study,
    id: str,
    segmentation: slicer.vtkMRMLNode,
    *,
    resample: bool = False,
    other_volume: bool = False,
    empty: bool = False,
) -> Path:
    """Keep a segmentation or label map as what only evaluation reads; otherwise as `set_label`."""
    label = _label_of_case(study, id, segmentation, resample, other_volume, empty)
    return study.set_reference(id, label, resample=resample)


def node_label(
    study: Study,
    node: slicer.vtkMRMLNode,
    geometry: Geometry,
    *,
    resample: bool = False,
    marked: bool = False,
) -> sitk.Image:
    """A segmentation, or a label map in the study's values, as a label map; `label_of` says how and what is
    refused. A label map is checked when the study takes it.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        return label_of(
            node,
            study.structures,
            geometry,
            resample=resample,
            others_as_background=study.other_as_background,
            marked=marked,
        )
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        return image_of(node)
    raise InputError(
        f"'{node.GetName()}' is neither a segmentation nor a label map.",
        hint="Choose a segmentation of the volume.",
    )


def case_geometry(study: Study, id: str) -> Geometry:
    """The voxel grid of a case's image, in the world; raises `InputError` where the image cannot be read."""
    return image_info(study.image_path(id)).geometry


def load_image(study: Study, id: str, *, keep: bool = True) -> slicer.vtkMRMLScalarVolumeNode:
    """The image of a case as a volume node: one that is loaded already, else a new one read from the study.

    A loaded volume counts where it was added as this case or is this case's file, still lies on its grid and
    was not changed since.
    With `keep` the node is the user's from now on: `is_used` says so to those who would remove it.
    """
    node = _loaded_image(study, id) or _new_image(study, id)
    if keep:
        node.SetAttribute(_KEPT, "1")
    return node


def is_used(image: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether an image is the user's, whoever loaded it first: asked for, or referred to by what they drew
    or measured on it.
    """
    if image.GetAttribute(_KEPT) is not None:
        return True
    nodes = slicer.util.getNodesByClass("vtkMRMLDisplayableNode")
    own = (node for node in nodes if node is not image and node.GetAttribute(study_nodes.KIND) is None)
    return any(slicer.mrmlScene.IsNodeReferencingNodeID(node, image.GetID()) for node in own)


def load_result(study: Study, id: str, kind: str = "prediction") -> slicer.vtkMRMLSegmentationNode:
    """A prediction or pseudo-label of a case as a segmentation node in the study's folder.

    One that was loaded before is replaced, unless it was edited since: then it stays, as "... (edited)", and
    is the user's. Raises `InputError` where the case has none.
    """
    result = study.result(id, kind)
    if result is None:
        raise InputError(
            f"Case {id} has no {KIND_NAMES.get(kind, kind)} yet.", hint="Run the study in step 3 first."
        )
    label = read_any(result.label_path)
    for old in study_nodes.find(study, id, kind, "vtkMRMLSegmentationNode"):
        _replace(old)
    node = show_label(label, study.structures, f"{id} {KIND_NAMES[kind]}")
    show_outlines(node, fill=0.3)
    set_status(node, study.case(id).review)
    study_nodes.mark(node, study, id, kind)
    node.SetAttribute(_LOADED_AS, fingerprint(node))
    study_nodes.put_into_folder(node, study)
    return node


def memory_of(study: Study, ids: Sequence[str], *, images: bool) -> float:
    """About how many bytes the predictions of some cases take in the scene, with their images or without.

    At most twenty cases, spread evenly, are looked at; those that cannot be read are left out.
    """
    sample = ids[:: -(-len(ids) // _SAMPLE)]
    found = []
    for id in sample:
        try:
            image = image_info(study.image_path(id))
        except SFRError:
            continue
        found.append(math.prod(image.size) * (1 + images * _bytes_of(image.pixel)))
    return len(ids) * sum(found) / len(found) if found else 0.0


def maps_of(result: CaseResult) -> tuple[sitk.Image, sitk.Image]:
    """Label map and confidence map of a result."""
    return read_any(result.label_path), read_any(result.confidence_path)


def _replace(old: slicer.vtkMRMLSegmentationNode) -> None:
    """Remove a result that was loaded before; where it is not what was loaded, leave it to the user."""
    if old.GetAttribute(_LOADED_AS) == fingerprint(old):
        study_nodes.remove(old)
        return
    old.SetName(slicer.mrmlScene.GenerateUniqueName(f"{old.GetName()} (edited)"))
    study_nodes.unmark(old)


def _bytes_of(pixel: str) -> float:
    """Bytes of a pixel by its type's name ("16-bit signed integer"); four where it does not say."""
    bits = pixel.partition("-bit")[0]
    return int(bits) / 8 if bits.isdecimal() else 4.0


def _loaded_image(study: Study, id: str) -> slicer.vtkMRMLScalarVolumeNode | None:
    path = study.image_path(id)
    geometry = image_info(path).geometry
    for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
        if _is_image_of(node, study, id, path, geometry):
            return node
    return None


def _new_image(study: Study, id: str) -> slicer.vtkMRMLScalarVolumeNode:
    node = show_image(read_image(study.image_path(id)), id)
    study_nodes.mark(node, study, id, "image")
    note_voxels(node)
    study_nodes.put_into_folder(node, study)
    return node


def _is_image_of(
    node: slicer.vtkMRMLScalarVolumeNode, study: Study, id: str, path: Path, geometry: Geometry
) -> bool:
    marked = study_nodes.is_marked(node, study, None, "image")
    if marked and not study_nodes.is_marked(node, study, id, "image"):
        return False
    try:
        check_scalar(node)
        behind = None if marked else file_behind(node)
        if not marked and (behind is None or behind.resolve() != path.resolve()):
            return False
        return not geometry_of(node).difference(geometry) and not has_other_voxels(node)
    except InputError:
        return False


def _refuse_twin(study: Study, volume: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Raise `InputError` for a volume that was added before; of a sequence, for a frame that was."""
    if not study_nodes.is_marked(volume, study, None, "image"):
        return
    id = volume.GetAttribute(study_nodes.CASE)
    if id in study.cases and (sequence_of(volume) is None or case_id_of(volume) == id):
        raise InputError(
            f"The study already has a case called {id}, and '{volume.GetName()}' is its image.",
            hint="To give it a label, select the case in the table and press 'Label of the selected case'.",
        )


def _label_of_case(
    study: Study, id: str, node: slicer.vtkMRMLNode, resample: bool, other_volume: bool, empty: bool
) -> sitk.Image:
    geometry = case_geometry(study, id)
    if not other_volume:
        check_drawn_on(node, id, lambda source: _is_case(source, study, id))
    label = node_label(study, node, geometry, resample=resample)
    if not empty:
        check_not_empty(label, node)
    return label


def _is_case(volume: slicer.vtkMRMLVolumeNode, study: Study, id: str) -> bool:
    """Whether a volume is the image of a case: added as it, its file, or with the same voxels."""
    if study_nodes.is_marked(volume, study, None, "image"):
        return study_nodes.is_marked(volume, study, id, "image")
    path, behind = study.image_path(id), file_behind(volume)
    return (behind is not None and behind.resolve() == path.resolve()) or shows(volume, read_image(path))


def _id_of_file(study: Study, path: Path) -> str | None:
    """None, which takes the file's own name, unless another file has taken that: then one with a number."""
    wanted = case_id_from(image_stem(path))
    twin = study.cases.get(wanted)
    if twin is None or twin.image == str(path.resolve()):
        return None
    return _free_id(study, wanted)


def _free_id(study: Study, wanted: str | None) -> str | None:
    """`wanted`, with a number behind it where a case is called so: names in a scene need not differ."""
    if wanted is None:
        return None
    taken = {id.casefold() for id in study.cases}
    free, number = wanted, 2
    while free.casefold() in taken:
        free, number = f"{wanted}_{number}", number + 1
    return free
