"""Nodes that belong to a study: marked with it, found again, and kept in its subject-hierarchy folder."""

from __future__ import annotations

from pathlib import Path

import slicer

from SFRCore.study import Study

STUDY = "SFR.Study"
CASE = "SFR.CaseId"
KIND = "SFR.Kind"
DOUBT = "doubt"
_RESULT_KINDS = ("prediction", "pseudo_label")


def mark(node: slicer.vtkMRMLNode, study: Study, id: str, kind: str) -> None:
    """Note on a node which study, case and kind of thing (image, review, doubt, prediction, ...) it is."""
    node.SetAttribute(STUDY, str(study.root))
    node.SetAttribute(CASE, id)
    node.SetAttribute(KIND, kind)


def unmark(node: slicer.vtkMRMLNode) -> None:
    """Leave a node to the user: nothing of the study finds, replaces or removes it any more."""
    for name in (STUDY, CASE, KIND):
        node.RemoveAttribute(name)


def find(study: Study, id: str | None, kind: str, node_class: str) -> list[slicer.vtkMRMLNode]:
    """The nodes of one kind in the scene, of one case or of all."""
    return [node for node in slicer.util.getNodesByClass(node_class) if is_marked(node, study, id, kind)]


def is_marked(node: slicer.vtkMRMLNode, study: Study, id: str | None, kind: str) -> bool:
    """Whether a node was marked as this kind of thing of a study, of one case or (None) of any."""
    same = node.GetAttribute(STUDY) == str(study.root) and node.GetAttribute(KIND) == kind
    return same and id in (None, node.GetAttribute(CASE))


def is_result(node: slicer.vtkMRMLNode) -> bool:
    """Whether a node is a loaded result, of whatever study."""
    return node.GetAttribute(KIND) in _RESULT_KINDS


def put_into_folder(node: slicer.vtkMRMLNode, study: Study) -> int:
    """Put a node into the study's folder of the subject hierarchy, made at need; returns the node's item."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folder = _folder(hierarchy, study)
    item = hierarchy.GetItemByDataNode(node)
    if not item:
        return hierarchy.CreateItem(folder, node)
    hierarchy.SetItemParent(item, folder)
    return item


def remove(node: slicer.vtkMRMLNode | None) -> None:
    """Remove a node and what only it uses (its displays, its storage) from the scene, where it is in one."""
    if node is None or node.GetScene() is None:
        return
    scene = node.GetScene()
    belongings = []
    if node.IsA("vtkMRMLDisplayableNode"):
        belongings = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        belongings.append(node.GetStorageNode())
    hierarchy = scene.GetSubjectHierarchyNode()
    item = hierarchy.GetItemByDataNode(node) if hierarchy is not None else 0
    if item:
        hierarchy.RemoveItem(item, False)
    if node.GetScene() is scene:
        scene.RemoveNode(node)
    for belonging in belongings:
        if belonging is not None and belonging.GetScene() is scene:
            scene.RemoveNode(belonging)


def _folder(hierarchy: slicer.vtkMRMLSubjectHierarchyNode, study: Study) -> int:
    top = hierarchy.GetSceneItemID()
    for item in slicer.util.getSubjectHierarchyItemChildren(top):
        if hierarchy.GetItemAttribute(item, STUDY) == str(study.root):
            return item
    folder = hierarchy.CreateFolderItem(top, f"SFR: {Path(study.root).name}")
    hierarchy.SetItemAttribute(folder, STUDY, str(study.root))
    return folder
