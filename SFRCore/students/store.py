"""A trained student on disk: its weights, and a JSON that says what it expects and what made it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from SFRCore.errors import InputError
from SFRCore.runtime.files import atomic_path, read_json, write_json
from SFRCore.students.registry import make_student
from SFRCore.students.student import Student

FORMAT_VERSION = 1
WEIGHTS = "student.safetensors"
DESCRIPTION = "student.json"

_EXPECTED: dict[str, type] = {
    "student": str,
    "student_options": dict,
    "in_channels": int,
    "classes": int,
    "structures": list,
    "preprocessing": dict,
    "patch": list,
    "stride": list,
    "made_by": dict,
    "weights_sha256": str,
}


def save_student(model: Student, folder: Path | str, info: Mapping[str, Any]) -> None:
    """Write ``student.safetensors`` and then ``student.json`` into the folder, each whole or not at all.

    ``info`` has ``structures`` [{value, name, color}] in the order of the classes after background,
    ``preprocessing`` (of ``volumes.Preprocessing``), ``patch`` and ``stride`` (X, Y, Z in voxels) and
    ``made_by``; what the network is made of is added here. Raises ValueError where one of these is missing
    or does not fit, and DiskFull or InputError where the files cannot be written.
    """
    folder = Path(folder)
    description = {
        **info,
        "format_version": FORMAT_VERSION,
        "student": model.name,
        "student_options": model.options,
        "in_channels": model.in_channels,
        "classes": model.classes,
        "patch": list(info.get("patch", ())),
        "stride": list(info.get("stride", ())),
        "weights_sha256": "",
    }
    problem = _problem(description)
    if problem:
        raise ValueError(f"The student cannot be saved: {problem}.")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(tensors, temporary)
        description["weights_sha256"] = _sha256(temporary)
    write_json(folder / DESCRIPTION, description)


def load_student(folder: Path | str) -> tuple[Student, dict[str, Any]]:
    """The student, in evaluation mode on the CPU, and its description.

    Raises InputError where a file is missing or damaged, the two do not belong together, or the description
    is of a newer format.
    """
    folder = Path(folder)
    path, weights = folder / DESCRIPTION, folder / WEIGHTS
    again = "Train the student again, or copy the model folder again from where it was made."
    info = read_json(path)
    version = info.get("format_version") if isinstance(info, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise InputError(f"{path} was written by a newer version of SFR.", hint="Update SFR to use it.")
    problem = "it has no format version" if version != FORMAT_VERSION else _problem(info)
    if problem:
        raise InputError(f"{path} is damaged: {problem}.", hint=again)
    if not weights.is_file():
        raise InputError(f"{weights} is missing.", hint=again)
    if _sha256(weights) != info["weights_sha256"]:
        raise InputError(f"{weights} is damaged or does not belong to {path.name}.", hint=again)
    model = make_student(
        info["student"], in_channels=info["in_channels"], classes=info["classes"], **info["student_options"]
    )
    try:
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{weights} does not fit the network {info['student']}.", hint=again) from error
    model.check_patch(info["patch"])
    return model.eval(), info


def _problem(info: Mapping[str, Any]) -> str:
    """What is wrong with a description, or an empty string."""
    for key, kind in _EXPECTED.items():
        if not isinstance(info.get(key), kind):
            return f"'{key}' is missing or of the wrong kind"
    if len(info["structures"]) != info["classes"] - 1:
        return f"it names {len(info['structures'])} structures for {info['classes']} classes with background"
    for structure in info["structures"]:
        if not isinstance(structure, Mapping) or not isinstance(structure.get("value"), int):
            return "a structure has no value"
    for key in ("patch", "stride"):
        sizes = info[key]
        if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
            return f"'{key}' is not three sizes in voxels"
    if any(step > size for step, size in zip(info["stride"], info["patch"], strict=True)):
        return "the stride is larger than the patch"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
