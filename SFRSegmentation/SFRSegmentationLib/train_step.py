"""Step 3: one Run button, the progress of its stages, Cancel and Continue; single steps for those who want
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from SFRCore.foundation.download import CHECKPOINTS, is_downloaded
from SFRCore.runtime.jobs import Job

from .downloads import FOUNDATION_FILE
from .log_tail import LogTail
from .loss_curve import draw_curves
from .run_choices import OF_PREDICT, RunChoices, choices_of
from .running_job import ALIVE, RunningJob
from .session import JOB, PROGRESS, RESULTS, STUDY
from .stage_bars import StageBars
from .step import DONE, EMPTY, READY, RUNNING, Step
from .train_words import (
    command_words,
    duration,
    end_words,
    estimate_words,
    plan_words,
    stage_words,
)
from .worker import COMMANDS

SINGLE = ("finetune", "pseudolabel", "retrain", "predict")
STOPPED = ("cancelled", "failed", "died")


class TrainStep(Step):
    """Starts jobs and shows the one that is followed, else the newest that ended while nobody looked on.
    ``choices`` are the controls of a run's settings.
    """

    uiFile = "Train.ui"
    title = _("Train")
    primaryButton = "runButton"

    def setup(self) -> None:
        self.choices = RunChoices(self.ui, self._chosen)
        self.bars = StageBars(self.ui.stagesHolder)
        self.log = LogTail(self.ui.trainLogView)
        self._last: tuple[str, str, Sequence[str], dict[str, Any] | None] | None = None
        self._past: RunningJob | None = None
        self._shownRun = ""
        self.ui.runButton.connect("clicked()", lambda: self._start("run"))
        self.ui.continueButton.connect("clicked()", lambda: self.attempt(self.onContinue))
        self.ui.startAnywayButton.connect("clicked()", lambda: self.attempt(self.onStartAnyway))
        self.ui.stopButton.connect("clicked()", lambda: self.attempt(self.onStop))
        self.ui.copyLogButton.connect("clicked()", lambda: self.attempt(self.onCopyLog))
        for command in SINGLE:
            button = getattr(self.ui, f"{command}Button")
            button.connect("clicked()", lambda command=command: self._start(command))
        self.ui.trainLogGroup.connect("toggled(bool)", lambda open: self._showLog())
        self._showRecipe()

    def enter(self) -> None:
        """A job of somebody else may have begun and ended meanwhile."""
        if not self.session.busy:
            self._lookBack()

    def cleanup(self) -> None:
        self._leavePast()

    def opened(self) -> None:
        self.refresh()

    def changed(self, what: str) -> None:
        if what == PROGRESS:
            self._showProgress()
            self.panel.showHeaders()
        elif what != RESULTS:
            if what == STUDY:
                self._newStudy()
            if what == JOB:
                self._leavePast()
                self._lookBack()
            self.refresh()
            if what == JOB:
                self._announce()

    def _newStudy(self) -> None:
        self._leavePast()
        self._lookBack()
        study = self.session.study
        if study is not None:
            self.choices.show(study.preset, choices_of([job.info for job in self._jobs()]))

    def _lookBack(self) -> None:
        """Remember the newest run of the study: its command, state, words and error, and what it said where
        it ended while nobody looked on.
        """
        study = self.session.study
        self._last = None
        if study is None:
            return
        jobs = self._jobs()
        if jobs:
            job, info = jobs[-1], jobs[-1].info
            words = [str(word) for word in info.get("args") or ()]
            self._last = str(info["command"]), job.state, words, job.error()
            known = (shown.run for shown in (self._past, self.session.job) if shown is not None)
            if job.run not in known and self._last[1] not in ALIVE and not self.session.busy:
                self._leavePast()
                self._past = RunningJob(job, lambda job, ended: self._showProgress())

    def _jobs(self) -> list[Job]:
        """The runs and single steps of the open study, oldest first."""
        return [job for job in Job.list(self.session.study.root) if job.info.get("command") in COMMANDS]

    def _leavePast(self) -> None:
        if self._past is not None:
            self._past.leave()
            self._past = None

    @property
    def _job(self) -> RunningJob | None:
        """The job that is shown."""
        return self._past or self.session.job

    def refresh(self) -> None:
        study, job = self.session.study, self._job
        self.choices.showDevices(getattr(self.panel.steps.get("setUp"), "doctor", None))
        self.choices.showFile(str(slicer.util.settingsValue(FOUNDATION_FILE, "") or ""))
        waits = self._waits()
        model = waits or self._missingModel()
        long = self._refusedAsLong()
        stopped = self._last is not None and self._last[1] in STOPPED and bool(self._last[2]) and not long
        self.primaryButton = "continueButton" if stopped and not self.session.busy else "runButton"
        self.primaryReason = waits if self.primaryButton == "continueButton" else model
        for command in SINGLE:
            needs = command in ("finetune", "pseudolabel")
            self.allow(getattr(self.ui, f"{command}Button"), model if needs else waits)
        if self.primaryButton == "continueButton":
            self.allow(self.ui.runButton, model)
        else:
            self.allow(self.ui.continueButton, waits or _("No job was stopped before its end."))
        self.allow(
            self.ui.startAnywayButton, waits or ("" if long else _("No job was found to be too long."))
        )
        self.ui.startAnywayButton.visible = long and not self.session.busy
        self.allow(self.ui.stopButton, self._stopWaits())
        self.allow(self.ui.copyLogButton, "" if job is not None else _("No job has run yet."))
        if job is None:
            self._showNothing()
        self._showProgress()
        if study is None:
            self.setState(EMPTY, _("no study open"))
        elif not self.session.busy:
            self._showRest()

    def _refusedAsLong(self) -> bool:
        """Whether the last job ended at its start because it would take very long."""
        return self._last is not None and (self._last[3] or {}).get("code") == "long_run"

    def _waits(self) -> str:
        study = self.session.study
        setUp = self.panel.steps.get("setUp")
        if study is None:
            return _("Create or open a study in step 2 first.")
        if self.session.busy:
            return _("A job is running in this study.")
        if study.readonly:
            return _("This study is read-only: copy it to a folder where you can write.")
        if setUp is not None and setUp.state != DONE:
            return _("Install what is missing in step 1 first.")
        if not study.labeled_cases():
            return _("Label at least one case in step 2 first.")
        return ""

    def _stopWaits(self) -> str:
        job = self.session.job
        if job is None or not job.running:
            return _("No job is running.")
        if not job.reached:
            return _("The study's folder cannot be reached.")
        if job.stopping and job.elsewhere:
            return _("It was asked to stop. It runs on {host}, and can be ended at once only there.").format(
                host=job.elsewhere
            )
        return ""

    def _missingModel(self) -> str:
        name = self.choices.value("foundation")
        if self.choices.value("recipe") == "baseline" or name not in CHECKPOINTS or is_downloaded(name):
            return ""
        return _("Download {model} in step 1 first, or choose another foundation.").format(model=name)

    def _showRest(self) -> None:
        if self._last is None:
            waits = self.primaryReason
            self.ui.jobLabel.text = waits or _(
                "Press Run. It goes on in the background, even if you close Slicer."
            )
            labeled = bool(self.logic.study.labeled_cases())
            note = _("not ready yet") if labeled else _("waits for a labeled case")
            self.setState(EMPTY if waits else READY, note if waits else "")
            return
        command, state, _words, error = self._last
        self.ui.jobLabel.text = end_words(command, state, error)
        words = {"finished": "", "cancelled": _("stopped"), "failed": _("failed"), "died": _("crashed")}.get(
            state, ""
        )
        if self._refusedAsLong():
            self.ui.jobLabel.text += "\n" + _("Start it anyway?")
            words = _("waits for your answer")
        self.setState(DONE if state == "finished" else READY, words)

    def _showNothing(self) -> None:
        self.bars.clear()
        self._shownRun = ""
        self.log.follow(None)
        self.ui.jobLabel.text = ""
        for label in (self.ui.estimateLabel, self.ui.warningsLabel, self.ui.curveLabel):
            label.visible = False

    def _showProgress(self) -> None:
        job = self._job
        if job is None:
            return
        if job.run != self._shownRun:
            self.bars.clear()
            self._shownRun = job.run
            self.log.follow(job.logFile)
        stage = job.progress.current
        self.ui.stopButton.text = _("Stop now") if job.stopping else _("Cancel")
        self.allow(self.ui.stopButton, self._stopWaits())
        if job.running:
            self._showRunning(job, stage)
        if self.section.collapsed:
            return
        self.bars.show(job.progress.stages)
        for label, text in (
            (
                self.ui.estimateLabel,
                " ".join([plan_words(job.progress), estimate_words(job.progress)]).strip(),
            ),
            (self.ui.warningsLabel, "\n".join(job.progress.warnings)),
        ):
            label.text = text
            label.visible = bool(text)
        names = {name: stage_words(name) for name in job.progress.curves}
        draw_curves(self.ui.curveLabel, job.progress.curves, names)
        self._showLog()

    def _showRunning(self, job: Any, stage: Any) -> None:
        if not job.reached:
            self.ui.jobLabel.text = _(
                "The study's folder cannot be reached: {folder}. The job may still be running. Connect its "
                "drive again; the job is then followed as before."
            ).format(folder=job.studyRoot)
            self.state, self.note = RUNNING, _("the study's folder cannot be reached")
            return
        if job.stopping:
            words = _("Stopping: it writes what it has done so far.")
            if job.elsewhere:
                words += " " + _("It runs on {host}, which may take a while to notice.").format(
                    host=job.elsewhere
                )
            if job.trouble:
                words += " " + _("It could not be ended: {reason}").format(reason=job.trouble)
        elif stage is None or not stage.name:
            words = _("{job}: starting.").format(job=command_words(job.command))
        else:
            words = _("{job}: {stage}.").format(job=command_words(job.command), stage=stage_words(stage.name))
        self.ui.jobLabel.text = words
        note = _("running")
        if stage is not None and stage.total:
            note = f"{stage_words(stage.name)}, {100 * stage.fraction:.0f} %"
            if stage.remaining is not None:
                note += ", " + _("{time} left").format(time=duration(stage.remaining))
        self.state, self.note = RUNNING, note

    def _showLog(self) -> None:
        if not self.ui.trainLogGroup.collapsed:
            self.log.read()

    def _chosen(self) -> None:
        self._showRecipe()
        self.refresh()
        self.panel.showHeaders()

    def _showRecipe(self) -> None:
        for combo, label in (
            (self.ui.recipeCombo, self.ui.recipeWords), (self.ui.methodCombo, self.ui.methodWords),
        ):  # fmt: skip
            words = str(combo.itemData(combo.currentIndex, qt.Qt.ToolTipRole) or "").strip()
            label.text = words if words.endswith(".") or not words else words + "."

    def _start(self, command: str, **more: Any) -> None:
        started = self.attempt(lambda: (self.start(command, **more), True))
        if started is None and self.session.study is not None and not self.session.busy:
            self.logic.runningJob()  # somebody else's, that it was refused for

    def start(self, command: str, **more: Any) -> None:
        """Start a job with the settings that are shown."""
        options = self.choices.options()
        if command == "predict":
            options = {name: value for name, value in options.items() if name in OF_PREDICT}
        elif options["preset"] != self.logic.study.preset:
            self.logic.study.preset = options["preset"]
        self.logic.start(command, **options, **more)

    def onContinue(self) -> None:
        """Start the last job again with its own words: it goes on from its checkpoint."""
        if self._last is not None:
            self.logic.startAgain(self._last[2])

    def onStartAnyway(self) -> None:
        """Start the job that was refused because of its length, whatever it takes."""
        if self._last is not None:
            self.logic.startAgain([*self._last[2], "--yes"])

    def onStop(self) -> None:
        """Ask the job to stop; the second time it is ended at once."""
        if self.session.job is not None:
            self.session.job.cancel()
            self._showProgress()

    def onCopyLog(self) -> None:
        """The whole log to the clipboard."""
        job = self._job
        if job is not None:
            text = job.logFile.read_text(encoding="utf-8", errors="replace")
            qt.QApplication.clipboard().setText(text)

    def _announce(self) -> None:
        """Say that the job has ended, also to a user who is elsewhere."""
        job = self.session.job
        if job is None or job.running:
            return
        error = job.error or {}
        slicer.util.showStatusMessage(end_words(job.command, job.state, error), 10000)
        if job.state in ("failed", "died") and error.get("code") != "long_run":
            self.panel.showError(str(error.get("message", "")), str(error.get("hint", "")))
