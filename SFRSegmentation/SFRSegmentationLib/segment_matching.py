"""Which segment is which structure: by SFR's own mark, else by name, else by terminology."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import slicer
import vtk

from SFRCore.errors import InputError
from SFRCore.study import Structure

from .terminology import code_of, entry_of, entry_on

VALUE_TAG = "SFR.Value"
_UNNAMED = re.compile(r"segment([ _]\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Matching:
    """Segment ids by structure value; `missing` structures have no segment, `others` no structure."""

    ids: dict[int, str]
    missing: list[Structure]
    others: list[str]


def match_segments(
    node: slicer.vtkMRMLSegmentationNode, structures: Sequence[Structure], *, marked: bool = False
) -> Matching:
    """Match the segments of a segmentation to structures.

    `marked` trusts the values that SFR wrote into segments it made: they survive renaming. Names are compared
    without case. The only segment of a study with one structure may have the name that Slicer gave it.

    Raises `InputError` where two segments are one structure, or none is.
    """
    segmentation = node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    found: dict[int, str] = {}
    others: list[str] = []
    for id in ids:
        structure = _structure_of(segmentation.GetSegment(id), structures, marked)
        if structure is None:
            others.append(id)
        elif structure.value in found:
            first = segmentation.GetSegment(found[structure.value]).GetName()
            second = segmentation.GetSegment(id).GetName()
            raise InputError(
                f"The segments '{first}' and '{second}' of '{node.GetName()}' are both {structure.name}.",
                hint="Rename one of them, or merge them with Logical operators in the Segment Editor.",
            )
        else:
            found[structure.value] = id
    if not found and len(ids) == len(structures) == 1 and _unnamed(segmentation.GetSegment(ids[0])):
        found, others = {structures[0].value: ids[0]}, []
    if not found:
        raise _no_match(node, ids, structures)
    missing = [structure for structure in structures if structure.value not in found]
    return Matching(found, missing, others)


def marked_value(segment: slicer.vtkSegment) -> int | None:
    """The structure's value in a segment that SFR made; None in every other."""
    value = vtk.mutable("")
    if segment.GetTag(VALUE_TAG, value) and str(value).isdecimal():
        return int(str(value))
    return None


def _structure_of(
    segment: slicer.vtkSegment, structures: Sequence[Structure], marked: bool
) -> Structure | None:
    if marked:
        value = marked_value(segment)
        for structure in structures:
            if structure.value == value:
                return structure
    name = _plain(segment.GetName())
    for structure in structures:
        if _plain(structure.name) == name:
            return structure
    code = code_of(entry_on(segment))
    for structure in structures:
        if code and code == code_of(entry_of(structure)):
            return structure
    return None


def _plain(name: str | None) -> str:
    return " ".join((name or "").replace("_", " ").split()).casefold()


def _unnamed(segment: slicer.vtkSegment) -> bool:
    return _UNNAMED.fullmatch((segment.GetName() or "segment").strip()) is not None


def _no_match(
    node: slicer.vtkMRMLSegmentationNode, ids: Sequence[str], structures: Sequence[Structure]
) -> InputError:
    wanted = ", ".join(structure.name for structure in structures)
    if not ids:
        return InputError(f"'{node.GetName()}' has no segments.", hint=f"Draw {wanted} in it first.")
    names = ", ".join(f"'{node.GetSegmentation().GetSegment(id).GetName()}'" for id in ids[:5])
    more = ", ..." if len(ids) > 5 else ""
    return InputError(
        f"No segment of '{node.GetName()}' has the name of a structure of the study ({wanted}): "
        f"it has {names}{more}.",
        hint="Rename the segments like the structures.",
    )
