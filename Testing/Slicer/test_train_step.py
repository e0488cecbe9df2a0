"""Step 3: jobs are started, followed, stopped and continued by clicks; most with a pretended worker."""

import builtins
import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slicer
from event_loop import LIMIT, EventLoop, measured
from panel_tools import Answers, study_of
from SFRSegmentationLib import job_standing, running_job
from SFRSegmentationLib.places import packages_folder

from SFRCore.errors import SFRError
from SFRCore.runtime.jobs import Job
from SFRCore.runtime.processes import process_alive

HERE = Path(__file__).resolve().parent


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """pretend(mode): the worker's Python is fake_worker.py from now on, in that mode."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_worker.py"} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("SFR_PYTHON", str(program))
    return lambda mode: monkeypatch.setenv("FAKE_WORKER", mode)


@pytest.fixture
def step(widget, pretend, tmp_path):
    """The Train step of a study of four cases, open and waiting for a click."""
    pretend("steady")
    widget.logic.openStudy(study_of(tmp_path).root)
    widget.panel.open("train")
    step = widget.panel.steps["train"]
    step.choices.choose("foundation", "tiny16")
    yield step
    job = Job.running(step.session.study.root) if step.session.study is not None else None
    if job is not None:
        job.kill()


def turn(step, condition, seconds=30.0, loop=None):
    """Let the event loop (a new one, or ``loop``) turn until the condition holds; returns it."""
    loop = loop or EventLoop()
    loop.until(condition, seconds, say=lambda: f"{step.ui.jobLabel.text} {step.section.text}")
    return loop


def ended(step):
    return lambda: step.session.job is not None and not step.session.job.running


def test_waits_are_said_in_the_tooltips(widget, tmp_path):
    widget.panel.open("train")
    step = widget.panel.steps["train"]
    assert not step.ui.runButton.enabled and "step 2" in step.ui.runButton.toolTip
    widget.logic.openStudy(study_of(tmp_path, labeled=0).root)
    assert not step.ui.runButton.enabled
    assert "No job is running" in step.ui.stopButton.toolTip


def test_run_by_click_to_its_end(step, pretend):
    pretend("quick")
    assert step.ui.runButton.enabled and not step.ui.continueButton.enabled
    step.ui.runButton.click()
    assert not step.ui.runButton.enabled and step.ui.stopButton.enabled
    assert "running in this study" in step.ui.runButton.toolTip
    turn(step, ended(step))
    assert step.session.job.state == "finished" and "finished" in step.ui.jobLabel.text
    assert step.section.text == "3. Train: done"
    assert step.bars.bars["finetune"].value == 1000
    assert step.ui.runButton.enabled and not step.ui.stopButton.enabled
    args = step.session.job.job.info["args"]
    assert args[:2] == ["run", str(step.session.study.root)]
    assert args[2:] == ["--preset", "auto", "--foundation", "tiny16"]


def test_settings_reach_the_command_line_and_come_back(step, pretend):
    pretend("quick")
    step.choices.choose("preset", "hippocampus")
    step.choices.choose("ssl", "ua_mt")
    assert step.choices.value("student") == "" and "student" not in step.choices.options()
    step.choices.choose("student", "vnet")
    step.ui.finetuneSteps.value = 12
    step.ui.finetuneButton.click()
    turn(step, ended(step))
    args = step.session.job.job.info["args"]
    assert args[0] == "finetune" and "--iterations-finetune 12" in " ".join(args)
    assert step.session.study.preset == "hippocampus"
    root = step.session.study.root
    step.logic.closeStudy()
    step.choices.choose("ssl", "mean_teacher")
    step.choices.choose("student", "")
    step.logic.openStudy(root)
    assert step.choices.value("ssl") == "ua_mt" and step.ui.finetuneSteps.value == 12
    assert step.choices.value("preset") == "hippocampus" and step.choices.value("student") == "vnet"


def test_single_step_does_not_make_the_panel_forget_the_run(step, pretend):
    pretend("quick")
    step.choices.choose("ssl", "cps")
    step.ui.finetuneSteps.value, step.ui.retrainSteps.value = 40, 60
    step.ui.runButton.click()
    turn(step, ended(step))
    step.ui.predictButton.click()
    turn(step, ended(step))
    assert step.session.job.command == "predict" and step.session.job.state == "finished"
    chosen, root = step.choices.options(), step.session.study.root
    step.logic.closeStudy()
    step.choices.show("auto", {})
    step.logic.openStudy(root)
    assert step.choices.options() == chosen
    assert chosen["foundation"] == "tiny16" and chosen["iterations_retrain"] == 60


def test_choices_of_runs_and_single_steps():
    from SFRSegmentationLib.run_choices import choices_of

    finetune = {"command": "finetune", "args": ["finetune", "/s", "--foundation", "vit_l", "--ssl", "cps"]}
    retrain = {"command": "retrain", "args": ["retrain", "/s", "--foundation", "vit_l", "--ssl", "urpc"]}
    predict = {"command": "predict", "args": ["predict", "/s", "--device", "cpu"]}
    assert choices_of([]) == {}
    assert choices_of([finetune, retrain, predict]) == {
        "foundation": "vit_l", "ssl": "urpc", "device": "cpu",
    }  # fmt: skip
    assert choices_of([{"command": "run", "args": ["run", "/s"]}, finetune]) == {"foundation": "tiny"}
    settings = {"foundation": "vit_b", "iterations_retrain": 5, "student": None}
    by_command_line = {"command": "run", "config": {"settings": settings}}
    assert choices_of([by_command_line, predict]) == {"foundation": "vit_b", "iterations_retrain": "5"}
    words_only = {**by_command_line, "args": ["run", "/s", "--ssl", "cps"]}
    assert choices_of([words_only]) == {"foundation": "vit_b", "ssl": "cps"}
    assert choices_of([predict]) == {"device": "cpu"}


def test_progress_curve_and_remaining_time(step, tmp_path):
    step.ui.runButton.click()
    turn(step, lambda: len(step.session.job.progress.curves.get("finetune", ())) > 5)
    turn(step, lambda: step.ui.curveLabel.visible or step.ui.curveLabel.pixmap is not None)
    assert "2 min left" in step.section.text or "90 s left" in step.section.text
    assert "left" in step.bars.bars["finetune"].text
    assert not step.ui.curveLabel.pixmap.isNull() and "loss" in step.ui.curveLabel.toolTip
    step.widget.resize(420, 700)
    assert step.widget.grab().save(str(tmp_path / "train.png"))


def test_cancel_and_continue(step, pretend):
    step.ui.runButton.click()
    turn(step, lambda: "finetune" in step.bars.bars)
    step.ui.stopButton.click()
    assert step.ui.stopButton.text == "Stop now" and "Stopping" in step.ui.jobLabel.text
    turn(step, ended(step))
    assert step.session.job.state == "cancelled" and "stopped" in step.section.text
    assert step.ui.continueButton.enabled and step.primaryButton == "continueButton"
    first = step.session.job
    pretend("quick")
    step.choices.choose("ssl", "cps")
    step.ui.continueButton.click()
    turn(step, lambda: step.session.job is not first and not step.session.job.running)
    assert step.session.job.job.info["args"] == first.job.info["args"]
    assert step.session.job.state == "finished" and not step.ui.continueButton.enabled


@pytest.mark.parametrize("way", ["second click", "ten seconds"])
def test_stubborn_job_leaves_no_process(step, pretend, monkeypatch, way):
    pretend("stubborn")
    monkeypatch.setattr(running_job, "SECONDS_TO_STOP", 1.0 if way == "ten seconds" else 60.0)
    step.ui.runButton.click()
    turn(step, lambda: step.session.job.progress.current is not None)
    job = step.session.job
    pids = [int(job.job.info["pid"]), int((job.job.run_dir / "child").read_text())]
    assert all(process_alive(pid) for pid in pids)
    asked = time.monotonic()
    step.ui.stopButton.click()
    if way == "second click":
        turn(step, lambda: time.monotonic() - asked > 0.7)
        assert job.running and all(process_alive(pid) for pid in pids)
        step.ui.stopButton.click()
    held = turn(step, ended(step))
    measured(
        f"a stubborn job, {way}: gone {time.monotonic() - asked:.1f} s after the first click, "
        f"event loop held {1e3 * held.longest:.0f} ms at most"
    )
    assert not any(process_alive(pid) for pid in pids)
    assert job.state == "cancelled" and time.monotonic() - asked < 6 + 1.0


def elsewhere(step, monkeypatch):
    """A job that runs on another computer, as this one sees it through the study's folder."""
    step.ui.runButton.click()
    turn(step, lambda: step.session.job.progress.current is not None)
    job, root = step.session.job.job, step.session.study.root
    monkeypatch.setattr("socket.gethostname", lambda: "another-computer")
    step.logic.closeStudy()
    step.logic.openStudy(root)
    return job


