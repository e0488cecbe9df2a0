"""Step 2: the study folder and its table of cases; adding cases, giving them roles and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SFRCore.study import ROLES, Study
from SFRCore.study.folder import STUDY_FILE

from .case_table import ROLE, CaseTable, role_words
from .chore_follower import ChoreFollower
from .chores import Chore, start_chore
from .session import CASES, PROGRESS, RESULTS, STUDY
from .step import DONE, EMPTY, READY, Step
from .study_questions import (
    agrees_to_files,
    ask_about_label,
    ask_for_structures,
    knows_files,
    remember_files,
)

LAST_FOLDER = "SFR/lastFolder"


class CasesStep(Step):
    """The cases of the study. ``table`` is the CaseTable; ``menu`` the context menu, made anew each time."""

    uiFile = "Cases.ui"
    title = _("Cases")
    primaryButton = "newStudyButton"

    def setup(self) -> None:
        self.table = CaseTable(self.ui.casesTable)
        self._adding: ChoreFollower | None = None
        self._before: dict[str, str] = {}
        self._stale = True
        self._offered = ""
        self.menu: Any = None
        for name, act in (
            ("newStudyButton", self.onNewStudy), ("openStudyButton", self.onOpenStudy),
            ("addVolumeButton", self.onAddVolume), ("setLabelButton", self.onSetLabel),
            ("addFolderButton", self.onAddFolder), ("addDicomButton", self.onAddDicom),
            ("stopAddingButton", self.onStopAdding), ("relinkButton", self.onRelink),
            ("packButton", self.onPack),
        ):  # fmt: skip
            getattr(self.ui, name).connect("clicked()", lambda act=act: self.attempt(act))
        for role in ROLES:
            button = getattr(self.ui, f"{role}Button")
            button.connect("clicked()", lambda role=role: self.setRole(role))
        self.ui.filterEdit.connect("textChanged(QString)", self.table.filter)
        self.ui.casesTable.setContextMenuPolicy(qt.Qt.CustomContextMenu)
        self.ui.casesTable.connect("customContextMenuRequested(QPoint)", self.onContextMenu)
        self.ui.casesTable.connect("clicked(QModelIndex)", self.onClicked)
        self._selection = self.ui.casesTable.selectionModel()
        self._selection.connect(
            "selectionChanged(QItemSelection,QItemSelection)", lambda *_selection: self._allow()
        )
        for selector in (self.ui.volumeSelector, self.ui.segmentationSelector):
            selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: self._allow(headers=True))
        self.ui.addingBar.visible = False

    def enter(self) -> None:
        """Results may be new although the study's file is as it was."""
        self._stale = True
        self.attempt(self.logic.lookAgain)

    def opened(self) -> None:
        self.refresh()

    def changed(self, what: str) -> None:
        if what == STUDY:
            self._offered = ""
        if what in (STUDY, CASES):
            self._stale = True
            if self.session.study is not None:
                remember_files(self.session.study)
        if what == RESULTS:
            if not self._stale and self.session.study is not None:
                self.table.showCases(self.session.study, self.session.fresh)
        elif what != PROGRESS:
            self.refresh()

    def refresh(self) -> None:
        """The table is filled only while it can be seen."""
        study = self.session.study
        if self._stale and not self.section.collapsed:
            self.table.show(study)
            self._stale = False
        cases = [] if study is None else list(study.cases.values())
        counts = {role: sum(case.role == role for case in cases) for role in ROLES}
        self.ui.studyLabel.text = _("No study is open.") if study is None else str(study.root)
        self.ui.emptyLabel.text = self._nextWords(counts)
        self.ui.emptyLabel.visible = bool(self.ui.emptyLabel.text)
        self.primaryButton = "newStudyButton" if study is None else "addVolumeButton"
        self._allow()
        if study is None:
            self.setState(EMPTY, _("no study open"))
        elif not cases:
            self.setState(READY, _("no cases yet"))
        else:
            words = _("{count} cases, {labeled} labeled").format(count=len(cases), labeled=counts["labeled"])
            self.setState(DONE if counts["labeled"] else READY, words)

    def _nextWords(self, counts: dict[str, int]) -> str:
        if self._offered:
            return _("This scene belongs to the study {folder}: open it.").format(folder=self._offered)
        if self.session.study is None:
            return _("Make a new study for your cohort, or open one.")
        if not sum(counts.values()):
            return _("Add the volumes of the cohort: a folder, a DICOM series, or a volume that is loaded.")
        if not counts["labeled"]:
            return _("Label at least one case: draw it, choose the segmentation below, and use it as label.")
        if not counts["unlabeled"] and not counts["test"]:
            return _("Add the cases that are to be segmented, as unlabeled.")
        return ""

    def _allow(self, headers: bool = False) -> None:
        study, selected = self.session.study, self.table.selected()
        none = _("Create or open a study first.") if study is None else ""
        if study is not None and study.readonly:
            none = _("This study is read-only: copy it to a folder where you can write.")
        adding = _("Images are being read; wait for the end, or stop it.") if self._adding is not None else ""
        for role in ROLES:
            reason = none or ("" if selected else _("Select cases in the table first."))
            self.allow(getattr(self.ui, f"{role}Button"), reason)
        for button in (self.ui.addFolderButton, self.ui.addDicomButton):
            self.allow(button, none or adding)
        outside = [] if study is None else study.outside_files()
        inside = "" if outside else _("All images are in the study's own folder.")
        for button in (self.ui.relinkButton, self.ui.packButton):
            self.allow(button, none or adding or inside)
        self.allow(self.ui.stopAddingButton, "" if adding else _("No images are being read."))
        self.allow(self.ui.openStudyButton, adding)
        self.allow(self.ui.newStudyButton, adding)
        segmentation = self.ui.segmentationSelector.currentNode()
        waits = none or ("" if segmentation is not None else _("Choose a segmentation first."))
        if not waits and len(selected) != 1:
            waits = _("Select one case in the table first.")
        self.allow(self.ui.setLabelButton, waits)
        chosen = self.ui.volumeSelector.currentNode() is not None
        self.primaryReason = none or ("" if chosen else _("Choose a loaded volume first."))
        if study is None:
            self.allow(self.ui.addVolumeButton, none)
            self.primaryReason = adding
        if headers:
            self.panel.showHeaders()

    def reopen(self, folder: str) -> None:
        """Open the study that a scene names, where it is here and its files are known."""
        if Path(folder, STUDY_FILE).is_file():
            self.attempt(lambda: self._reopen(folder), wait=True)

    def _reopen(self, folder: str) -> None:
        if knows_files(Study.open(folder)):
            self.logic.openStudy(folder)
        else:
            self.offer(folder)

    def offer(self, folder: str) -> None:
        """Say which study the scene belongs to, where it is here; "" for the one that is open, or none."""
        self._offered = folder if folder and Path(folder, STUDY_FILE).is_file() else ""
        self.refresh()

    def onNewStudy(self) -> None:
        """Ask for a folder and for what is to be segmented, and make the study."""
        folder = self.questions.folder(_("An empty folder for the new study"), self._lastFolder())
        if folder is None:
            return
        structures = ask_for_structures(self.questions, self.ui.segmentationSelector.currentNode())
        if structures is not None:
            self.logic.createStudy(folder, structures)
            self._remember(folder)

    def onOpenStudy(self) -> None:
        """Ask for a study folder and open it."""
        start = self._offered or self._lastFolder()
        folder = self.questions.folder(_("A study folder (with study.json in it)"), start)
        if folder is not None:
            self._open(folder)
            self._remember(folder)

    def _open(self, folder: Path | str) -> None:
        if agrees_to_files(self.questions, folder):
            self.logic.openStudy(folder)

    def onAddVolume(self) -> None:
        """Add the loaded volume that is chosen, with its segmentation."""
        volume, segmentation = (
            self.ui.volumeSelector.currentNode(),
            self.ui.segmentationSelector.currentNode(),
        )
        case = ask_about_label(
            self.questions,
            lambda **allowed: self.logic.addVolume(volume, segmentation, **allowed),
            volume.GetName(),
        )
        if case is None:
            return
        self.ui.segmentationSelector.setCurrentNode(None)
        self.table.select([case.id])
        self._say(_("Added {case} as {role}.").format(case=case.id, role=role_words()[case.role]))

    def onSetLabel(self) -> None:
        """Make the chosen segmentation the label of the selected case."""
        (id,) = self.table.selected()
        node = self.ui.segmentationSelector.currentNode()
        path = ask_about_label(self.questions, lambda **allowed: self.logic.setLabel(id, node, **allowed), id)
        if path is not None:
            self._say(_("{case} has a new label.").format(case=id))

    def onAddFolder(self) -> None:
        """Ask for a folder, and for that of the labels, and add its images in a process of their own."""
        folder = self.questions.folder(_("A folder of images"), self._lastFolder())
        if folder is None:
            return
        options = [_("Beside the images, or there are none"), _("In another folder")]
        where = self.questions.choose(_("Labels"), _("Where are the labels?"), options)
        labels = self.questions.folder(_("The folder of the labels"), str(folder)) if where == 1 else None
        if where is None or (where == 1 and labels is None):
            return
        self._remember(folder)
        labels_folder = None if labels is None else str(labels)
        self._begin("add_folder", self._added, folder=str(folder), labels=labels_folder)

    def onAddDicom(self) -> None:
        """Ask for a folder of DICOM slices, and find out in a process of its own which series are there."""
        folder, study = (
            self.questions.folder(_("A folder of DICOM slices"), self._lastFolder()),
            self.logic.study,
        )
        if folder is not None:
            self._remember(folder)
            chore = start_chore("dicom_series", folder=str(folder))
            self._follow(chore, lambda found: self._addSeries(study, folder, found))

    def _addSeries(self, study: Study, folder: Path, found: list[dict[str, str]]) -> str:
        """Add the only series that was found, or the one that the user chooses; returns what is going on."""
        if self.session.study is not study:
            return ""
        number: int | None = 0
        if len(found) > 1:
            options = [series["description"] for series in found]
            number = self.questions.choose(_("DICOM series"), _("Which series?"), options)
        if number is None:
            return ""
        self._begin("add_dicom", self._added, folder=str(folder), series=found[number]["uid"])
        return str(self.ui.addingLabel.text)

    def onRelink(self) -> None:
        """Ask where images that were moved are now, and find them there."""
        folder = self.questions.folder(_("The folder that the images were moved to"), self._lastFolder())
        if folder is not None:
            self._begin("relink", self._relinked, folder=str(folder))

    def onPack(self) -> None:
        """Copy the images that lie elsewhere into the study, after a question."""
        files = self.logic.study.outside_files()
        if self.questions.confirm(
            _("Copy {count} images into {folder}? The study can then be moved as a whole.").format(
                count=len(files), folder=self.logic.study.root
            ),
            _("Copy the images"),
        ):
            self._begin("pack", lambda ids: _("{count} images were copied.").format(count=len(ids)))

    def onStopAdding(self) -> None:
        """Stop adding; the second time at once."""
        if self._adding is not None:
            self._adding.cancel()
            self._say(_("Stopping…"))

    def _begin(self, chore: str, told: Callable[[Any], str], **arguments: Any) -> None:
        """Start a chore on the study; ``told`` puts its result in words."""
        self._follow(start_chore(chore, study=str(self.logic.study.root), **arguments), told)

    def _follow(self, chore: Chore, told: Callable[[Any], str]) -> None:
        self._before = {case.id: case.image for case in self.logic.study.cases.values()}
        self._adding = ChoreFollower(
            chore,
            lambda chore: self._ended(chore, told),
            lambda chore: self._reload(),
        )
        self.ui.addingBar.visible = True
        self._say(_("Images are being read and checked."))
        self.refresh()

    def _ended(self, chore: Chore, told: Callable[[Any], str]) -> None:
        self._adding = None
        self.ui.addingBar.visible = False
        self._reload()
        if chore.state == "cancelled":
            self._say(self._stopped())
        elif chore.error is not None:
            self._say("")
            self.panel.showError(chore.error.message, chore.error.hint)
        else:
            self._say(self.attempt(lambda: told(chore.result)) or "")
        self.refresh()
        self.panel.showHeaders()

    def _added(self, result: dict[str, Any]) -> str:
        words = _("{count} cases were added.").format(count=len(result["added"]))
        return "\n".join([words, *result["problems"]])

    def _stopped(self) -> str:
        """What was done by a chore that was stopped, also by force: batches of it are in the study."""
        study = self.session.study
        cases = [] if study is None else list(study.cases.values())
        added = sum(case.id not in self._before for case in cases)
        moved = sum(case.image != self._before.get(case.id, case.image) for case in cases)
        if moved:
            return _("Stopped. {count} images were found or copied by then.").format(count=moved)
        if added:
            return _("Stopped. {count} cases were added by then.").format(count=added)
        return _("Stopped; nothing was changed.")

    def _relinked(self, result: dict[str, Any]) -> str:
        if not result["found"] and not result["missing"]:
            return _("No image is missing.")
        words = _("{count} images were found again.").format(count=len(result["found"]))
        return "\n".join([words, *(f"{id}: {why}" for id, why in result["missing"].items())])

    def _reload(self) -> None:
        if self.session.study is not None:
            self.attempt(self.logic.reloadStudy)

    def setRole(self, role: str) -> None:
        """Give the selected cases a role."""
        ids = self.table.selected()
        self.attempt(lambda: self.logic.setRole(ids, role))
        self.table.select(ids)

    def onClicked(self, index: Any) -> None:
        """A click on a role offers the others."""
        if index.column() == ROLE:
            self._showMenu(qt.QCursor.pos(), roles_only=True)

    def onContextMenu(self, point: Any) -> None:
        """What can be done with the selected cases."""
        id = self.table.idAt(self.ui.casesTable.indexAt(point))
        if id is not None and id not in self.table.selected():
            self.table.select([id])
        self._showMenu(self.ui.casesTable.viewport().mapToGlobal(point), roles_only=False)

    def _showMenu(self, place: Any, roles_only: bool) -> None:
        selected = self.table.selected()
        if not selected or not self.ui.labeledButton.enabled:
            return
        self.menu = qt.QMenu(self.ui.casesTable)
        for role, words in role_words().items():
            self._offer(_("Make {role}").format(role=words), lambda role=role: self.setRole(role))
        if not roles_only and len(selected) == 1:
            self.menu.addSeparator()
            self._offer(
                _("Show in Slicer"), lambda: self.attempt(lambda: self._showCase(selected[0]), wait=True)
            )
            if self.ui.setLabelButton.enabled:
                self._offer(_("Use the chosen segmentation as label"), self.ui.setLabelButton.click)
                self._offer(
                    _("Keep the chosen segmentation for scoring"), lambda: self._setReference(selected[0])
                )
        self.menu.popup(place)

    def _offer(self, text: str, act: Any) -> None:
        action = self.menu.addAction(text)
        action.connect("triggered()", self.panel.clearError)
        action.connect("triggered()", act)

    def _setReference(self, id: str) -> None:
        node = self.ui.segmentationSelector.currentNode()
        self.attempt(
            lambda: ask_about_label(
                self.questions, lambda **allowed: self.logic.setReference(id, node, **allowed), id
            )
        )

    def _showCase(self, id: str) -> None:
        slicer.util.setSliceViewerLayers(background=self.logic.loadImage(id), fit=True)

    def _say(self, text: str) -> None:
        self.ui.addingLabel.text = text
        self.ui.addingLabel.visible = bool(text)

    def _lastFolder(self) -> str:
        return str(slicer.util.settingsValue(LAST_FOLDER, ""))

    def _remember(self, folder: Path) -> None:
        qt.QSettings().setValue(LAST_FOLDER, str(Path(folder).parent))

    def cleanup(self) -> None:
        if self._adding is not None:
            self._adding.stop()
