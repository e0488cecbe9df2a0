"""What the steps share: the open study, the job that is followed, and who wants to know when they change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from SFRCore.errors import InputError
from SFRCore.study import Study
from SFRCore.study.folder import STUDY_FILE, FileStamp, file_stamp

if TYPE_CHECKING:
    from .running_job import RunningJob

_log = logging.getLogger("SFR")

STUDY, CASES, RESULTS, JOB, PROGRESS, CHORE = "study", "cases", "results", "job", "progress", "chore"
"""What can change: another study is open (or none); cases, labels or roles of it; results of the cases in
``Session.fresh``, at most every two seconds while a job runs; a job began or ended; the followed job said
something; an installation or download began or ended."""

Listener = Callable[[str], None]


class Session:
    """``study`` is the open one or None, ``job`` the job that runs in it or ran last while this looked on,
    ``fresh`` the cases that the last RESULTS is about.

    Listeners are plain functions that are called with what changed, one of the words above. One that fails is
    reported to the log and does not keep the others from being called.
    """

    def __init__(self) -> None:
        self.study: Study | None = None
        self.job: RunningJob | None = None
        self.fresh: list[str] = []
        self._listeners: list[Listener] = []
        self._seen: FileStamp | None = None

    def listen(self, listener: Listener) -> None:
        """Call ``listener(what)`` at every change from now on."""
        self._listeners.append(listener)

    def forget(self, listener: Listener) -> None:
        """Call it no more; without effect where it was not listening."""
        self._listeners = [known for known in self._listeners if known != listener]

    def changed(self, what: str) -> None:
        """Tell everybody that ``what`` changed."""
        if what in (STUDY, CASES):
            self._seen = self._stamp()
        for listener in list(self._listeners):
            try:
                listener(what)
            except Exception:
                _log.exception("The panel could not show a change (%s)", what)

    def setStudy(self, study: Study | None) -> None:
        """Make ``study`` the open one; a job of another study goes on but is no longer followed."""
        if self.job is not None and (study is None or self.job.studyRoot != Path(study.root)):
            self.job.leave()
            self.job = None
        self.study = study
        self.changed(STUDY)

    def setJob(self, job: RunningJob | None) -> None:
        """Follow ``job`` from now on."""
        if self.job is not None and self.job is not job:
            self.job.leave()
        self.job = job
        self.changed(JOB)

    @property
    def busy(self) -> bool:
        """Whether a job runs in the open study."""
        return self.job is not None and self.job.running

    @property
    def outdated(self) -> bool:
        """Whether somebody else wrote the study's file since the last STUDY or CASES."""
        return self._stamp() != self._seen

    def _stamp(self) -> FileStamp | None:
        return None if self.study is None else file_stamp(self.study.root / STUDY_FILE)

    def requireStudy(self) -> Study:
        """The open study; raises InputError where there is none."""
        if self.study is None:
            raise InputError("No study is open.", hint="Create or open a study folder first.")
        return self.study
