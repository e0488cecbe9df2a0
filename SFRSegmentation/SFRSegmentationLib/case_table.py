"""The table of cases: filled once, then only what changed; sorted and filtered by Qt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import qt
from slicer.i18n import tr as _

from SFRCore.study import Case, Study

CASE, ROLE, LABEL, DOUBT, STATE = range(5)
SORT_ROLE = qt.Qt.UserRole + 1

Row = tuple[str, str, str, str, str, float, str]


def role_words() -> dict[str, str]:
    """The roles as a user reads them."""
    return {
        "labeled": _("labeled"), "unlabeled": _("unlabeled"), "test": _("test"), "ignored": _("ignored"),
    }  # fmt: skip


class CaseTable:
    """Fills a QTableView with the cases of a study. ``view`` keeps its selection while rows change."""

    def __init__(self, view: Any) -> None:
        self.view = view
        self.model = qt.QStandardItemModel(0, 5, view)
        self.model.setHorizontalHeaderLabels([_("Case"), _("Role"), _("Label"), _("Doubt"), _("State")])
        self._tip(CASE, _("The name of the case"))
        self._tip(ROLE, _("What the case is used for; click to change it"))
        self._tip(LABEL, _("Where its label comes from"))
        self._tip(DOUBT, _("0 is sure, 1 is unsure: 1 less the expected Dice of its weakest structure"))
        self._tip(STATE, _("What was decided in the review, or why the case was left out"))
        self.proxy = qt.QSortFilterProxyModel(view)
        self.proxy.setSourceModel(self.model)
        self.proxy.setSortRole(SORT_ROLE)
        self.proxy.setFilterKeyColumn(-1)
        self.proxy.setFilterCaseSensitivity(qt.Qt.CaseInsensitive)
        self.proxy.setSortCaseSensitivity(qt.Qt.CaseInsensitive)
        view.setModel(self.proxy)
        view.sortByColumn(CASE, qt.Qt.AscendingOrder)
        view.verticalHeader().setVisible(False)
        header = view.horizontalHeader()
        header.setDefaultSectionSize(72)
        header.setSectionResizeMode(CASE, qt.QHeaderView.Stretch)
        view.setTextElideMode(qt.Qt.ElideMiddle)
        self._rows: list[Row] = []
        self._items: list[list[Any]] = []
        self._roles = role_words()

    def show(self, study: Study | None) -> None:
        """Show the cases as they are now; rows that are as before are left alone."""
        rows = [] if study is None else [self._row(study, case) for case in study.cases.values()]
        if [row[CASE] for row in rows] != [row[CASE] for row in self._rows]:
            self._fill(rows)
        else:
            for number, (new, old) in enumerate(zip(rows, self._rows, strict=True)):
                if new != old:
                    self._update(number, new)
        self._rows = rows

    def showCases(self, study: Study, ids: Iterable[str]) -> None:
        """Show these cases as they are now, and leave the others."""
        wanted = set(ids)
        for number, old in enumerate(self._rows):
            if old[CASE] in wanted:
                self._rows[number] = self._row(study, study.case(old[CASE]))
                self._update(number, self._rows[number])

    def filter(self, text: str) -> None:
        """Show only rows in which some column contains ``text``."""
        self.proxy.setFilterFixedString(text.strip())

    def selected(self) -> list[str]:
        """The ids of the selected cases, in the order they are shown."""
        indexes = self.view.selectionModel().selectedRows(CASE)
        numbers = sorted((index.row(), self.proxy.mapToSource(index).row()) for index in indexes)
        return [self._rows[source][CASE] for _shown, source in numbers]

    def select(self, ids: Iterable[str]) -> None:
        """Select the rows of these cases, and show the first of them."""
        wanted = set(ids)
        selection = self.view.selectionModel()
        selection.clearSelection()
        flags = qt.QItemSelectionModel.Select | qt.QItemSelectionModel.Rows
        first = None
        for number, row in enumerate(self._rows):
            if row[CASE] in wanted:
                index = self.proxy.mapFromSource(self.model.index(number, CASE))
                selection.select(index, flags)
                first = first or index
        if first is not None:
            self.view.scrollTo(first)

    def idAt(self, index: Any) -> str | None:
        """The case that an index of the view belongs to; None for none."""
        return self._rows[self.proxy.mapToSource(index).row()][CASE] if index.isValid() else None

    def _tip(self, column: int, text: str) -> None:
        self.model.setHeaderData(column, qt.Qt.Horizontal, text, qt.Qt.ToolTipRole)

    def _row(self, study: Study, case: Case) -> Row:
        result = study.newest_result(case.id)
        doubt = -1.0 if result is None else 1.0 - result.expected_dice
        if case.label is not None:
            label = {"expert": _("expert"), "accepted": _("accepted"), "corrected": _("corrected")}[
                case.label_origin or "expert"
            ]
        else:
            label = _("reference") if case.reference else ""
        if case.problem:
            state = _("left out")
        elif case.review != "unseen":
            state = {"accepted": _("accepted"), "corrected": _("corrected"), "rejected": _("rejected")}[
                case.review
            ]
        elif result is not None:
            state = _("predicted") if result.kind == "prediction" else _("pseudo-label")
        else:
            state = ""
        text = "" if result is None else f"{doubt:.2f}"
        tip = case.problem or f"{case.id}\n{case.image}"
        return case.id, self._roles[case.role], label, text, state, doubt, tip

    def _fill(self, rows: list[Row]) -> None:
        kept = set(self.selected())
        self.view.setSortingEnabled(False)
        self.proxy.setDynamicSortFilter(False)
        self.model.removeRows(0, self.model.rowCount())
        self._items = []
        for row in rows:
            items = [qt.QStandardItem() for _column in range(5)]
            self._write(items, row)
            self._items.append(items)
            self.model.appendRow(items)
        self.proxy.setDynamicSortFilter(True)
        self.view.setSortingEnabled(True)
        self._rows = rows
        if kept:
            self.select(kept)

    def _update(self, number: int, row: Row) -> None:
        self._write([self.model.item(number, column) for column in range(5)], row)

    def _write(self, items: list[Any], row: Row) -> None:
        for column, item in enumerate(items):
            item.setText(row[column])
            item.setData(row[5] if column == DOUBT else row[column].lower(), SORT_ROLE)
            item.setToolTip(row[6] if column in (CASE, STATE) else row[column])
