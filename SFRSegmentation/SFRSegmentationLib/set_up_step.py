"""Step 1: what is missing, and one button to get it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from SFRCore.errors import InputError, SFRError

from . import installation
from .chore_follower import ChoreFollower
from .chore_view import ChoreView
from .chores import Chore
from .downloads import Downloads
from .places import packages_folder
from .requirements import load_requirements
from .session import CHORE
from .set_up_words import (
    device_words,
    folder_words,
    gigabytes,
    installation_words,
    state_words,
)
from .step import DONE, READY, RUNNING, Step
from .worker import start_command
from .worker_python import WorkerPython, find_worker_python


class SetUpStep(Step):
    """Packages, model checkpoint, device, sample data. At most one of its chores runs, besides the doctor.

    ``doctor`` is what the worker last said of itself (``sfr doctor``), None before it was asked.
    """

    uiFile = "SetUp.ui"
    title = _("Set up")
    primaryButton = "installButton"

    def setup(self) -> None:
        self.doctor: dict[str, Any] | None = None
        self._asking: ChoreFollower | None = None
        self._examined: tuple[Any, installation.Installation] | None = None
        for control, act in (
            ("installButton", self.onInstall),
            ("installFolderButton", self.onInstallFromFolder),
            ("removeButton", self.onRemove),
            ("checkButton", self.askDoctor),
        ):
            getattr(self.ui, control).connect("clicked()", lambda act=act: self.attempt(act))
        self.chores = ChoreView(self.ui, self._choreChanged, self._failed, self.attempt)
        self.downloads = Downloads(self)

    def enter(self) -> None:
        """Ask the worker once for its device, in the background, where everything is there to ask it."""
        if self.doctor is None and not slicer.app.testingEnabled() and self._worker() is not None:
            found = self._installation()
            if found is None or found.state == "ready":
                self.attempt(self.askDoctor)

    def cleanup(self) -> None:
        """Follow nothing any more; an installation or download goes on by itself."""
        self.chores.leave()
        if self._asking is not None:
            self._asking.stop()

    def _choreChanged(self) -> None:
        self.refresh()
        self.session.changed(CHORE)

    def _failed(self, error: SFRError) -> None:
        self.panel.showError(error.message, error.hint)

    def refresh(self) -> None:
        worker, found = self._worker(), self._installation()
        busy = _("Something is being done: wait for its end, or cancel it.") if self.chores.busy else ""
        self.ui.packagesLabel.text = state_words(worker, found, self.doctor)
        computing = _("A job is running with these packages: wait for its end, or cancel it in step 3.")
        self._allowPackages(worker, found, busy or (computing if self.session.busy else ""))
        self.downloads.refresh(busy)
        self.allow(self.ui.checkButton, _("The worker is being asked.") if self._asking is not None else "")
        self.ui.deviceLabel.text = device_words(self.doctor, asking=self._asking is not None)
        self._showState(worker, found)

    def _allowPackages(
        self, worker: WorkerPython | None, found: installation.Installation | None, busy: str
    ) -> None:
        reason = busy
        if worker is None:
            reason = _("Slicer's Python was not found.")
        elif found is None:
            reason = _("The worker's Python is your own (SFR_PYTHON): install there what is missing.")
        elif found.state == "installing":
            reason = _("The packages are being installed.")
        self.allow(self.ui.installFolderButton, reason)
        self.ui.installButton.text = (
            _("Install the missing packages")
            if found is None or found.state in ("missing", "installing") or not self._trouble(found)
            else _("Install the packages again")
        )
        ready = found is not None and not self._trouble(found)
        self.primaryReason = reason or (_("Everything is installed.") if ready else "")
        nothing = found is None or not installation.anything_to_remove(found.folder)
        self.allow(self.ui.removeButton, busy or (_("There is nothing to remove.") if nothing else ""))

    def _showState(self, worker: WorkerPython | None, found: installation.Installation | None) -> None:
        if self.chores.busy or (found is not None and found.state == "installing"):
            self.setState(RUNNING, self.chores.what)
        elif worker is None:
            self.setState(READY, _("Slicer's Python is missing"))
        elif self._trouble(found):
            self.setState(READY, self._trouble(found))
        elif not self.downloads.anyModel():
            self.setState(DONE, _("done, no model downloaded yet"))
        else:
            self.setState(DONE)

    def onInstall(self) -> None:
        """Find out what would be fetched, ask, and install."""
        self.chores.begin("survey", _("Looking for a GPU"), self._askInstall, folder=str(packages_folder()))

    def _askInstall(self, chore: Chore) -> None:
        if self.questions.confirm(
            installation_words(chore.result, packages_folder()),
            _("Install packages"),
            "\n".join(map(str, load_requirements())),
        ):
            self._install(None)

    def onInstallFromFolder(self) -> None:
        """Install from a folder of wheels, without network."""
        wheels = self.questions.folder(_("Folder with the downloaded packages"))
        if wheels is not None and self.questions.confirm(
            folder_words(wheels, packages_folder()), _("Install packages")
        ):
            self._install(wheels)

    def _install(self, wheels: Path | None) -> None:
        self.doctor = None
        self.chores.begin(
            "install",
            _("Installing packages"),
            lambda chore: self.askDoctor(),
            folder=str(packages_folder()),
            python=find_worker_python().program,
            wheels=None if wheels is None else str(wheels),
        )

    def onRemove(self) -> None:
        """Remove the packages, those of an earlier Slicer too."""
        folder = packages_folder()
        if self.questions.confirm(
            _("Remove the packages in {folder}? Studies, models and checkpoints stay.").format(folder=folder),
            _("Remove packages"),
        ):
            self.doctor = None
            self.chores.begin("remove", _("Removing packages"), self._told, folder=str(folder))

    def _told(self, chore: Chore) -> None:
        self.chores.say(_("{size} were freed.").format(size=gigabytes(chore.result)))

    def askDoctor(self) -> None:
        """Ask the worker for its packages, device and free memory, in the background."""
        if self._asking is None:
            self._asking = ChoreFollower(start_command(["doctor"]), self._doctorSaid)
            self.refresh()

    def _doctorSaid(self, chore: Chore) -> None:
        self._asking = None
        self.doctor = chore.result if chore.error is None else {"problem": str(chore.error)}
        self._choreChanged()

    def _trouble(self, found: installation.Installation | None) -> str:
        """What is wrong with the packages, by their folder and by what the worker said; "" for nothing."""
        said = self.doctor or {}
        if (found is not None and found.state != "ready") or said.get("missing"):
            return _("packages are missing")
        return _("packages do not work") if said.get("problem") or said.get("torch_problem") else ""

    def _worker(self) -> WorkerPython | None:
        try:
            return find_worker_python()
        except InputError:
            return None

    def _installation(self) -> installation.Installation | None:
        """How the private folder stands, looked at again when it changed; None for a Python of the user's."""
        worker = self._worker()
        if worker is not None and worker.own:
            return None
        folder = packages_folder()
        seen = installation.fingerprint(folder)
        if self._examined is None or self._examined[0] != seen:
            self._examined = (seen, installation.examine(folder, load_requirements()))
        return self._examined[1]
