"""What the panel asks the user, in one place that a test or a script replaces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import qt
import slicer


class Questions:
    """Asks with dialogs. Nothing else in the panel opens one, and ``--testing`` never gets here unanswered.

    A test gives the steps an object with these methods and answers of its own.
    """

    def confirm(self, text: str, title: str, detail: str = "") -> bool:
        """OK or Cancel; ``detail`` is shown on demand."""
        more = {"detailedText": detail} if detail else {}
        return bool(slicer.util.confirmOkCancelDisplay(text, windowTitle=title, **more))

    def text(self, title: str, label: str, value: str = "") -> str | None:
        """A line of text; None where the user cancelled."""
        dialog = qt.QInputDialog(slicer.util.mainWindow())
        dialog.setWindowTitle(title)
        dialog.setLabelText(label)
        dialog.setTextValue(value)
        return str(dialog.textValue()) if dialog.exec_() else None

    def choose(self, title: str, label: str, options: Sequence[str]) -> int | None:
        """The number of the option chosen; None where the user cancelled."""
        dialog = qt.QInputDialog(slicer.util.mainWindow())
        dialog.setWindowTitle(title)
        dialog.setLabelText(label)
        dialog.setComboBoxItems(list(options))
        dialog.setComboBoxEditable(False)
        return list(options).index(dialog.textValue()) if dialog.exec_() else None

    def folder(self, title: str, start: str = "") -> Path | None:
        """An existing folder; None where the user cancelled."""
        chosen = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), title, start)
        return Path(chosen) if chosen else None

    def openFile(self, title: str, start: str = "", filter: str = "") -> Path | None:
        """An existing file; ``filter`` as Qt has it ("Models (*.pth)"). None where the user cancelled."""
        chosen = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), title, start, filter)
        return Path(chosen) if chosen else None

    def saveFile(self, title: str, start: str = "", filter: str = "") -> Path | None:
        """A file to write, over which the user was asked; None where the user cancelled."""
        chosen = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, start, filter)
        return Path(chosen) if chosen else None
