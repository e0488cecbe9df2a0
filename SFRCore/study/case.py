"""A case: one image of the study, its role, its label, and what a person said about it."""

from __future__ import annotations

import copy
import ntpath
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from SFRCore.errors import InputError

ROLES = ("labeled", "unlabeled", "test", "ignored")
REVIEWS = ("unseen", "accepted", "corrected", "rejected")
ORIGINS = ("expert", "accepted", "corrected")
LABEL_FILE = re.compile(rf"^(\d{{3,9}})-({'|'.join(ORIGINS)})\.nrrd$")

_PLAIN = re.compile(r"[A-Za-z0-9 ._-]*\Z")
_WINDOWS_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|\\\\[^\\/]+[\\/]")
_LONGEST_ID = 100
_LONGEST_ID_BYTES = 200
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}


@dataclass
class Case:
    """One image of the study.

    `image` is a path relative to the study, or absolute for a file outside it. `label` is the newest accepted
    label, `reference` a label that only evaluation and the report read; both lie in the study.
    `reference_from` is the label that the reference is a copy of, None where it was given as a reference.
    `problem` says why the last run left the case out. `extra` holds keys of study.json that this version does
    not know.
    """

    id: str
    image: str
    role: str = "unlabeled"
    label: str | None = None
    label_origin: str | None = None
    reference: str | None = None
    review: str = "unseen"
    problem: str | None = None
    image_identity: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    reference_from: str | None = None

    @property
    def label_number(self) -> int:
        """The number of the newest accepted label, 0 where there is none."""
        return int(PurePosixPath(self.label).name.partition("-")[0]) if self.label else 0

    @property
    def outside(self) -> bool:
        """Whether the image lies outside the study."""
        return is_absolute(self.image)

    def to_dict(self) -> dict[str, Any]:
        """The plain values that study.json holds."""
        known = {name: getattr(self, name) for name in _KNOWN}
        if self.image_identity is not None:
            known["image_identity"] = dict(self.image_identity)
        return {**known, **copy.deepcopy(self.extra)} if self.extra else known

    @classmethod
    def from_dict(cls, data: Any) -> Case:
        """A case from study.json; raises `InputError` for anything that could lead out of the study."""
        if not isinstance(data, Mapping):
            raise InputError("A case is not described by names and values.")
        id = check_case_id(data.get("id"))
        image = data.get("image")
        if not isinstance(image, str) or not image or "\0" in image:
            raise InputError(f"Case {id} names no image.")
        if not is_absolute(image):
            check_inside(image, f"The image of case {id}")
        label, reference = data.get("label"), data.get("reference")
        origin = None
        if label is not None:
            origin = _label_origin(id, label)
        if reference is not None and reference != f"references/{id}.nrrd":
            raise InputError(f"The reference of case {id} is not in the study's folder of references.")
        identity = data.get("image_identity")
        if identity is not None and not isinstance(identity, dict):
            raise InputError(f"The size and hash of the image of case {id} cannot be read.")
        problem, copied = data.get("problem"), data.get("reference_from")
        return cls(
            id=id,
            image=image,
            role=_one_of(data.get("role", "unlabeled"), ROLES, f"The role of case {id}"),
            label=label,
            label_origin=origin,
            reference=reference,
            review=_one_of(data.get("review", "unseen"), REVIEWS, f"The review state of case {id}"),
            problem=None if problem is None else str(problem),
            image_identity=None if identity is None else dict(identity),
            extra={key: value for key, value in data.items() if key not in _KNOWN},
            reference_from=copied if isinstance(copied, str) else None,
        )


_KNOWN = (
    "id", "image", "role", "label", "label_origin", "reference", "review", "problem", "image_identity",
    "reference_from",
)  # fmt: skip


def check_case_id(id: Any) -> str:
    """`id` in composed Unicode form, if it can name files on every system; else raises `InputError`."""
    text = unicodedata.normalize("NFC", id) if isinstance(id, str) else ""
    wrong = ""
    if not text:
        wrong = "is empty"
    elif len(text) > _LONGEST_ID or len(text.encode("utf-8", "surrogatepass")) > _LONGEST_ID_BYTES:
        wrong = f"is longer than {_LONGEST_ID} letters"
    elif not _PLAIN.match(text) and any(not _allowed(letter) for letter in text):
        wrong = "has signs other than letters, digits, space, dot, dash and underscore"
    elif text[0] in ". " or text[-1] in ". ":
        wrong = "begins or ends with a dot or a space"
    elif text.partition(".")[0].strip().casefold() in _RESERVED:
        wrong = "is a name that Windows keeps for itself"
    if wrong:
        shown = text if len(text) <= _LONGEST_ID else text[:_LONGEST_ID] + "..."
        raise InputError(
            f"'{shown}' cannot be the name of a case: it {wrong}.",
            hint="Use letters, digits, space, dot, dash and underscore.",
        )
    return text


def case_id_from(stem: str) -> str:
    """The case id for a file's stem: signs that an id may not have become underscores."""
    text = "".join(letter if _allowed(letter) else "_" for letter in unicodedata.normalize("NFC", stem))
    text = text.strip(". ")[:_LONGEST_ID]
    while len(text.encode("utf-8")) > _LONGEST_ID_BYTES:
        text = text[:-1]
    text = text.strip(". ")
    if text.partition(".")[0].strip().casefold() in _RESERVED:
        text = f"case_{text}"
    return check_case_id(text or "case")


def same_id_key(id: str) -> str:
    """Equal for ids that would be one file on a disk that does not tell upper from lower case."""
    if id.isascii():
        return id.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", id).casefold())


def is_absolute(path: str) -> bool:
    """Whether a stored path is absolute on any operating system; a study may come from another one."""
    return path.startswith("/") or _WINDOWS_ABSOLUTE.match(path) is not None


def check_inside(path: str, what: str) -> None:
    """Raise `InputError` unless `path` is relative and stays below the folder it is relative to."""
    windows = PureWindowsPath(path)
    upwards = ".." in windows.parts or ".." in PurePosixPath(path).parts
    rooted = ntpath.splitdrive(path)[0] or windows.root or is_absolute(path)
    if not windows.parts or "\0" in path or upwards or rooted:
        raise InputError(
            f"{what} leads out of the study ({path}).",
            hint="Somebody changed the study file by hand; find out why before you use it.",
        )


def _label_origin(id: str, label: Any) -> str:
    folder = f"labels/{id}/"
    if (
        isinstance(label, str)
        and label.startswith(folder)
        and (match := LABEL_FILE.match(label[len(folder) :]))
    ):
        return match[2]
    raise InputError(f"The label of case {id} is not one of its accepted labels ({label}).")


def _allowed(letter: str) -> bool:
    return letter in " .-_" or unicodedata.category(letter)[0] in "LMN"


def _one_of(value: Any, allowed: tuple[str, ...], what: str) -> str:
    if value not in allowed:
        raise InputError(f"{what} is '{value}'.", hint=f"It can be {', '.join(allowed)}.")
    return str(value)
