"""One case under review: its image, its segmentation to correct and its doubt, as nodes; and the edits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk
import slicer
import vtk
from slicer.util import VTKObservationMixin

from SFRCore.errors import InputError
from SFRCore.study import Study
from SFRCore.volumes import VolumeError
from SFRCore.volumes.reading import read_any

from . import doubt, scene, study_nodes
from .doubtful_slices import doubtful_slices, doubtful_spot, jump_to
from .drafts import Draft, rescue, unchecked_label
from .segment_labels import fingerprint, voxel_times
from .segmentation_nodes import show_label, show_outlines
from .slice_layers import show_layers

REVIEW = "review"


class CaseView(VTKObservationMixin):
    """The nodes of a case under review. They are looked up by id each time, so that none is held alive.

    `edited` says whether the user changed the segmentation since it was shown, `unsaved` whether some of that
    is not in the draft yet. `onChange()` is called at the first edit after each saving and when one of the
    nodes goes; by then the draft is saved.
    """

    def __init__(self, study: Study, id: str, onChange: Callable[[], None] | None = None) -> None:
        """Load a case; raises `InputError` where it has no result or its files cannot be read."""
        VTKObservationMixin.__init__(self)
        result = study.newest_result(id)
        if result is None:
            raise InputError(f"Case {id} has no result to review.", hint="Run the study in step 3 first.")
        self.study, self.id, self.result = study, id, result
        self.geometry = scene.case_geometry(study, id)
        self.places = doubtful_slices(result, self.geometry)
        self.place = 0
        self.note = ""
        self.edited = self.unsaved = False
        self.failure: Exception | None = None
        self._onChange = onChange
        self._draft = Draft(study, id)
        self._label, self._confidence = scene.maps_of(result)
        self._image = self._segmentation = self._doubt = ""
        self._own_image = False
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @property
    def image(self) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The image, None where it was removed from the scene."""
        return slicer.mrmlScene.GetNodeByID(self._image) if self._image else None

    @property
    def segmentation(self) -> slicer.vtkMRMLSegmentationNode | None:
        """The segmentation to correct, None where it was removed from the scene."""
        return slicer.mrmlScene.GetNodeByID(self._segmentation) if self._segmentation else None

    @property
    def overlay(self) -> slicer.vtkMRMLScalarVolumeNode | None:
        """The doubt, None where it was removed from the scene."""
        return slicer.mrmlScene.GetNodeByID(self._doubt) if self._doubt else None

    def show(self, *, with_doubt: bool, opacity: float, threshold: float, fit: bool) -> None:
        """Bring the case into the slice views."""
        if self.image is None:
            return
        overlay = self.overlay if with_doubt else None
        show_layers(self.image, overlay, opacity, fit=fit)
        if self.overlay is not None:
            doubt.set_threshold(self.overlay, threshold)
            doubt.set_legend_visible(self.overlay, with_doubt)

    def jump(self, place: int) -> None:
        """Bring the doubtful slice number `place` into the views, 0 the most doubtful; counts in a circle."""
        self.place = place % len(self.places)
        here = self.places[self.place]
        jump_to(self.geometry, doubtful_spot(self._confidence, self._label, here))

    def least_certain(self) -> str:
        """The id of the segment with the smallest expected Dice."""
        expected = self.result.expected_dice_by_structure
        value = min(self.study.values, key=lambda value: expected.get(str(value), 1.0))
        return f"SFR_{value}"

    def label(self) -> sitk.Image:
        """The segmentation as a label map, checked; raises `InputError` as `label_of` does."""
        node = self.segmentation
        if node is None:
            raise InputError(
                f"The segmentation of case {self.id} was removed from the scene.",
                hint="Choose the case again: corrections are kept in the study.",
            )
        return scene.node_label(self.study, node, self.geometry, marked=True)

    def keep(self) -> Path | None:
        """Save unsaved edits as the draft; returns where somebody else's draft was put aside, else None.

        Raises `SFRError` where they cannot be saved; they are then still unsaved.
        """
        if not self.unsaved or self.segmentation is None:
            return None
        aside = self._draft.save(unchecked_label(self.segmentation, self.geometry))
        self._note_saved(self.segmentation)
        return aside

    def rescue(self) -> Path | None:
        """Write unsaved edits outside the study, for when it cannot take them; None where there are none."""
        if not self.unsaved or self.segmentation is None:
            return None
        path = rescue(unchecked_label(self.segmentation, self.geometry), self.study, self.id)
        self._note_saved(self.segmentation)
        return path

    def accept_corrected(self) -> Path:
        """Make the segmentation as it is now the newest label of the case; returns its file.

        Raises `SFRError` where it cannot be used or written; the edits stay.
        """
        label = self.label()
        self._draft.put_aside_others()
        path = self.study.accept_corrected(self.id, label)
        self.edited = False
        self._note_saved(self.segmentation)
        return path

    def start_over(self) -> None:
        """Throw the corrections away and show the model's result again."""
        self._draft.discard()
        self.removeObservers()
        study_nodes.remove(self.segmentation)
        self._segmentation = self._show_segmentation().GetID()
        self._observe()

    def newer_result(self) -> bool:
        """Whether a model made another result of the case since this one was shown."""
        newest = self.study.newest_result(self.id)
        return newest is not None and newest.time > self.result.time

    def close(self) -> None:
        """Remove the nodes that were made for the review, but for an image that the user asked for or drew on
        since.

        Edits that could not be saved stay in the scene.
        """
        self.removeObservers()
        node = self.segmentation
        if self.unsaved and node is not None:
            node.SetName(f"{self.id} corrections (not saved)")
            node.SetAttribute(study_nodes.KIND, "unsaved")
            _save_with_scene(node, True)
        else:
            study_nodes.remove(node)
        study_nodes.remove(self.overlay)
        image = self.image
        needed = (self.unsaved and node is not None) or image is None or scene.is_used(image)
        if self._own_image and not needed:
            study_nodes.remove(image)
        self.let_go()

    def let_go(self) -> None:
        """Forget the nodes without removing them: the scene is being closed."""
        self.removeObservers()
        self._image = self._segmentation = self._doubt = ""

    def _load(self) -> None:
        before = {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")}
        self._image = scene.load_image(self.study, self.id, keep=False).GetID()
        self._own_image = self._image not in before
        self._segmentation = self._show_segmentation().GetID()
        self._doubt = self._show_doubt().GetID()
        self._observe()

    def _show_segmentation(self) -> slicer.vtkMRMLSegmentationNode:
        label, self.note, self.edited = self._label, "", False
        path = self._draft.path
        if path is not None:
            try:
                kept = read_any(path)
            except VolumeError:
                self.note = f"The corrections kept in {path} cannot be read."
            else:
                label, self.edited = kept, True
        node = show_label(label, self.study.structures, f"{self.id} (in review)")
        show_outlines(node)
        _save_with_scene(node, False)
        study_nodes.mark(node, self.study, self.id, REVIEW)
        study_nodes.put_into_folder(node, self.study)
        self._note_saved(node)
        return node

    def _show_doubt(self) -> slicer.vtkMRMLScalarVolumeNode:
        structures = len(self.study.structures)
        node = doubt.show_doubt(self._confidence, f"{self.id} doubt", structures=structures, threshold=0.0)
        doubt.show_legend(node, "Doubt")
        study_nodes.mark(node, self.study, self.id, study_nodes.DOUBT)
        study_nodes.put_into_folder(node, self.study)
        return node

    def _observe(self) -> None:
        events = slicer.vtkSegmentation
        for event in (events.SourceRepresentationModified, events.SegmentAdded, events.SegmentRemoved):
            self.addObserver(self.segmentation, event, self._on_edited)
        self.addObserver(self.segmentation, events.SegmentModified, self._on_modified)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self._on_removed)

    def _on_edited(self, caller: object, event: str) -> None:
        first = not self.unsaved
        self.edited = self.unsaved = True
        if first and self._onChange is not None:
            self._onChange()

    def _on_modified(self, caller: object, event: str) -> None:
        """A new name or colour, or undo and redo, which say nothing else."""
        node = self.segmentation
        if node is not None and not self.unsaved and self._is_changed(node):
            self._on_edited(caller, event)

    def _note_saved(self, node: slicer.vtkMRMLSegmentationNode) -> None:
        self.unsaved = False
        self._saved, self._saved_times = fingerprint(node), voxel_times(node)

    def _is_changed(self, node: slicer.vtkMRMLSegmentationNode) -> bool:
        """Whether voxels are others than those saved last; they are read only where they were touched."""
        times = voxel_times(node)
        if times == self._saved_times:
            return False
        if fingerprint(node) != self._saved:
            return True
        self._saved_times = times
        return False

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_removed(self, caller: object, event: str, node: slicer.vtkMRMLNode) -> None:
        id = node.GetID()
        if not id or id not in (self._image, self._segmentation, self._doubt):
            return
        if id == self._segmentation:
            try:
                self.keep()
            except Exception as error:
                self.failure = error
                path = self.rescue()
                self.note = f"Your corrections of case {self.id} were kept in {path}."
            self._segmentation = ""
        elif id == self._image:
            self._image = ""
        else:
            self._doubt = ""
        if self._onChange is not None:
            self._onChange()


def _save_with_scene(node: slicer.vtkMRMLSegmentationNode, save: bool) -> None:
    node.SetSaveWithScene(save)
    if node.GetDisplayNode() is not None:
        node.GetDisplayNode().SetSaveWithScene(save)
