"""The student networks by name."""

from __future__ import annotations

from typing import Any

from SFRCore.errors import InputError
from SFRCore.students.student import Student
from SFRCore.students.unet3d import UNet3D
from SFRCore.students.vnet import VNet


def student_types() -> dict[str, type[Student]]:
    """Every student network by its name."""
    return {VNet.name: VNet, UNet3D.name: UNet3D}


def make_student(name: str, *, in_channels: int, classes: int, **options: Any) -> Student:
    """Build a student network with fresh weights from torch's global random generator.

    Raises InputError for an unknown name or an option the network does not have.
    """
    known = student_types()
    if name not in known:
        raise InputError(
            f"The student network '{name}' is not known.", hint=f"Choose one of: {', '.join(known)}."
        )
    try:
        return known[name](in_channels, classes, **options)
    except TypeError as error:
        raise InputError(
            f"The student network {name} cannot be built with the options {options}.", hint=f"{error}."
        ) from error
