"""Terminology: a structure's code (scheme^code^meaning) as the entry that Slicer keeps with a segment."""

from __future__ import annotations

import slicer
import vtk

from SFRCore.study import Structure

_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
_REGIONS = "Anatomic codes - DICOM master list"
_CATEGORY = "SCT^123037004^Anatomical Structure"
_NONE = "^^"
_UNSPECIFIC = ("SCT^85756007",)


def entry_of(structure: Structure) -> str:
    """Slicer's terminology entry for a structure, "" where it has no code.

    `structure.terminology` is scheme^code^meaning, or a whole entry with its parts between tildes.
    """
    code = structure.terminology.strip()
    if not code or "~" in code:
        return code
    if code.count("^") != 2:
        return ""
    return "~".join((_CONTEXT, _CATEGORY, code, _NONE, _REGIONS, _NONE, _NONE))


def code_of(entry: str) -> str:
    """Scheme and code of what an entry names, such as SCT^82471001; "" where it is not specific."""
    parts = entry.split("~")
    kind = parts[2] if len(parts) > 2 else entry
    code = "^".join(kind.split("^")[:2])
    return "" if code in ("", "^", *_UNSPECIFIC) else code


def entry_on(segment: slicer.vtkSegment) -> str:
    """The entry that a segment carries, "" where it has none."""
    value = vtk.mutable("")
    name = slicer.vtkSegment.GetTerminologyEntryTagName()
    return str(value) if segment.GetTag(name, value) else ""


def set_entry(segment: slicer.vtkSegment, structure: Structure) -> None:
    """Give a segment the entry of its structure; without a code it keeps what it has."""
    entry = entry_of(structure)
    if entry:
        segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), entry)
