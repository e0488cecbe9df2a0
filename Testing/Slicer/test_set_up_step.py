"""The Set up step, by its buttons: packages, cancel, remove, checkpoint, device, sample data."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import slicer
from SFRSegmentationLib import chore_process, set_up_words
from SFRSegmentationLib.downloads import FOUNDATION_FILE
from SFRSegmentationLib.places import packages_folder
from SFRSegmentationLib.requirements import constraints_of_slicer, load_requirements
from SFRSegmentationLib.step import DONE, READY, RUNNING
from test_installation import own_pip, script, wheel  # noqa: F401

from SFRCore.foundation import download
from SFRCore.foundation.download import Checkpoint, file_sha256

posix_only = pytest.mark.skipif(os.name == "nt", reason="the stand-in programs are shell scripts")


class Answers:
    """Answers instead of dialogs, and what was asked."""

    def __init__(self, confirm=True, folder=None, file=None):
        self.asked: list[str] = []
        self._confirm, self._folder, self._file = confirm, folder, file

    def confirm(self, text, title, detail=""):
        self.asked.append(text)
        return self._confirm

    def folder(self, title, start=""):
        return self._folder

    def openFile(self, title, start="", filter=""):
        return self._file


@pytest.fixture
def step(widget):
    widget.panel.open("setUp")
    found = widget.panel.steps["setUp"]
    found.refresh()
    yield found
    widget.panel.clearError()


@pytest.fixture
def answer(widget, monkeypatch):
    def give(**answers):
        monkeypatch.setattr(widget.panel, "questions", Answers(**answers))
        return widget.panel.questions

    return give


def test_nothing_installed_is_said_and_one_button_gets_it(step):
    assert step.state == READY and "packages are missing" in step.section.text
    assert str(packages_folder()) in step.ui.packagesLabel.text
    assert step.ui.installButton.enabled and step.ui.installFolderButton.enabled
    assert not step.ui.removeButton.enabled
    assert "nothing to remove" in step.ui.removeButton.toolTip
    assert step.ui.progressBar.isHidden() and step.ui.cancelButton.isHidden()


def test_sizes_are_told_before_and_no_means_no(step, answer, waitFor):
    asked = answer(confirm=False)
    step.ui.installButton.click()
    assert step.state == RUNNING and not step.ui.installButton.enabled
    assert "wait for its end" in step.ui.downloadButton.toolTip
    waitFor(lambda: asked.asked, 20)
    waitFor(lambda: not step.chores.busy)
    assert (
        "GB" in asked.asked[0] and str(packages_folder()) in asked.asked[0] and "Free there" in asked.asked[0]
    )
    assert step.state == READY and not packages_folder().exists()


def test_installed_from_a_folder_and_removed(step, answer, waitFor, tmp_path):
    shipped = dict(pin.split("==") for pin in constraints_of_slicer(load_requirements()))
    for requirement in load_requirements():
        wheel(tmp_path / "wheels", requirement.name.replace("-", "_"), shipped.get(requirement.name, "99.0"))
    asked = answer(folder=tmp_path / "wheels")
    step.ui.installFolderButton.click()
    waitFor(lambda: not step.chores.busy, 30)
    assert "15 packages" in asked.asked[0]
    assert step.panel.ui.errorLabel.text == "" and step.state == DONE
    assert "Installed in" in step.ui.packagesLabel.text and "torch" in step.ui.logView.plainText
    assert not step.ui.installButton.enabled and "Everything is installed" in step.ui.installButton.toolTip
    waitFor(lambda: step.doctor is not None, 20)
    assert "could not be asked" in step.ui.deviceLabel.text
    assert step.state == READY and "packages do not work" in step.section.text
    assert step.ui.installButton.enabled and step.ui.installButton.text == "Install the packages again"
    step.ui.removeButton.click()
    waitFor(lambda: not step.chores.busy, 20)
    assert step.state == READY and not packages_folder().exists() and "freed" in step.ui.statusLabel.text


def test_a_failure_is_shown_with_what_to_do(step, answer, waitFor, tmp_path):
    (tmp_path / "empty").mkdir()
    answer(folder=tmp_path / "empty")
    step.ui.installFolderButton.click()
    waitFor(lambda: not step.chores.busy, 20)
    assert "holds no packages" in step.panel.ui.errorLabel.text
    assert "Choose the folder" in step.panel.ui.errorLabel.text
    assert not step.ui.logGroup.collapsed and step.state == READY


def test_a_download_is_asked_for_and_cancelled_by_two_clicks(step, answer, waitFor, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{silent.getsockname()[1]}")
        silent.settimeout(0.01)
        asked, came = answer(), []

        def arrived():
            try:
                came.append(silent.accept()[0])
            except TimeoutError:
                return False
            return True

        step.ui.downloadButton.click()
        waitFor(arrived, 20)
        assert "vit_b (375 MB)" in asked.asked[0] and not step.ui.cancelButton.isHidden()
        step.ui.cancelButton.click()
        assert step.ui.statusLabel.text == "Stopping…"
        step.ui.cancelButton.click()
        waitFor(lambda: not step.chores.busy, 10)
        came[0].close()
    assert "Cancelled" in step.ui.statusLabel.text and step.panel.ui.errorLabel.text == ""


def test_a_file_of_the_same_make_is_remembered(step, answer, waitFor, tmp_path):
    file = tmp_path / "medsam.pth"
    file.write_bytes(b"weights")
    answer(file=file)
    step.ui.chooseFileButton.click()
    waitFor(lambda: not step.chores.busy, 20)
    assert slicer.util.settingsValue(FOUNDATION_FILE, "") == str(file)
    assert "none of the known checkpoints" in step.ui.statusLabel.text
    assert str(file) in step.ui.checkpointLabel.text
    assert step.panel.steps["train"].ui.foundationCombo.findData(str(file)) > 0
    assert step.downloads.anyModel()
    file.unlink()
    assert not step.downloads.anyModel(), "what is remembered may be gone"
    answer(file=tmp_path / "gone.pth")
    step.ui.chooseFileButton.click()
    assert "gone.pth is not a file" in step.panel.ui.errorLabel.text


def test_a_known_checkpoint_is_copied_to_where_it_belongs(tmp_path, monkeypatch):
    file = tmp_path / "from a stick.pth"
    file.write_bytes(os.urandom(100_000))
    known = Checkpoint("small.pth", file_sha256(file), 100_000)
    monkeypatch.setitem(download.CHECKPOINTS, "vit_l", known)
    said = []
    reporter = chore_process.Reporter(tmp_path)
    monkeypatch.setattr(reporter, "write", lambda **message: said.append(message))
    assert chore_process.adopt(reporter, str(file)) == "vit_l"
    assert download.is_whole("vit_l") and said[-1] == {"done": 100_000, "total": 100_000}
    file.write_bytes(os.urandom(100_000))
    assert chore_process.adopt(reporter, str(file)) is None


@posix_only
def test_the_device_is_asked_of_the_worker(step, waitFor, tmp_path, monkeypatch):
    said = {
        "missing": ["peft"],
        "devices": [
            {"device": "cuda:0", "name": "A GPU", "free_bytes": 15_000_000_000, "total_bytes": 16_000_000_000,
             "chosen": True},
            {"device": "cpu", "name": "A CPU", "free_bytes": 1, "chosen": False},
        ],
    }  # fmt: skip
    (tmp_path / "said.json").write_text(json.dumps(said, indent=2))
    own = script(tmp_path / "python", f'echo "$@" > "{tmp_path}/asked"; cat "{tmp_path}/said.json"\n')
    monkeypatch.setenv("SFR_PYTHON", str(own))
    step.ui.checkButton.click()
    assert not step.ui.checkButton.enabled and "being asked" in step.ui.deviceLabel.text
    waitFor(lambda: step.doctor is not None, 10)
    assert (tmp_path / "asked").read_text().split() == ["-m", "SFRCore", "doctor", "--json"]
    assert step.ui.deviceLabel.text == "A GPU, 15.0 GB of 16.0 GB free"
    assert "lacks peft" in step.ui.packagesLabel.text and step.state == READY
    assert not step.ui.installButton.enabled and "SFR_PYTHON" in step.ui.installButton.toolTip
    monkeypatch.setenv("SFR_PYTHON", str(tmp_path / "gone"))
    step.refresh()
    assert "was not found" in step.ui.packagesLabel.text and not step.ui.installButton.enabled


def test_words_for_the_device():
    words = set_up_words.device_words
    assert words(None, asking=False) == "Not looked at yet."
    assert "before the packages" in words({"devices": []}, asking=False)
    assert "libcudart" in words({"devices": [], "torch_problem": "libcudart.so"}, asking=False)
    cpu = {"device": "cpu", "name": "A CPU", "free_bytes": 8e9, "chosen": True}
    assert words({"devices": [cpu]}, asking=False).startswith("A CPU, 8.0 GB memory free. There is no GPU")


def test_too_little_room_is_said_in_the_question():
    survey = {"gpu": None, "build": "CPU", "download": 6e8, "disk": 2e9, "free": 1e9}
    text = set_up_words.installation_words(survey, Path("/here"))
    assert "That is too little: 2.6 GB are needed." in text and "none found" in text
    survey["free"] = 9e9
    assert "too little" not in set_up_words.installation_words(survey, Path("/here"))
    survey["gpu"] = "GeForce"
    assert "driver of this GPU is too old" in set_up_words.installation_words(survey, Path("/here"))
    survey["build"] = "CUDA"
    assert "too old" not in set_up_words.installation_words(survey, Path("/here"))


def test_the_invented_cohort_opens_as_a_study(step, answer, waitFor):
    asked = answer()
    step.ui.sampleCombo.currentIndex = step.ui.sampleCombo.findData("synthetic")
    step.ui.sampleButton.click()
    waitFor(lambda: not step.chores.busy, 20)
    assert step.panel.ui.errorLabel.text == "" and asked.asked == []
    study = step.session.study
    roles = [case.role for case in study.cases.values()]
    assert (roles.count("labeled"), roles.count("unlabeled"), roles.count("test")) == (4, 4, 4)
    assert step.panel.openKey == "cases"


def test_every_control_of_the_step_says_what_it_is(step):
    kinds = ("QPushButton", "QComboBox", "QProgressBar", "QPlainTextEdit")
    for name, control in vars(step.ui).items():
        if any(control.inherits(kind) for kind in kinds) and not name.startswith("qt_"):
            assert control.toolTip and control.accessibleName, name


def test_the_panel_leaves_a_running_chore_alone(step, widget, answer, waitFor):
    answer(confirm=False)
    step.ui.installButton.click()
    widget.exit()
    slicer.mrmlScene.Clear(0)
    widget.enter()
    waitFor(lambda: not step.chores.busy, 20)
    assert sys.executable and step.state == READY