def test_job_of_another_computer_is_only_asked_to_stop(step, pretend, monkeypatch):
    pretend("stubborn")
    monkeypatch.setattr(running_job, "SECONDS_TO_STOP", 0.2)
    job = elsewhere(step, monkeypatch)
    here = job.info["host"]
    assert step.session.job.elsewhere == here and step.ui.stopButton.enabled
    step.ui.stopButton.click()
    assert not step.ui.stopButton.enabled and here in step.ui.stopButton.toolTip
    assert here in step.ui.jobLabel.text
    asked = time.monotonic()
    turn(step, lambda: time.monotonic() - asked > 1.5)
    assert step.session.job._killing is None and step.session.busy
    monkeypatch.undo()
    job.kill()


def test_job_that_cannot_be_ended_says_so_once(step, pretend, monkeypatch):
    pretend("stubborn")
    tried = []

    def kill(self, timeout=5.0):
        tried.append(self.run)
        raise PermissionError("not permitted")

    monkeypatch.setattr(running_job, "SECONDS_TO_STOP", 0.2)
    step.ui.runButton.click()
    turn(step, lambda: step.session.job.progress.current is not None)
    with monkeypatch.context() as patch:
        patch.setattr(Job, "kill", kill)
        step.ui.stopButton.click()
        turn(step, lambda: "not permitted" in step.ui.jobLabel.text)
        asked = time.monotonic()
        turn(step, lambda: time.monotonic() - asked > 1.5)
        assert len(tried) == 1
        step.ui.stopButton.click()
        turn(step, lambda: len(tried) == 2)
    step.session.job.job.kill()


