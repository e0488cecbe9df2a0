"""Drafts: edits that nobody accepted yet, kept in the study so that they outlive scene and crash."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer

from SFRCore.study import Study
from SFRCore.study.folder import FileStamp, file_stamp
from SFRCore.volumes import Geometry, write_volume

from .places import rescued_folder
from .segment_labels import segment_mask
from .segment_matching import marked_value


class Draft:
    """The draft of one case as this session knows it.

    A draft that changed on the disk in the meantime is somebody else's: it is set aside, never overwritten.
    """

    def __init__(self, study: Study, id: str) -> None:
        self.study, self.id = study, id
        self._stamp = self._on_disk()

    @property
    def path(self) -> Path | None:
        """The draft on the disk, None where there is none."""
        return self.study.draft(self.id)

    def save(self, label: sitk.Image) -> Path | None:
        """Write the draft; returns where another one was put aside, else None.

        Raises `InputError` in a read-only study, `DiskFull`.
        """
        aside = self.put_aside_others()
        self.study.save_draft(self.id, label)
        self._stamp = self._on_disk()
        return aside

    def put_aside_others(self) -> Path | None:
        """Rename a draft that this session has neither read nor written; returns its new path, else None."""
        path = self.path
        if path is None or self._on_disk() == self._stamp:
            return None
        self.study.check_writable()
        aside = path.with_name(f"draft-{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}.nrrd")
        os.replace(path, aside)
        self._stamp = None
        return aside

    def discard(self) -> None:
        """Remove the draft; one of somebody else is put aside."""
        if self.put_aside_others() is None:
            self.study.discard_draft(self.id)
        self._stamp = None

    def _on_disk(self) -> FileStamp | None:
        path = self.path
        return None if path is None else file_stamp(path)


def drafted(study: Study) -> set[str]:
    """The ids of the cases that have a draft, found in one look."""
    return {path.parent.name for path in study.root.glob("drafts/*/draft.nrrd")}


def unchecked_label(node: slicer.vtkMRMLSegmentationNode, geometry: Geometry) -> sitk.Image:
    """Everything that is drawn, as a label map on `geometry`, for a draft: nothing is refused.

    A segment that SFR made has its structure's value, every other one a value of its own above those. Where
    segments overlap the later one wins. Raises `InputError` only under a non-linear transform.
    """
    segmentation = node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    values = {id: marked_value(segmentation.GetSegment(id)) for id in ids}
    free = max((value for value in values.values() if value is not None), default=0) + 1
    label = np.zeros(geometry.size[::-1], np.uint16)
    for id in ids:
        value = values[id]
        if value is None:
            value, free = free, free + 1
        label[segment_mask(node, id, geometry, resample=True)] = value
    return geometry.apply(sitk.GetImageFromArray(label))


def rescue(label: sitk.Image, study: Study, id: str) -> Path:
    """Write a label map that the study could not take into the user's data folder; returns its path."""
    name = f"{Path(study.root).name}-{id}-{time.strftime('%Y%m%d-%H%M%S')}.nrrd"
    return write_volume(label, rescued_folder() / name)
