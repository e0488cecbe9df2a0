"""Step 5: predictions into the scene, volumes and scores, export, and the student on any loaded volume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from SFRCore.study import Structure, Study

from . import scene
from .apply_student import Application, show_applied, start_apply, students, tidy
from .chore_follower import ChoreFollower
from .chores import Chore
from .one_by_one import Action, OneByOne
from .result_files import (
    ResultRow,
    nifti_path,
    result_rows,
    segmentation_path,
    write_nifti,
    write_segmentation,
    write_table,
)
from .session import JOB, PROGRESS, RESULTS, STUDY
from .slice_layers import hide_other_results, show_layers
from .step import DONE, EMPTY, READY, RUNNING, Step
from .table_rows import TableRows
from .train_words import memory

MANY = 10
"""So many cases are loaded without a question."""
_ROW_HEIGHT = 24


class ResultsStep(Step):
    """``rows`` are the predicted cases, as the table lists them."""

    uiFile = "Results.ui"
    title = _("Results")
    primaryButton = "loadButton"

    def setup(self) -> None:
        self.rows: list[ResultRow] = []
        self.work = OneByOne(self._refreshWork, self._onWorkEnd)
        self.application: Application | None = None
        self._follower: ChoreFollower | None = None
        self._what = self._last = self._shown = ""
        self._then: Action | None = None
        self._models: list[Path] = []
        self._listed: list[ResultRow] = []
        self._columns: list[Structure] | None = None
        self._model = qt.QStandardItemModel()
        self._table = TableRows(self._model)
        self.ui.resultsView.setModel(self._model)
        self.ui.resultsView.verticalHeader().setVisible(False)
        self.ui.resultsView.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        self.ui.resultsView.horizontalHeader().setStretchLastSection(True)
        self.ui.resultsView.verticalHeader().setDefaultSectionSize(_ROW_HEIGHT)
        self.ui.loadButton.connect("clicked()", lambda: self.onLoad(images=False))
        self.ui.loadImagesButton.connect("clicked()", lambda: self.onLoad(images=True))
        self.ui.scoresButton.connect("clicked()", self.onScores)
        self.ui.reportButton.connect("clicked()", self.onReport)
        self.ui.exportSegmentationsButton.connect(
            "clicked()", lambda: self.onExport(write_segmentation, segmentation_path)
        )
        self.ui.exportNiftiButton.connect("clicked()", lambda: self.onExport(write_nifti, nifti_path))
        self.ui.exportTableButton.connect("clicked()", self.onExportTable)
        self.ui.applySelector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: self._refreshApply())
        self.ui.applyButton.connect("clicked()", self.onApply)
        self.ui.cancelApplyButton.connect("clicked()", self.onCancel)

    def opened(self) -> None:
        self.refresh()

    def sceneClosing(self) -> None:
        """What was begun for nodes of this scene is not put into the next one."""
        if self.work.running:
            self.work.stop()
            self._last = _("Stopped, because the scene was closed.")
        if self.application is not None and self._follower is not None:
            self._then = None
            self._follower.cancel()

    def sceneChanged(self) -> None:
        self.refresh()

    def cleanup(self) -> None:
        self.work.stop()
        if self._follower is not None:
            self._follower.stop()
            self._follower.chore.cancel()
        if self.application is not None:
            tidy(self.application)

    def changed(self, what: str) -> None:
        """While a job runs only the cases that it has finished are looked at again."""
        study = self.session.study
        if what == STUDY:
            self._leaveStudy()
        if what == RESULTS and study is not None:
            fresh = set(self.session.fresh)
            known = {row.id: row for row in self.rows if row.id not in fresh}
            known |= {row.id: row for row in result_rows(study, fresh)}
            self.rows = [known[id] for id in study.cases if id in known]
            self._fillTable(study)
            self._refreshButtons(study)
        elif what == JOB:
            self._refreshButtons(study)
        elif what != PROGRESS:
            self.refresh()

    def _leaveStudy(self) -> None:
        """What was begun for the study that was open is not gone on with in the next one; scores and a report
        are written by themselves. A volume that is being segmented is of the scene, not of the study.
        """
        self._last = ""
        if self.work.running:
            self._last = _("{what}: stopped after {done} of {total}, because the study was left.").format(
                what=self._what, done=self.work.done, total=self.work.total
            )
            self.work.stop()
        if self._follower is not None and self.application is None:
            self._last = _("{what}: goes on for the study that was left.").format(what=self._what)
            self._follower.stop()
            self._follower = self._then = None

    def refresh(self) -> None:
        study = self.session.study
        self.rows = [] if study is None else result_rows(study)
        self._fillTable(study)
        self._fillModels(study)
        self._refreshButtons(study)

    # What the user does

    def onLoad(self, images: bool) -> None:
        """Predictions become segmentation nodes, one at a time; for many the user is asked first.

        The last one is shown, with its image where that is loaded too.
        """
        study, ids = self.session.study, self.selected()
        if len(ids) > MANY and not self._mayLoad(study, ids, images):
            return

        def load(id: str) -> None:
            image = scene.load_image(study, id) if images else None
            hide_other_results(scene.load_result(study, id))
            if image is not None:
                show_layers(image, None, 0.0, fit=True)
            self._shown = id

        self._shown = ""
        self._start(_("Loading predictions"), [(id, lambda id=id: load(id)) for id in ids])

    def _mayLoad(self, study: Study, ids: list[str], images: bool) -> bool:
        question = _("Load the predictions of {count} cases? They take about {memory} of memory.")
        if images:
            question = _("Load {count} cases with their images? They take about {memory} of memory.")
        size = memory(scene.memory_of(study, ids, images=images))
        return self.questions.confirm(
            question.format(count=len(ids), memory=size),
            _("Load many cases"),
            _("To load only some cases, cancel and select their rows in the table first."),
        )

    def onExport(self, write: Any, target: Any) -> None:
        """Predictions become files in a folder that the user chooses; none is replaced unasked."""
        study = self.session.study
        folder = self.questions.folder(_("Export the predictions to"), str(study.exports_dir))
        if folder is None:
            return
        ids = self.selected()
        if self._mayReplace(folder, [target(id, folder) for id in ids]):
            self._start(
                _("Exporting to {folder}").format(folder=folder),
                [(id, lambda id=id: write(study, id, folder)) for id in ids],
            )

    def _mayReplace(self, folder: Path, targets: list[Path]) -> bool:
        there = [target.name for target in targets if os.path.exists(target)]
        question = _("{count} of the {total} files to write are in {folder} already. Replace them?")
        return not there or self.questions.confirm(
            question.format(count=len(there), total=len(targets), folder=folder),
            _("Replace files"),
            "\n".join(there),
        )

    def onExportTable(self) -> None:
        """Volumes and scores of all cases become one table."""
        study = self.session.study
        start = str(study.exports_dir / "predictions.csv")
        path = self.questions.saveFile(_("Export volumes and scores"), start, "CSV (*.csv)")
        if path is not None and self.attempt(lambda: write_table(study, path)) is not None:
            self._say(_("Written: {path}").format(path=path))

    def onScores(self) -> None:
        """The predictions are compared with the references, by the worker."""
        self._follow(
            _("Computing scores"),
            lambda: self.logic.startCommand("evaluate", cases="all"),
            lambda chore: self._say(_("Scores are computed: see the column Dice.")),
        )

    def onReport(self) -> None:
        """The report is written by the worker and opened."""
        self._follow(
            _("Writing the report"), lambda: self.logic.startCommand("report"), self._onReportWritten
        )

    def onApply(self) -> None:
        """A volume that is not in the study is segmented, by the worker."""
        volume = self.ui.applySelector.currentNode()
        index = self.ui.studentCombo.currentIndex
        if volume is None or not 0 <= index < len(self._models):
            return
        application = self.attempt(lambda: start_apply(self._models[index], volume), wait=True)
        if application is not None:
            self.application = application
            name = _("Segmenting {name}").format(name=application.name)
            self._follow(name, lambda: application.chore, lambda chore: self._onApplied(application))

    def onCancel(self) -> None:
        """What runs is stopped."""
        if self._follower is not None:
            self._follower.cancel()
        if self.work.running:
            done = self.work.done
            self.work.stop()
            self._say(_("Stopped after {done} of {total}.").format(done=done, total=self.work.total))

    def selected(self) -> list[str]:
        """The ids of the selected rows, or of all where none is selected."""
        return [self.rows[number].id for number in self._chosen()] or [row.id for row in self.rows]

    def openPage(self, path: Path) -> None:
        """Show a page in the user's browser."""
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path)))

    # What runs

    @property
    def busy(self) -> bool:
        """Whether something runs."""
        return self.work.running or self._follower is not None

    def _start(self, what: str, actions: list[tuple[str, Action]]) -> None:
        self._what = what
        self.work.start(actions)
        self._refreshButtons(self.session.study)

    def _follow(self, what: str, start: Any, then: Any) -> None:
        chore = self.attempt(start)
        if chore is None:
            return
        self._what, self._then = what, then
        self._follower = ChoreFollower(chore, self._onChoreEnd)
        self._refreshButtons(self.session.study)

    def _onChoreEnd(self, chore: Chore) -> None:
        then, self._then, self._follower = self._then, None, None
        application, self.application = self.application, None
        self._last = ""
        if chore.state == "cancelled":
            self._last = _("{what}: cancelled.").format(what=self._what)
        elif chore.error is not None:
            self._last = _("{what}: failed.").format(what=self._what)
            self.panel.showError(chore.error.message, chore.error.hint)
        elif then is not None:
            self.attempt(lambda: then(chore), wait=True)
        if application is not None:
            tidy(application)
        self.refresh()

    def _onApplied(self, application: Application) -> None:
        node = show_applied(application)
        self._last = _("Segmented: see '{name}' in the scene.").format(name=node.GetName())

    def _onReportWritten(self, chore: Chore) -> None:
        path = Path(chore.result["report"])
        self._last = _("Written: {path}").format(path=path)
        self.openPage(path)

    def _onWorkEnd(self) -> None:
        failed = self.work.failures
        done = self.work.total - len(failed)
        self._last = _("{what}: {done} of {total} done.").format(
            what=self._what, done=done, total=self.work.total
        )
        if self._shown and done > 1:
            shown = _("{id} is shown, the others are hidden: the module Data shows them.")
            self._last += " " + shown.format(id=self._shown)
        self._shown = ""
        if failed:
            self.panel.showError(next(iter(failed.values())), _("{n} failed.").format(n=len(failed)))
        self.refresh()

    def _say(self, text: str) -> None:
        self._last = text
        self._refreshButtons(self.session.study)

    # How things stand

    def _fillTable(self, study: Study | None) -> None:
        """List the rows; the selection stays where they are as before."""
        structures = [] if study is None else study.structures
        if self.section.collapsed:
            return
        if structures != self._columns:
            self._nameColumns(structures)
        if self.rows == self._listed:
            return
        before = {row.id: row for row in self._listed}
        moved = [row.id for row in self.rows] != [row.id for row in self._listed]
        chosen = [self._listed[number].id for number in self._chosen()] if moved else []
        self._table.show([self._cells(row, structures) for row in self.rows])
        for number, row in enumerate(self.rows):
            if moved or row != before[row.id]:
                detail = ", ".join(f"{name} {value:.3f}" for name, value in row.dice.items())
                self._model.item(number, len(structures) + 2).setToolTip(detail or self._no_score(row))
        self._listed = list(self.rows)
        if chosen:
            self._choose(chosen)

    def _chosen(self) -> list[int]:
        return sorted({index.row() for index in self.ui.resultsView.selectionModel().selectedRows()})

    def _choose(self, ids: list[str]) -> None:
        """Select the rows of these cases, wherever they are now."""
        selection = self.ui.resultsView.selectionModel()
        selection.clearSelection()
        flags = qt.QItemSelectionModel.Select | qt.QItemSelectionModel.Rows
        for number, row in enumerate(self.rows):
            if row.id in ids:
                selection.select(self._model.index(number, 0), flags)

    def _nameColumns(self, structures: list[Structure]) -> None:
        """The columns of a study; the table is empty then."""
        names = [_("{name}\n(ml)").format(name=structure.name) for structure in structures]
        heads = {
            _("Case"): "",
            **{name: _("Volume of the prediction in milliliters") for name in names},
            _("Expected\nDice"): _("How well the model expects to have done, 0 to 1; the smallest structure"),
            _("Dice"): _("Agreement with the reference, 0 to 1, where the case has one; mean of structures"),
            _("Role"): _("What the case is for: labeled, unlabeled or test"),
        }
        self._table.clear()
        self._model.clear()
        self._model.setHorizontalHeaderLabels(list(heads))
        for column, tip in enumerate(heads.values()):
            self._model.setHeaderData(column, qt.Qt.Horizontal, tip, qt.Qt.ToolTipRole)
        self._columns, self._listed = list(structures), []

    @staticmethod
    def _cells(row: ResultRow, structures: list[Structure]) -> list[str]:
        volumes = [row.result.volume_ml.get(str(s.value)) for s in structures]
        dice = "" if row.mean_dice is None else f"{row.mean_dice:.3f}"
        words = [row.id, *("" if v is None else f"{v:.1f}" for v in volumes)]
        return [*words, f"{row.result.expected_dice:.2f}", dice, row.role]

    def _no_score(self, row: ResultRow) -> str:
        if row.has_reference:
            return _("Press Compute scores to compare this case with its reference.")
        return _("This case has no reference to compare with.")

    def _fillModels(self, study: Study | None) -> None:
        models = [] if study is None else students(study)
        if models != self._models:
            self._models = models
            self.ui.studentCombo.clear()
            self.ui.studentCombo.addItems([model.name for model in models])

    def _refreshButtons(self, study: Study | None) -> None:
        if study is None:
            summary, none = _("Open a study in step 2 first."), _("Waits for a study.")
            self.setState(EMPTY)
        elif not self.rows:
            summary, none = (
                _("No case is predicted yet: run the study in step 3."),
                _("Waits for a prediction."),
            )
            self.setState(EMPTY)
        else:
            summary, none = _("{count} cases are predicted.").format(count=len(self.rows)), ""
            state = RUNNING if self.busy else DONE if self.session.busy is False else READY
            self.setState(state, _("{count} predicted").format(count=len(self.rows)))
        self.ui.resultsSummaryLabel.text = summary
        reason = none or (_("Waits for: {what}.").format(what=self._what) if self.busy else "")
        self.primaryReason = reason
        exports = ("exportSegmentationsButton", "exportNiftiButton", "exportTableButton")
        for name in ("loadImagesButton", "reportButton", *exports):
            self.allow(getattr(self.ui, name), reason)
        unscored = (
            "" if any(row.has_reference for row in self.rows) else _("No predicted case has a reference.")
        )
        self.allow(self.ui.scoresButton, reason or unscored)
        self._refreshApply()
        self._refreshWork()
        self.panel.showHeaders()

    def _refreshApply(self) -> None:
        reason = ""
        if not self._models:
            reason = _("Waits for a trained model: run the study in step 3.")
        elif self.ui.applySelector.currentNode() is None:
            reason = _("Waits for a volume: choose one above.")
        elif self.busy:
            reason = _("Waits for: {what}.").format(what=self._what)
        self.allow(self.ui.applyButton, reason)
        self.allow(self.ui.cancelApplyButton, "" if self.busy else _("Nothing runs."))

    def _refreshWork(self) -> None:
        text = self._last
        if self.work.running:
            text = f"{self._what}: {self.work.done} / {self.work.total}"
        elif self._follower is not None:
            text = f"{self._what}…"
        self.ui.workLabel.text = text
        self.ui.workLabel.visible = bool(text)