@pytest.fixture
def awayDrive(step, monkeypatch):
    """awayDrive(): a context in which no file of the study can be reached, as of a drive that is away."""
    root = str(step.session.study.root)

    def failing(real):
        def call(path, *arguments, **options):
            if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(root):
                raise OSError(errno.EHOSTDOWN, "Host is down", str(path))
            return real(path, *arguments, **options)

        return call

    @contextlib.contextmanager
    def away():
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", failing(io.open))
            for module, name in ((io, "open"), (os, "open"), (os, "stat")):
                patch.setattr(module, name, failing(getattr(module, name)))
            yield

    return away


def test_job_is_followed_again_when_the_drive_is_back(step, awayDrive, monkeypatch):
    monkeypatch.setattr(job_standing, "SECONDS_IN_DOUBT", 0.2)
    step.ui.runButton.click()
    turn(step, lambda: step.session.job.progress.current is not None)
    job, end = step.session.job, time.monotonic() + 1.5
    with awayDrive():
        turn(step, lambda: "cannot be reached" in step.section.text)
        turn(step, lambda: time.monotonic() > end)
        assert job.running and step.session.busy and "cannot be reached" in step.ui.jobLabel.text
        assert not step.ui.runButton.enabled and not step.ui.stopButton.enabled
        with pytest.raises(SFRError, match="cannot be reached"):
            job.cancel()
        assert step.panel.ui.errorLabel.text == ""
    seen = job.progress.current.step
    turn(step, lambda: job.progress.current.step > seen)
    assert step.session.job is job and job.reached and "Tuning" in step.section.text
    assert step.ui.stopButton.enabled
    step.ui.stopButton.click()
    turn(step, ended(step))
    assert job.state == "cancelled"


def test_job_that_ended_while_the_drive_was_away(step, awayDrive):
    step.ui.runButton.click()
    turn(step, lambda: step.session.job.progress.current is not None)
    job = step.session.job
    pid = int(job.job.info["pid"])
    with awayDrive():
        turn(step, lambda: not job.reached)
        os.kill(pid, signal.SIGKILL)
    turn(step, ended(step))
    assert job.state == "died" and "crashed" in step.section.text


