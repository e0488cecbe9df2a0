"""What the Set up step downloads besides packages: model checkpoints, and sample data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SFRCore.errors import InputError
from SFRCore.foundation import download

from .chores import Chore
from .places import samples_folder
from .sample_cohorts import COHORTS
from .set_up_words import checkpoint_words, gigabytes, sample_title, sample_words

FOUNDATION_FILE = "SFR/foundationFile"
"""User's setting: a checkpoint file that is none of the known ones, offered when a run is set up."""


class Downloads:
    """The groups "Model" and "Sample data" of the Set up step; ``step`` is that step."""

    def __init__(self, step: Any) -> None:
        self._step, self.ui = step, step.ui
        for name, known in download.CHECKPOINTS.items():
            self.ui.checkpointCombo.addItem(f"{name} ({gigabytes(known.size)})", name)
        for name in COHORTS:
            self.ui.sampleCombo.addItem(sample_title(name), name)
        for control, act in (
            ("downloadButton", self.onDownload),
            ("chooseFileButton", self.onChooseFile),
            ("sampleButton", self.onSample),
        ):
            getattr(self.ui, control).connect("clicked()", lambda act=act: step.attempt(act))
        for combo in (self.ui.checkpointCombo, self.ui.sampleCombo):
            combo.connect("currentIndexChanged(int)", lambda index: step.refresh())

    def refresh(self, busy: str) -> None:
        """Say what is there; ``busy`` is why nothing can be begun now."""
        allow, there = self._step.allow, download.is_downloaded(self._checkpoint())
        self.ui.checkpointLabel.text = checkpoint_words(self._checkpoint(), self._foundationFile())
        self.ui.sampleLabel.text = sample_words(self._sample())
        allow(self.ui.downloadButton, busy or (_("It is on this computer already.") if there else ""))
        allow(self.ui.chooseFileButton, busy)
        allow(self.ui.sampleButton, busy)

    def anyModel(self) -> bool:
        """Whether there is a checkpoint, a known one or a file of the user's."""
        file = self._foundationFile()
        return (file != "" and Path(file).is_file()) or any(map(download.is_downloaded, download.CHECKPOINTS))

    def onDownload(self) -> None:
        """Ask, and download the chosen checkpoint."""
        name = self._checkpoint()
        if self._step.questions.confirm(
            _("Download {name} ({size}) from {server} to {folder}?").format(
                name=name,
                size=gigabytes(download.CHECKPOINTS[name].size),
                server=download.SERVER,
                folder=download.checkpoint_folder(),
            ),
            _("Download a model"),
        ):
            self._step.chores.begin(
                "checkpoint", _("Downloading {name}").format(name=name), lambda chore: None, name=name
            )

    def onChooseFile(self) -> None:
        """Use a file of the user's: a known checkpoint is copied to where it belongs, another remembered."""
        file = self._step.questions.openFile(_("Model checkpoint"), "", "Models (*.pth *.pt *.safetensors)")
        if file is None:
            return
        if not file.is_file():
            raise InputError(f"{file} is not a file.", hint="Choose a file of a Segment Anything model.")
        self._step.chores.begin(
            "adopt", _("Looking at the file"), lambda chore: self._adopted(chore, file), file=str(file)
        )

    def _adopted(self, chore: Chore, file: Path) -> None:
        if chore.result is None:
            qt.QSettings().setValue(FOUNDATION_FILE, str(file))
            words = _("{file} is none of the known checkpoints: it is offered as a file when you train.")
        else:
            self.ui.checkpointCombo.currentIndex = self.ui.checkpointCombo.findData(chore.result)
            words = _("{file} is {name}, whole, and was copied to the others.")
        self._step.chores.say(words.format(file=file.name, name=chore.result))

    def onSample(self) -> None:
        """Get the chosen sample cohort, after a question where it is downloaded."""
        self.getSample(self._sample())

    def getSample(self, name: str) -> None:
        """Fetch or make the sample cohort ``name`` and open its study; asks first where it is downloaded."""
        self.ui.sampleCombo.currentIndex = self.ui.sampleCombo.findData(name)
        cohort, folder = COHORTS[name], samples_folder()
        there = (folder / name / "study" / "study.json").is_file()
        words = _("{description}\n\nIt is kept in {folder}.").format(
            description=sample_words(name), folder=folder / name
        )
        if there or cohort.archive is None or self._step.questions.confirm(words, _("Sample data")):
            self._step.chores.begin(
                "sample", _("Getting sample data"), self._openSample, name=name, folder=str(folder)
            )

    def _openSample(self, chore: Chore) -> None:
        self._step.logic.openStudy(chore.result)
        self._step.panel.open("cases")

    def _checkpoint(self) -> str:
        return str(self.ui.checkpointCombo.currentData)

    def _sample(self) -> str:
        return str(self.ui.sampleCombo.currentData)

    def _foundationFile(self) -> str:
        return str(slicer.util.settingsValue(FOUNDATION_FILE, "") or "")
