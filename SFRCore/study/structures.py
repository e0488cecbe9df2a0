"""Structures: what is segmented, with the value that stands for each in label files."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from SFRCore.errors import InputError

Color = tuple[int, int, int]

LARGEST_VALUE = 65535
LARGEST_COUNT = 255

_PALETTE: tuple[Color, ...] = (
    (230, 75, 53), (77, 187, 213), (0, 160, 135), (243, 155, 40), (126, 97, 196), (145, 209, 94),
    (240, 98, 146), (60, 84, 200), (181, 137, 80), (250, 220, 70), (0, 112, 96), (176, 190, 197),
)  # fmt: skip
_GOLDEN_ANGLE = 0.6180339887498949


@dataclass(frozen=True)
class Structure:
    """One structure: its value in label files (1..65535), name, RGB colour (0..255) and terminology code.

    Voxels of the values in ``also`` are this structure in labels that the study is given; in the study's own
    files they have ``value``.
    """

    value: int
    name: str
    color: Color
    terminology: str = ""
    extra: dict[str, Any] = field(default_factory=dict, hash=False)
    also: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The plain values that study.json and the models' JSON files hold."""
        return {
            "value": self.value,
            "name": self.name,
            "color": list(self.color),
            "terminology": self.terminology,
            **({"also": list(self.also)} if self.also else {}),
            **self.extra,
        }

    @classmethod
    def from_dict(cls, data: Any, *, position: int = 0) -> Structure:
        """A structure from plain values; unknown keys are kept, a missing colour is chosen by `position`.

        Raises `InputError` where a value, the name or the colour cannot be used.
        """
        if not isinstance(data, Mapping):
            raise InputError("A structure needs a value and a name.", hint="For example 1=Left atrium.")
        known = {"value", "name", "color", "terminology", "also"}
        color, also = data.get("color"), data.get("also") or ()
        if not isinstance(also, (list, tuple)):
            raise InputError(f"{also!r} are no further values of a structure.", hint="Use a list of numbers.")
        return cls(
            value=_checked_value(data.get("value")),
            name=_checked_name(data.get("name")),
            color=default_color(position) if color is None else _checked_color(color),
            terminology=str(data.get("terminology") or ""),
            extra={key: value for key, value in data.items() if key not in known},
            also=tuple(map(_checked_value, also)),
        )


def default_color(position: int) -> Color:
    """A colour for the structure at `position` (from 0), unlike those before it."""
    if position < len(_PALETTE):
        return _PALETTE[position]
    hue = (position * _GOLDEN_ANGLE) % 1.0
    lightness = (0.45, 0.6, 0.72)[position % 3]
    red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.65)
    return round(red * 255), round(green * 255), round(blue * 255)


def parse_structures(text: str) -> list[Structure]:
    """Structures from ``1=Anterior,2=Posterior``, ascending by value; with ``1+2+4=Whole tumour`` several
    values are one structure, which keeps the first.

    Raises `InputError` for other text, or a value that is given twice.
    """
    named: dict[int, str] = {}
    also: dict[int, tuple[int, ...]] = {}
    for part in text.split(","):
        written, equals, name = part.partition("=")
        values = [value.strip() for value in written.split("+")]
        if not equals or not all(value.isdecimal() for value in values):
            raise InputError(
                f"'{part.strip()}' does not say which structure has which value.",
                hint="Write structures as 1=Anterior,2=Posterior, or 1+2+4=Whole tumour.",
            )
        first, *others = map(int, values)
        if first in named:
            raise _twice("value", first)
        named[first], also[first] = name, tuple(others)
    return as_structures([replace(one, also=also[one.value]) for one in as_structures(named)])


def as_structures(structures: Mapping[int, str] | Iterable[Structure]) -> list[Structure]:
    """Structures in ascending order of value, from ``{value: name}`` or from structures.

    Raises `InputError` for none, more than 255, a value or a name used twice, or a value outside 1..65535.
    """
    found: list[Structure]
    if isinstance(structures, Mapping):
        pairs = sorted((_checked_value(value), name) for value, name in structures.items())
        found = [
            Structure(value, _checked_name(name), default_color(position))
            for position, (value, name) in enumerate(pairs)
        ]
    else:
        found = sorted((Structure.from_dict(s.to_dict()) for s in structures), key=lambda s: s.value)
    if not found:
        raise InputError("A study needs at least one structure.", hint="For example 1=Left atrium.")
    if len(found) > LARGEST_COUNT:
        raise InputError(
            f"{len(found)} structures are more than the {LARGEST_COUNT} that a study can hold.",
            hint="Leave out structures that are not needed.",
        )
    values: set[int] = set()
    names: set[str] = set()
    for structure in found:
        for value in (structure.value, *structure.also):
            if value in values:
                raise _twice("value", value)
            values.add(value)
        if structure.name.casefold() in names:
            raise _twice("name", structure.name)
        names.add(structure.name.casefold())
    return found


def _twice(what: str, shown: int | str) -> InputError:
    return InputError(f"The {what} {shown} is given twice.", hint=f"Give each structure its own {what}.")


def _checked_value(value: Any) -> int:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_VALUE:
        raise InputError(
            f"{value!r} cannot be the value of a structure.",
            hint=f"Use whole numbers from 1 to {LARGEST_VALUE}; 0 is the background.",
        )
    return value


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name.strip() or not name.strip().isprintable():
        raise InputError(f"{name!r} cannot name a structure.", hint="Use words, such as Left atrium.")
    return name.strip()


def _checked_color(color: Any) -> Color:
    if (
        not isinstance(color, (list, tuple))
        or len(color) != 3
        or any(isinstance(part, bool) or not isinstance(part, int) or not 0 <= part <= 255 for part in color)
    ):
        raise InputError(f"{color!r} cannot be a colour.", hint="Use three whole numbers from 0 to 255.")
    return color[0], color[1], color[2]