def test_job_that_is_seen_no_more_is_given_up_after_a_while(step, pretend, monkeypatch):
    monkeypatch.setattr(job_standing, "SECONDS_IN_DOUBT", 0.5)
    job = elsewhere(step, monkeypatch)
    monkeypatch.setattr("SFRCore.runtime.runs.is_held", lambda path: False)
    monkeypatch.setattr("SFRCore.runtime.runs._SILENT_SECONDS", -1.0)
    turn(step, lambda: step.session.job._standing.doubtful)
    assert step.session.busy
    turn(step, ended(step))
    assert step.session.job.state == "died"
    monkeypatch.undo()
    job.kill()


def test_job_killed_by_the_system(step, pretend):
    pretend("dies")
    step.ui.runButton.click()
    turn(step, ended(step))
    assert step.session.job.state == "died"
    assert "out of memory" in step.ui.jobLabel.text and "out of memory" in step.panel.ui.errorLabel.text
    assert step.session.job.progress.stages["finetune"].step == 4
    assert step.ui.continueButton.enabled and "crashed" in step.section.text


def test_job_that_fails_says_why(step, pretend):
    pretend("fails")
    step.ui.runButton.click()
    turn(step, ended(step))
    assert "case_02 cannot be read. Look at the file." in step.panel.ui.errorLabel.text
    assert "failed" in step.section.text


def test_job_without_disk_space_says_so(step, pretend):
    pretend("full")
    step.ui.runButton.click()
    turn(step, ended(step))
    assert step.session.job.state == "failed"
    told = step.panel.ui.errorLabel.text
    assert "disk" in told and "full" in told and "Free" in told
    assert step.ui.continueButton.enabled


def test_very_long_run_is_asked_about(step, pretend):
    """In the panel, without a dialog, for as long as the answer takes."""
    pretend("long")
    step.panel.questions = Answers()
    assert step.ui.startAnywayButton.isHidden()
    step.ui.runButton.click()
    turn(step, ended(step))
    assert step.session.job.state == "failed" and "waits for your answer" in step.section.text
    assert "40 hours" in step.ui.jobLabel.text and "Start it anyway?" in step.ui.jobLabel.text
    assert step.panel.ui.errorLabel.text == ""
    root, asked = step.session.study.root, step.session.job
    step.logic.closeStudy()
    assert step.ui.startAnywayButton.isHidden()
    step.logic.openStudy(root)
    assert not step.ui.startAnywayButton.isHidden() and not step.ui.continueButton.enabled
    assert step.ui.runButton.enabled
    step.ui.startAnywayButton.click()
    assert step.ui.startAnywayButton.isHidden()
    turn(step, ended(step))
    assert step.session.job.state == "finished" and step.ui.startAnywayButton.isHidden()
    assert step.session.job.job.info["args"] == [*asked.job.info["args"], "--yes"]


def test_script_is_told_that_a_run_is_very_long(step, pretend):
    """A script that waits for the job goes on with the reason: nothing asks it."""
    pretend("long")
    step.panel.questions = Answers()
    with pytest.raises(SFRError, match="40 hours") as refused:
        step.logic.start("run", foundation="tiny").wait(30)
    assert refused.value.code == "long_run" and step.panel.questions.asked == []


def test_log_is_shown_and_copied(step, pretend):
    import qt

    pretend("quick")
    step.ui.trainLogGroup.collapsed = False
    step.ui.runButton.click()
    turn(step, ended(step))
    with open(step.session.job.logFile, "a", encoding="utf-8") as log:
        log.write("a line of the worker\nhalf a li")
    step.panel.refresh()
    assert "a line of the worker" in step.ui.trainLogView.plainText
    assert "half" not in step.ui.trainLogView.plainText
    step.ui.copyLogButton.click()
    assert "a line of the worker" in qt.QApplication.clipboard().text()


