"""What the user is asked about a study: what is to be segmented, and which files outside it may be read."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SFRCore.errors import InputError
from SFRCore.study import Structure, Study, as_structures
from SFRCore.study.structures import default_color

AGREED = "SFR/agreedFiles"
LISTED = 20
_VALUED = re.compile(r"(\d+(?:\s*\+\s*\d+)*)\s*=(.*)")


def ask_for_structures(questions: Any, segmentation: Any) -> list[Structure] | None:
    """The structures that a new study is about, from a line of names; None where the user cancelled.

    Offers the segments of ``segmentation``, in their colours; where the line is left as it is, any character
    may be in their names. Raises InputError for names that cannot be used.
    """
    segments = _segments(segmentation)
    names = [name for name in segments if name]
    offered = "; ".join(names) + (";" if any("," in name for name in names) else "")
    text = questions.text(
        _("What is to be segmented?"),
        _(
            "Names, separated by commas, or by semicolons where a name has a comma in it "
            "(or with their values in label files: 1=Liver, 4=Spleen)"
        ),
        offered or _("Left atrium"),
    )
    if text is None:
        return None
    if names and text.strip() == offered.strip():
        found = as_structures(dict(enumerate(names, start=1)))
    else:
        found = _structures_of(text)
    return [replace(s, color=segments.get(s.name, default_color(number))) for number, s in enumerate(found)]


def _structures_of(text: str) -> list[Structure]:
    """The structures of a line of names, or of names with values, as ``1+2=Liver; 4=Spleen``. Semicolons or
    new lines separate them; without one, commas do.
    """
    separators = r"[;\n]" if re.search(r"[;\n]", text) else ","
    parts = [part.strip() for part in re.split(separators, text) if part.strip()]
    valued = [_VALUED.fullmatch(part) for part in parts]
    if not any(valued):
        return as_structures(dict(enumerate(parts, start=1)))
    found = []
    for number, (part, match) in enumerate(zip(parts, valued, strict=True)):
        if match is None:
            raise InputError(
                f"'{part}' has no value, but other structures have one.",
                hint="Write each as 1=Liver, or 1+2=Liver for several values; separate them by semicolons "
                "where a name has a comma in it.",
            )
        value, *also = map(int, match[1].split("+"))
        found.append(Structure(value, match[2], default_color(number), also=tuple(also)))
    return as_structures(found)


def ask_about_label(questions: Any, act: Callable[..., Any], of: str) -> Any:
    """``act()``, which makes a segmentation the label of the image called ``of``; where it is refused for
    something that may be meant, the user is asked, and it is done again with ``other_volume``, ``empty`` or
    ``resample`` True. Returns what it returns, None where the user said no.
    """
    asked = {
        "other_volume": ("other_volume", _("Use it as the label of {image} all the same?")),
        "empty_label": ("empty", _("Use it all the same, as of an image that shows no structure?")),
        "other_grid": (
            "resample",
            _("Bring it onto the voxels of {image}? Edges may move by a voxel; what lies outside is lost."),
        ),
    }
    allowed: dict[str, bool] = {}
    while True:
        try:
            return act(**allowed)
        except InputError as error:
            option, question = asked.get(error.code, ("", ""))
            if not option or option in allowed:
                raise
            words = f"{error.message}\n{question.format(image=of)}"
            if not questions.confirm(words, _("The label of {image}").format(image=of)):
                return None
            allowed[option] = True


def agrees_to_files(questions: Any, folder: Path | str) -> bool:
    """Whether a study may be opened: the files outside it are shown, once for the same files."""
    study = Study.open(folder)
    if knows_files(study):
        return True
    files = _outside(study)
    more = _("and {count} more").format(count=len(files) - LISTED) if len(files) > LISTED else ""
    return bool(
        questions.confirm(
            _("This study uses {count} files outside its folder. They are only read. Open it?").format(
                count=len(files)
            ),
            _("Files outside the study"),
            "\n".join([*files[:LISTED], more]).strip(),
        )
    )


def knows_files(study: Study) -> bool:
    """Whether a study uses no file outside it, or just those that it used when it was open here last."""
    return not _outside(study) or slicer.util.settingsValue(_key(study), "") == _digest(study)


def remember_files(study: Study) -> None:
    """Note which files the open study uses, so that they are not asked about again."""
    qt.QSettings().setValue(_key(study), _digest(study))


def _outside(study: Study) -> list[str]:
    return sorted(str(path) for path in study.outside_files())


def _key(study: Study) -> str:
    return f"{AGREED}/{hashlib.sha256(str(study.root).encode()).hexdigest()[:16]}"


def _digest(study: Study) -> str:
    return hashlib.sha256("\n".join(_outside(study)).encode()).hexdigest()


def _segments(node: Any) -> dict[str, tuple[int, int, int]]:
    if node is None:
        return {}
    segmentation = node.GetSegmentation()
    found = {}
    for number in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(number)
        red, green, blue = (round(255 * part) for part in segment.GetColor())
        found[segment.GetName().strip()] = (red, green, blue)
    return found
