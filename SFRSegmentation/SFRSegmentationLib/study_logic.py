"""Everything that the panel does, as methods for the console and scripts; a method either works or raises
SFRError.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import slicer

from SFRCore.errors import InputError
from SFRCore.runtime.jobs import Job
from SFRCore.study import Case, ReviewItem, Structure, Study

from . import scene
from .apply_student import show_applied, start_apply, students, tidy
from .chore_follower import await_chore
from .chores import Chore
from .result_files import write_nifti, write_segmentation, write_table
from .running_job import RunningJob
from .session import CASES, JOB, PROGRESS, RESULTS, Session
from .set_up_logic import SetUpLogic
from .worker import COMMANDS, start_command, start_job, start_words, words_of

_log = logging.getLogger("SFR")


class StudyLogic(SetUpLogic):
    """The steps of the panel as methods. ``study`` is the open study; ``session`` tells others of changes.

    >>> logic = slicer.util.getModuleLogic("SFRSegmentation")                    # doctest: +SKIP
    >>> logic.createStudy("~/la", structures={1: "Left atrium"})                  # doctest: +SKIP
    >>> logic.addVolume(volumeNode, segmentationNode, role="labeled")             # doctest: +SKIP
    >>> logic.start("run", foundation="vit_b").wait()                             # doctest: +SKIP
    >>> logic.loadPrediction("scan07")                                            # doctest: +SKIP
    """

    session: Session

    @property
    def study(self) -> Study:
        """The open study. Raises InputError where none is open."""
        return self.session.requireStudy()

    def createStudy(
        self,
        folder: Path | str,
        structures: Mapping[int, str] | Iterable[Structure],
        preset: str = "auto",
    ) -> Study:
        """Make a study in a new folder and open it; ``structures`` are value and name, {1: "Left atrium"}."""
        study = Study.create(folder, structures=structures, preset=preset)
        self._open(study)
        return study

    def openStudy(self, folder: Path | str) -> Study:
        """Open a study, and follow the job that runs in it. Files outside it are not touched yet."""
        study = Study.open(folder)
        self._open(study)
        return study

    def closeStudy(self) -> None:
        """Close the study; a job goes on by itself."""
        self.session.setStudy(None)

    def reloadStudy(self) -> None:
        """Read the study's folder again: somebody else may have changed it."""
        self.study.reload()
        self.session.changed(CASES)

    def lookAgain(self) -> None:
        """Take up what others did meanwhile: changes of the open study, and a job that they started in it."""
        if self.session.study is not None:
            if self.session.outdated:
                self.reloadStudy()
            self.runningJob()

    def addVolume(
        self,
        volume: slicer.vtkMRMLScalarVolumeNode,
        segmentation: slicer.vtkMRMLNode | None = None,
        role: str | None = None,
        id: str | None = None,
        resample: bool = False,
        **options: bool,
    ) -> Case:
        """Add a loaded volume, with a segmentation or label map of it. ``resample`` brings a label of another
        grid over; ``options``: other_volume=True takes a segmentation that was drawn on another volume,
        empty=True one in which nothing was drawn. See :func:`.scene.add_volume`.
        """
        case = scene.add_volume(
            self.study, volume, segmentation, role=role, id=id, resample=resample, **options
        )
        self.session.changed(CASES)
        return case

    def addFile(self, image: Path | str, label: Path | str | None = None, **options: Any) -> Case:
        """Add an image file or a DICOM folder; ``options`` as ``Study.add``."""
        case = self.study.add(image, label=label, **options)
        self.session.changed(CASES)
        return case

    def addFolder(self, folder: Path | str, **options: Any) -> list[Case]:
        """Add the images of a folder; ``options`` as ``Study.add_folder``. Every image is read, which takes
        time.
        """
        cases = self.study.add_folder(folder, **options)
        self.session.changed(CASES)
        return cases

    def addDicom(self, folder: Path | str, **options: Any) -> Case:
        """Add a DICOM series; ``options`` as ``Study.add_dicom``: series (its number or UID), label, role."""
        case = self.study.add_dicom(folder, **options)
        self.session.changed(CASES)
        return case

    def relink(self, folders: Path | str | Iterable[Path | str]) -> dict[str, Path]:
        """Find images that were moved; returns the new path of each case that was found."""
        found = self.study.relink(folders).found
        self.session.changed(CASES)
        return found

    def pack(self) -> dict[str, Path]:
        """Copy images that lie elsewhere into the study; returns the new path of each case."""
        packed = self.study.pack()
        self.session.changed(CASES)
        return packed

    def setRole(self, ids: str | Iterable[str], role: str) -> None:
        """Make cases labeled, unlabeled, test or ignored."""
        self.study.set_role(ids, role)
        self.session.changed(CASES)

    def setLabel(
        self, id: str, segmentation: slicer.vtkMRMLNode, resample: bool = False, **options: bool
    ) -> Path:
        """Make a segmentation the newest label of a case; its segments are matched to structures by name.
        ``options`` as for ``addVolume``.
        """
        path = scene.set_label(self.study, id, segmentation, resample=resample, **options)
        self.session.changed(CASES)
        return path

    def setReference(
        self, id: str, segmentation: slicer.vtkMRMLNode, resample: bool = False, **options: bool
    ) -> Path:
        """Keep a segmentation as what only evaluation reads; ``options`` as for ``addVolume``."""
        path = scene.set_reference(self.study, id, segmentation, resample=resample, **options)
        self.session.changed(CASES)
        return path

    def start(self, command: str = "run", **options: Any) -> RunningJob:
        """Start "run", "finetune", "pseudolabel", "retrain" or "predict" in the background and follow it.

        ``options`` are those of the command line (``sfr run --help``): foundation="vit_b", device="cuda",
        iterations_retrain=500. ``job.wait()`` returns at its end while Slicer stays alive.
        """
        if command not in COMMANDS:
            raise InputError(f"There is no job '{command}'.", hint=f"Jobs: {', '.join(COMMANDS)}.")
        return self._follow(start_job(self.study.root, command, options))

    def startAgain(self, words: Sequence[str]) -> RunningJob:
        """Start a job by the words of an earlier one's command line: it goes on from its checkpoint.

        The study is this one, wherever its folder lay then.
        """
        if len(words) < 2 or words[0] not in COMMANDS:
            raise InputError("The last job cannot be repeated.", hint="Press Run instead.")
        return self._follow(start_words(self.study.root, [words[0], str(self.study.root), *words[2:]]))

    def runningJob(self) -> RunningJob | None:
        """The job that runs in the open study, wherever it was started; None where there is none."""
        known = self.session.job
        if known is not None and known.running:
            return known
        found = Job.running(self.study.root)
        return None if found is None else self._follow(found)

    def reviewQueue(self) -> list[ReviewItem]:
        """The cases to look at, the least certain first; ``expected_dice`` is 0..1."""
        return self.study.review_queue()

    def loadImage(self, id: str) -> slicer.vtkMRMLScalarVolumeNode:
        """The image of a case as a volume node."""
        return scene.load_image(self.study, id)

    def loadPrediction(self, id: str) -> slicer.vtkMRMLSegmentationNode:
        """The prediction of a case as a segmentation node, named and coloured as the study says."""
        return scene.load_result(self.study, id, "prediction")

    def loadPseudoLabel(self, id: str) -> slicer.vtkMRMLSegmentationNode:
        """The pseudo-label of a case as a segmentation node."""
        return scene.load_result(self.study, id, "pseudo_label")

    def accept(self, id: str, source: str | None = None) -> Path:
        """Make the newest result of a case, or its "prediction" or "pseudo_label", a label."""
        path = self.study.accept(id, source)
        self.session.changed(CASES)
        return path

    def acceptCorrected(
        self, id: str, label: slicer.vtkMRMLSegmentationNode | sitk.Image | Path | str | None = None
    ) -> Path:
        """Make a corrected segmentation, by default the draft of the case, its label."""
        if isinstance(label, slicer.vtkMRMLNode):
            label = scene.node_label(self.study, label, scene.case_geometry(self.study, id))
        path = self.study.accept_corrected(id, label)
        self.session.changed(CASES)
        return path

    def reject(self, id: str) -> None:
        """Keep what the models say of a case out of training."""
        self.study.reject(id)
        self.session.changed(CASES)

    def bringBack(self, id: str) -> None:
        """Undo a rejection: the case comes back into the review queue."""
        self.study.unreject(id)
        self.session.changed(CASES)

    def segmentVolume(
        self, volume: slicer.vtkMRMLScalarVolumeNode, model: Path | str | None = None
    ) -> slicer.vtkMRMLSegmentationNode:
        """Segment a loaded volume that is in no study, by the newest student of the open study or by that in
        the folder ``model``; returns the segmentation. Slicer stays alive meanwhile.
        """
        models = [Path(model)] if model is not None else students(self.study)
        if not models:
            raise InputError("There is no trained model yet.", hint="Run the study first.")
        application = start_apply(models[0], volume)
        try:
            await_chore(application.chore)
            return show_applied(application)
        finally:
            tidy(application)

    def exportPredictions(
        self, folder: Path | str, ids: Iterable[str] | None = None, nifti: bool = False
    ) -> list[Path]:
        """Write predictions, of all predicted cases where no ``ids`` are given, as .seg.nrrd or as NIfTI."""
        write = write_nifti if nifti else write_segmentation
        chosen = (
            [id for id in self.study.cases if self.study.result(id, "prediction")] if ids is None else ids
        )
        return [write(self.study, id, Path(folder)) for id in chosen]

    def exportTable(self, file: Path | str) -> Path:
        """Write volumes in ml, expected Dice and scores of all predicted cases as CSV."""
        return write_table(self.study, Path(file))

    def startCommand(self, command: str, *words: str, **options: Any) -> Chore:
        """``sfr COMMAND STUDY …`` by the worker's Python, for what takes seconds: evaluate, report."""
        return start_command([command, str(self.study.root), *words, *words_of(options)])

    def evaluate(self, **options: Any) -> dict[str, Any]:
        """Score the results against references; ``options`` as ``sfr evaluate``. Slicer stays alive
        meanwhile.
        """
        return await_chore(self.startCommand("evaluate", **options))

    def report(self, **options: Any) -> dict[str, Any]:
        """Write the study's report, one HTML file; ``options`` as ``sfr report``."""
        return await_chore(self.startCommand("report", **options))

    def export(self, **options: Any) -> dict[str, Any]:
        """Export the student for use outside SFR; ``options`` as ``sfr export``."""
        return await_chore(self.startCommand("export", **options))

    def _open(self, study: Study) -> None:
        self.session.setStudy(study)
        self.runningJob()

    def _follow(self, found: Job) -> RunningJob:
        job = RunningJob(found, self._onJob)
        self.session.setJob(job)
        return job

    def _onJob(self, job: RunningJob, ended: bool) -> None:
        if ended:
            self._reloadQuietly()
            self.session.changed(CASES)
        elif fresh := job.newResults():
            self.session.fresh = fresh
            self.session.changed(RESULTS)
        self.session.changed(JOB if ended else PROGRESS)

    def _reloadQuietly(self) -> None:
        try:
            if self.session.study is not None:
                self.session.study.reload()
        except InputError as error:
            _log.warning("%s", error)