def test_packages_stay_while_a_job_runs(step, tmp_path, monkeypatch):
    step.ui.runButton.click()
    turn(step, lambda: step.session.busy)
    setUp = step.panel.steps["setUp"]
    monkeypatch.delenv("SFR_PYTHON")
    monkeypatch.setenv("SFR_DATA", str(tmp_path / "data"))
    packages_folder().mkdir(parents=True)
    (packages_folder() / "torch.py").write_text("")
    step.panel.open("setUp")
    setUp.refresh()
    for button in (setUp.ui.removeButton, setUp.ui.installButton, setUp.ui.installFolderButton):
        assert not button.enabled and "A job is running" in button.toolTip
    step.session.job.cancel()
    turn(step, ended(step))
    assert setUp.ui.removeButton.enabled and setUp.ui.installFolderButton.enabled


def test_job_that_ended_while_slicer_was_closed(step, pretend):
    """Its log, curves and stages are there when the study is opened again, and nothing is announced."""
    import qt

    pretend("fails")
    root = step.session.study.root
    step.logic.closeStudy()
    assert "No job has run" in step.ui.copyLogButton.toolTip
    words = ["run", str(root), "--foundation", "tiny16"]
    job = Job.start(root, words, python=os.environ["SFR_PYTHON"])
    job.wait(30)
    with open(job.log_file, "a", encoding="utf-8") as log:
        log.write("the last words of the worker\n")
    step.ui.trainLogGroup.collapsed = False
    step.logic.openStudy(root)
    turn(step, lambda: len(step._job.progress.curves.get("finetune", ())) > 2)
    assert not step.ui.curveLabel.isHidden() and "finetune" in step.bars.bars
    assert "last words" in step.ui.trainLogView.plainText
    assert "case_02 cannot be read" in step.ui.jobLabel.text
    assert step.panel.ui.errorLabel.text == "" and not step.session.busy
    step.ui.copyLogButton.click()
    assert "last words" in qt.QApplication.clipboard().text()
    pretend("quick")
    step.ui.runButton.click()
    assert step._job is step.session.job and "last words" not in step.ui.trainLogView.plainText
    turn(step, ended(step))
    step.logic.closeStudy()
    assert step._job is None and not step.bars.bars and not step.ui.copyLogButton.enabled


def test_job_that_runs_is_shown_before_a_newer_one_that_ended(step):
    step.ui.runButton.click()
    turn(step, lambda: step.session.job.progress.current is not None)
    newer = step.session.study.runs_dir / "29991231-000000-000aaaa"
    newer.mkdir()
    end = {"state": "failed", "code": "in_use", "message": "The study is in use.", "hint": ""}
    info = {"run": newer.name, "command": "run", "args": ["run", "x"], "started": 1.0, "end": end}
    (newer / "job.json").write_text(json.dumps(info))
    step.session.changed("job")
    assert step._job is step.session.job and step.session.busy and "Tuning" in step.section.text


def test_log_of_the_first_job_can_be_copied_at_once(step):
    assert "No job has run" in step.ui.copyLogButton.toolTip
    step.ui.runButton.click()
    assert step.ui.copyLogButton.enabled and "No job has run" not in step.ui.copyLogButton.toolTip


def test_torn_line_of_events(step):
    step.ui.runButton.click()
    turn(step, lambda: step.session.job.progress.current is not None)
    job = step.session.job
    whole = {"time": 9e9, "stage": "predict", "event": "progress", "step": 1, "total": 2}
    line = json.dumps(whole).encode() + b"\n"
    job.job.kill()
    turn(step, ended(step))
    with open(job.job.folder.events_file, "ab") as stream:
        stream.write(b'not json at all\n"neither"\n[1]\n' + line[:30])
    job.poll()
    assert "predict" not in job.progress.stages
    with open(job.job.folder.events_file, "ab") as stream:
        stream.write(line[30:])
    job.poll()
    assert job.progress.stages["predict"].total == 2


