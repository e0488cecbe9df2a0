"""What a semi-supervised method trains beside its student: the teacher, further networks, heads, counts.

It lies in ``method.safetensors`` beside the student, for a training that goes on with new labels. Nothing
else reads it: a model folder without it predicts, is exported and goes on all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import InputError
from ..runtime.files import atomic_path, file_identity, read_json
from ..ssl.contract import Method
from .lineage import STUDENT_INFO

logger = logging.getLogger(__name__)
WEIGHTS = "method.safetensors"
STUDENT = "student."


def save_companions(method: Method, folder: Path) -> dict[str, Any] | None:
    """Write the method's state but its student's, whole or not at all; removes an older file where there is
    none.

    Returns what the student's JSON says of it under ``companions``: file, sha256 and the names of the parts.
    Raises DiskFull or InputError where the file cannot be written.
    """
    path = folder / WEIGHTS
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in method.state_dict().items()
        if isinstance(value, Tensor) and not name.startswith(STUDENT)
    }
    if not tensors:
        path.unlink(missing_ok=True)
        return None
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)
    return {
        "file": WEIGHTS,
        "sha256": file_identity(path)["sha256"],
        "parts": sorted({name.partition(".")[0] for name in tensors}),
    }


def load_companions(folder: Path) -> dict[str, Tensor]:
    """The state that lies beside the student in ``folder``; empty where there is none, or it is damaged or
    another student's, which a process that was killed between two files leaves.
    """
    path = folder / WEIGHTS
    try:
        told = read_json(folder / STUDENT_INFO).get("companions")
        if told is None or not path.is_file():
            return {}
        if file_identity(path)["sha256"] == told["sha256"]:
            return load_file(path)
    except (InputError, SafetensorError, OSError, KeyError, TypeError, AttributeError):
        pass
    logger.warning("%s is damaged or does not belong to the student beside it: it is left out", path)
    return {}


@torch.no_grad()
def take_over(method: Method, companions: Mapping[str, Tensor]) -> list[str]:
    """Copy those tensors into the method that it has by the same name and shape; returns their names."""
    own = method.state_dict()
    fitting = [
        name
        for name, value in companions.items()
        if isinstance(own.get(name), Tensor) and own[name].shape == value.shape
    ]
    for name in fitting:
        own[name].copy_(companions[name])
    return fitting
