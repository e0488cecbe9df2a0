"""study.json: its schema, the migration of older ones, and the unknown keys that it keeps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from SFRCore.errors import InputError
from SFRCore.runtime.files import json_text, read_json, write_text
from SFRCore.study.case import Case, same_id_key
from SFRCore.study.structures import Structure, as_structures

SCHEMA_VERSION = 1
_KNOWN = {"schema_version", "structures", "preset", "other_as_background", "cases"}


@dataclass
class Document:
    """What study.json says. `stored_version` is the schema of the file it was read from."""

    structures: list[Structure]
    preset: str = "auto"
    other_as_background: bool = False
    cases: dict[str, Case] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    stored_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """The plain values of study.json, sharing nothing with this object."""
        return {
            "schema_version": SCHEMA_VERSION,
            "structures": [structure.to_dict() for structure in self.structures],
            "preset": self.preset,
            "other_as_background": self.other_as_background,
            **copy.deepcopy(self.extra),
            "cases": [case.to_dict() for case in self.cases.values()],
        }

    @classmethod
    def from_dict(cls, data: Any) -> Document:
        """Check and take over plain values, of this schema or an older one; raises `InputError`."""
        if not isinstance(data, dict):
            raise InputError("It is not a description of a study.")
        data, version = migrated(data)
        structures = data.get("structures")
        cases = data.get("cases", [])
        if not isinstance(structures, list) or not isinstance(cases, list):
            raise InputError("It has no list of structures or no list of cases.")
        found: dict[str, Case] = {}
        keys: dict[str, str] = {}
        for case in map(Case.from_dict, cases):
            first = keys.setdefault(same_id_key(case.id), case.id)
            if case.id in found or first != case.id:
                raise InputError(f"It has two cases called {case.id}.", hint="Rename one of them.")
            found[case.id] = case
        return cls(
            structures=as_structures([Structure.from_dict(s, position=n) for n, s in enumerate(structures)]),
            preset=str(data.get("preset", "auto")),
            other_as_background=data.get("other_as_background") is True,
            cases=found,
            extra={key: value for key, value in data.items() if key not in _KNOWN},
            stored_version=version,
        )

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read study.json; raises `InputError` that names it when it is missing, damaged or too new."""
        data = read_json(path)
        try:
            return cls.from_dict(data)
        except InputError as error:
            hint = error.hint or "Restore it from a copy."
            raise InputError(f"{path} cannot be used. {error.message}", hint=hint, code=error.code) from error

    def write(self, path: Path) -> None:
        """Check once more what is to be written, then write it whole or not at all, a case a line."""
        data = self.to_dict()
        Document.from_dict(data)
        cases = ",\n    ".join(json_text(case) for case in data.pop("cases"))
        head = json_text(data, indent=2)[:-2]
        write_text(path, f'{head},\n  "cases": [\n    {cases}\n  ]\n}}\n')
        self.stored_version = SCHEMA_VERSION


def migrated(data: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """The values in the present schema and the version they came in; raises `InputError` for a newer one."""
    version = data.get("schema_version", 0)
    if isinstance(version, bool) or not isinstance(version, int) or version < 0:
        raise InputError(f"Its schema version is {version!r}, which is not a number that SFR has given.")
    if version > SCHEMA_VERSION:
        raise InputError(
            f"It was made by a newer SFR (schema {version}, this one knows {SCHEMA_VERSION}).",
            hint="Update SFR to open this study.",
            code="newer_schema",
        )
    for step in range(version, SCHEMA_VERSION):
        data = MIGRATIONS[step](dict(data))
        data["schema_version"] = step + 1
    return data, version


def _from_0(data: dict[str, Any]) -> dict[str, Any]:
    """Schema 0 had no version; structures were ``{value: name}`` and cases ``{id: values}``."""
    structures, cases = data.get("structures"), data.get("cases")
    if isinstance(structures, Mapping):
        named = as_structures({int(v) if str(v).isdecimal() else v: name for v, name in structures.items()})
        data["structures"] = [structure.to_dict() for structure in named]
    if isinstance(cases, Mapping):
        data["cases"] = [{**dict(values), "id": id} for id, values in cases.items()]
    return data


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {0: _from_0}