def test_panel_finds_the_job_of_a_closed_slicer(step, pretend):
    """Another process starts the job and ends, as a closed Slicer does; the panel then follows it."""
    study = step.session.study
    step.logic.closeStudy()
    starter = (
        "import sys; from SFRCore.runtime.jobs import Job;"
        "Job.start(sys.argv[1], ['run', sys.argv[1], '--ssl', 'cps'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "FAKE_WORKER": "steady"}
    subprocess.run([sys.executable, "-c", starter, str(study.root)], env=environment, check=True)
    step.logic.openStudy(study.root)
    assert step.session.busy and not step.ui.runButton.enabled
    turn(step, lambda: "finetune" in step.bars.bars)
    assert step.choices.value("ssl") == "cps"
    step.ui.stopButton.click()
    turn(step, ended(step))
    assert step.session.job.state == "cancelled"


def test_two_slicers_run_one_study(step, pretend):
    """Another one starts a job after this one has opened the study: Run is refused here, and follows it."""
    root = step.session.study.root
    other = slicer.util.getModuleLogic("SFRSegmentation").__class__()
    other.openStudy(root)
    job = other.start("run", foundation="tiny16")
    assert step.ui.runButton.enabled and not step.session.busy
    step.ui.runButton.click()
    assert "running job" in step.panel.ui.errorLabel.text
    assert step.session.busy and step.session.job.run == job.run and not step.ui.runButton.enabled
    step.ui.stopButton.click()
    turn(step, ended(step))
    turn(step, lambda: not job.running)
    assert job.state == step.session.job.state == "cancelled"
    other.closeStudy()


def test_reload_follows_the_same_job(widget, step):
    step.ui.runButton.click()
    turn(step, lambda: step.session.job.progress.current is not None)
    run = step.session.job.run
    slicer.util.reloadScriptedModule("SFRSegmentation")
    again = slicer.util.getModuleWidget("SFRSegmentation")
    step = again.panel.steps["train"]
    assert step.session.job is not None and step.session.job.run == run and step.session.busy
    again.panel.open("train")
    step.ui.stopButton.click()
    turn(step, ended(step))


@pytest.mark.usefixtures("ownHeap")
def test_event_loop_is_free_while_much_is_said(step, pretend):
    """A job of hours is found at once: 60,000 events, some 9 MB, are read in small blocks."""
    pretend("flood")
    step.ui.runButton.click()
    held = turn(step, ended(step), 60)
    size = step.session.job.job.folder.events_file.stat().st_size
    root, run = step.session.study.root, step.session.job.run
    found = running_job.RunningJob(Job(root, run))
    begin = time.monotonic()
    again = turn(step, lambda: not found.running and not found._timer.active)
    measured(
        f"following {size / 1e6:.1f} MB of events held the event loop {held} at most, "
        f"catching up {again} at most, in {time.monotonic() - begin:.1f} s"
    )
    assert len(found.progress.curves["finetune"]) < 700
    assert held.longest < LIMIT and again.longest < LIMIT


def test_wait_keeps_the_event_loop_turning(step, pretend):
    import qt

    pretend("quick")
    ticks = []
    timer = qt.QTimer()
    timer.setInterval(20)
    timer.connect("timeout()", lambda: ticks.append(1))
    timer.start()
    assert step.logic.start("run", foundation="tiny").wait(30) == "finished"
    timer.stop()
    assert len(ticks) > 5


@pytest.mark.usefixtures("ownHeap")
def test_real_worker_with_the_tiny_foundation(step, monkeypatch, workerPython):
    """The whole loop with the real worker: cancelled in the middle by a click, continued, loaded."""
    monkeypatch.setenv("SFR_PYTHON", workerPython)
    step.ui.finetuneSteps.value = step.ui.retrainSteps.value = 3
    step.choices.choose("device", "cpu")
    step.ui.runButton.click()
    held = turn(step, lambda: "finetune" in step.bars.bars or not step.session.busy, 120)
    step.ui.stopButton.click()
    turn(step, ended(step), 60, held)
    assert step.session.job.state == "cancelled", step.ui.jobLabel.text
    step.ui.continueButton.click()
    turn(step, ended(step), 180, held)
    measured(f"following a real run held the event loop {held} at most")
    assert step.session.job.state == "finished", step.ui.jobLabel.text
    assert held.longest < LIMIT
    assert set(step.bars.bars) >= {"finetune", "pseudolabel", "retrain", "predict"}
    assert [item.id for item in step.logic.reviewQueue()] == ["case_03"]
    node = step.logic.loadPrediction("case_03")
    assert node.GetSegmentation().GetNumberOfSegments() == 2
