"""Which rows and seeds the table of a comparison shows: those asked for now, and those of before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from SFRCore.comparison.plan import Row
from SFRCore.comparison.table import TABLE, Comparison, seeds_of, tabulate
from SFRCore.errors import InputError, SFRError
from SFRCore.runtime.files import read_json


@dataclass(frozen=True)
class Shown:
    """``rows`` in the order of the table, the row that differences are taken to, and why rows of before could
    not be trained, by key.
    """

    rows: tuple[Row, ...]
    base: Row
    left_out: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path, rows: Sequence[Row], base: Row | None) -> Shown:
        """Those of the folder's table and then the other ``rows`` asked for; these alone, in their own order,
        where all of the table are among them.

        Raises InputError where ``base`` is none of them.
        """
        before, first, left_out = _before(folder)
        kept = [row for row in before if row not in rows]
        order = [*before, *(row for row in rows if row not in before)] if kept else list(rows)
        chosen = base or (first if kept and first in order else order[0])
        if chosen not in order:
            raise InputError(
                f"The base '{chosen.title}' is not one of the rows.", hint="Name it in --ssl as well."
            )
        reasons = {row.key: left_out[row.key] for row in kept if row.key in left_out}
        return cls(tuple(order), chosen, reasons)

    def table(
        self, folder: Path, seeds: Sequence[int], scored: str, left_out: Mapping[str, str]
    ) -> Comparison:
        """The table as it stands, of ``seeds`` and those with which a row was trained before."""
        found = {seed for row in self.rows for seed in seeds_of(folder, row)}
        both = {**self.left_out, **left_out}
        return tabulate(folder, self.rows, sorted(found | set(seeds)), self.base, scored, both)


def _before(folder: Path) -> tuple[list[Row], Row | None, dict[str, str]]:
    """Rows of the table that is there, its base, and by key the reasons of those that are left out."""
    try:
        table = read_json(folder / TABLE)
        lines = list(table["rows"])
        rows = [Row(line["recipe"], line["ssl"]) for line in lines]
    except (SFRError, KeyError, TypeError):
        return [], None, {}
    base = next((row for row in rows if row.title == table.get("base")), None)
    reasons = {row.key: line["left_out"] for row, line in zip(rows, lines, strict=True) if "left_out" in line}
    return rows, base, reasons
