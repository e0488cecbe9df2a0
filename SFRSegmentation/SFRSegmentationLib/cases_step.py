"""Step 2: the study folder and its table of cases."""

from __future__ import annotations

from pathlib import Path

from slicer.i18n import tr as _

from SFRCore.study.folder import STUDY_FILE

from .step import Step


class CasesStep(Step):
    """The cases of the study."""

    uiFile = "Cases.ui"
    title = _("Cases")

    def reopen(self, folder: str) -> None:
        """Open the study that a scene names, where it is on this computer."""
        if Path(folder, STUDY_FILE).is_file():
            self.attempt(lambda: self.logic.openStudy(folder))
