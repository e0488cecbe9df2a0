"""Rows of a table that is shown again and again: only cells that differ are written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt


class TableRows:
    """The texts of a QStandardItemModel, row by row. ``shown`` is what it shows now."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.shown: list[list[str]] = []

    def clear(self) -> None:
        """Show no row."""
        self._model.setRowCount(0)
        self.shown = []

    def show(self, rows: Sequence[Sequence[str]]) -> None:
        """Show these rows, which have the model's columns; a cell whose text stays is left alone."""
        if len(rows) < len(self.shown):
            self._model.setRowCount(len(rows))
        for number, (row, old) in enumerate(zip(rows, self.shown, strict=False)):
            if list(row) != old:
                for column, (text, before) in enumerate(zip(row, old, strict=True)):
                    if text != before:
                        self._model.item(number, column).setText(text)
        for row in rows[len(self.shown) :]:
            self._model.appendRow([qt.QStandardItem(text) for text in row])
        self.shown = [list(row) for row in rows]
