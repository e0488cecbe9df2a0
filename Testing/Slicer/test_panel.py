"""The panel as a whole: it opens on a bare Slicer, one section at a time, and bears what a scene goes
through.
"""

import ast
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import slicer
from event_loop import measured
from panel_tools import Answers, give_result, loaded_volume, study_of

from SFRCore.runtime.worker import Worker

MODULE = Path(__file__).resolve().parents[2] / "SFRSegmentation"
OF_SLICER = {
    "SFRCore", "SFRSegmentationLib", "SimpleITK", "ctk", "numpy", "packaging", "pydicom", "qt", "requests",
    "scipy", "slicer", "vtk", "SampleData",
}  # fmt: skip
CONTROLS = (
    "QPushButton", "QToolButton", "QComboBox", "QCheckBox", "QSpinBox", "QDoubleSpinBox", "QLineEdit",
    "QSlider", "QTableView", "QTableWidget", "QPlainTextEdit", "QProgressBar", "ctkSliderWidget",
    "qMRMLNodeComboBox", "qMRMLCheckableNodeComboBox", "ctkPathLineEdit", "ctkCollapsibleButton",
    "ctkCollapsibleGroupBox", "QListView", "QTreeView",
)  # fmt: skip


def controls():
    for path in sorted((MODULE / "Resources" / "UI").glob("*.ui")):
        for widget in ElementTree.parse(path).getroot().iter("widget"):
            if widget.get("class") in CONTROLS:
                yield path.name, widget


def text_of(widget, name):
    found = widget.find(f"property[@name='{name}']/string")
    return "" if found is None or found.text is None else found.text.strip()


def test_opens_with_five_steps(widget):
    assert list(widget.panel.steps) == ["setUp", "cases", "train", "review", "results"]
    assert [step.section.text[:2] for step in widget.panel.steps.values()] == ["1.", "2.", "3.", "4.", "5."]


def test_opens_at_once(widget):
    begin = time.perf_counter()
    slicer.util.reloadScriptedModule("SFRSegmentation")
    taken = time.perf_counter() - begin
    measured(f"the panel is there after {taken:.2f} s")
    assert taken < 1.5


def test_a_start_of_slicer_waits_for_no_heavy_package():
    """In a process of its own: the module is imported, and its sample data registered, at every start."""
    show = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import headless; headless.start()\n"
        "from pathlib import Path; from types import SimpleNamespace\n"
        "import slicer; from headless import scripted\n"
        "before = set(sys.modules)\n"
        "scripted.loadScriptedModule(str(Path(sys.argv[2], 'SFRSegmentation.py')))\n"
        "logic = SimpleNamespace(registerCustomSampleDataSource=lambda **source: None)\n"
        "sys.modules['SampleData'] = SimpleNamespace(SampleDataLogic=logic)\n"
        "slicer.app.emitSignal('startupCompleted()')\n"
        "print({'SimpleITK', 'scipy', 'scipy.ndimage', 'torch'} & (set(sys.modules) - before))\n"
        "import SFRSegmentation\n"
        "print(SFRSegmentation.SFRSegmentationLogic.__name__, hasattr(SFRSegmentation, 'nothing'))\n"
    )
    words = [sys.executable, "-c", show, str(Path(__file__).parent), str(MODULE)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["set()", "SFRSegmentationLogic False"], done.stdout + done.stderr


def test_needs_nothing_that_slicer_lacks():
    """The environment of these tests has no torch; and no file imports anything else that Slicer lacks."""
    assert importlib.util.find_spec("torch") is None
    assert not {"matplotlib", "typer", "rich", "PIL"} & {
        name.split(".")[0] for name in sys.modules if name.startswith("SFR")
    }
    for path in [MODULE / "SFRSegmentation.py", *sorted((MODULE / "SFRSegmentationLib").glob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in OF_SLICER or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_one_section_is_open(widget):
    widget.panel.open("cases")
    assert widget.panel.openKey == "cases"
    widget.panel.steps["train"].section.click()
    assert widget.panel.openKey == "train"
    assert [step.section.collapsed for step in widget.panel.steps.values()].count(False) == 1


def test_one_primary_button_at_most(widget, tmp_path):
    widget.logic.openStudy(study_of(tmp_path).root)
    for key in widget.panel.steps:
        widget.panel.open(key)
        enabled = [
            name
            for name, step in widget.panel.steps.items()
            if step.primaryButton and getattr(step.ui, step.primaryButton).enabled
        ]
        assert enabled in ([], [key])
        for name, step in widget.panel.steps.items():
            if name != key and step.primaryButton:
                button = getattr(step.ui, step.primaryButton)
                assert "\n" in button.toolTip, f"{step.primaryButton} does not say what it waits for"


def test_every_control_says_what_it_does():
    nameless = [
        f"{file}: {widget.get('name')}" for file, widget in controls() if not text_of(widget, "toolTip")
    ]
    assert nameless == []
    silent = [
        f"{file}: {widget.get('name')}"
        for file, widget in controls()
        if not text_of(widget, "accessibleName")
    ]
    assert silent == []


def test_same_names_are_of_the_same_kind():
    """A name that two .ui files share belongs to one class, so that it can be held against Slicer's."""
    kinds = {}
    for _file, widget in controls():
        assert kinds.setdefault(widget.get("name"), widget.get("class")) == widget.get("class")


def test_disabled_controls_say_what_they_wait_for(widget):
    own = {widget.get("name"): text_of(widget, "toolTip") for _file, widget in controls()}
    for key, step in widget.panel.steps.items():
        widget.panel.open(key)
        for name, control in vars(step.ui).items():
            disabled = name.endswith("Button") and not control.isEnabledTo(control.parentWidget())
            if disabled and name in own:
                assert len(control.toolTip) > len(own[name]), f"{name} is disabled and does not say why"


def test_every_name_of_the_wiring_exists(widget):
    """`ui.NAME` in a step's file is a widget of its .ui file."""
    for step in widget.panel.steps.values():
        source = Path(sys.modules[type(step).__module__].__file__).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self.ui":
                assert hasattr(step.ui, node.attr), f"{step.uiFile} has no {node.attr}"


def test_scene_closed(widget):
    slicer.mrmlScene.Clear(0)
    assert widget.panel.parameters is not None
    widget.parent.exit()
    slicer.mrmlScene.Clear(0)
    widget.parent.enter()


def test_controls_are_bound_once_and_let_go(widget):
    """However often the user comes and goes or closes the scene; nothing is bound while he is elsewhere."""
    kept = []
    for _round in range(3):
        widget.parent.enter()
        kept.append(widget.panel.parameters)
        widget.parent.exit()
        widget.parent.enter()
        slicer.mrmlScene.Clear(0)
        kept.append(widget.panel.parameters)
    parameters = kept[0]
    assert all(known is parameters for known in kept)
    box = widget.panel.steps["review"].ui.showDoubtCheckBox
    parameters.showDoubt = False
    assert not box.checked
    widget.parent.exit()
    assert widget.panel.parameters is None
    box.checked = True
    assert parameters.showDoubt is False
    parameters.doubtOpacity, before = 0.25, widget.panel.steps["review"].ui.opacitySlider.value
    assert widget.panel.steps["review"].ui.opacitySlider.value == before != 0.25
    widget.parent.enter()
    assert not box.checked
    box.checked = True
    assert parameters.showDoubt is True


def save(study, path):
    """A scene of a study, with a volume that is chosen in the panel, and an empty scene without a study."""
    widget = slicer.util.getModuleWidget("SFRSegmentation")
    widget.logic.openStudy(study.root)
    widget.panel.parameters.inputVolume, _segmentation = loaded_volume("of the scene")
    assert slicer.util.saveScene(str(path))
    widget.logic.closeStudy()
    slicer.mrmlScene.Clear(0)
    assert widget.logic.getParameterNode().studyFolder == ""


def load(path):
    """Read a scene in place of the one that is there."""
    slicer.util.loadScene(path, {"clear": True})


@pytest.mark.parametrize("suffix", [".mrb", ".mrml"])
def test_scene_saved_and_opened_again(widget, tmp_path, suffix):
    study = study_of(tmp_path)
    save(study, tmp_path / f"scene{suffix}")
    load(tmp_path / f"scene{suffix}")
    assert widget.logic.study.root == study.root
    assert widget.panel.parameters.studyFolder == str(study.root)
    assert widget.panel.parameters.inputVolume.GetName() == "of the scene"


def test_scene_of_another_study_is_not_taken_over(widget, tmp_path):
    """It is offered; what is open stays open, and what the scene says stays said."""
    here, there = study_of(tmp_path / "here"), study_of(tmp_path / "there")
    save(there, tmp_path / "scene.mrml")
    widget.logic.openStudy(here.root)
    widget.panel.open("cases")
    load(tmp_path / "scene.mrml")
    words = widget.panel.steps["cases"].ui.emptyLabel
    assert widget.logic.study.root == here.root
    assert widget.panel.parameters.studyFolder == str(there.root)
    assert not words.isHidden() and str(there.root) in words.text
    widget.parent.exit()
    widget.parent.enter()
    assert widget.panel.parameters.studyFolder == str(there.root) and str(there.root) in words.text
    widget.logic.openStudy(there.root)
    assert str(there.root) not in words.text
    slicer.mrmlScene.Clear(0)
    assert widget.panel.parameters.studyFolder == str(there.root)


def test_scene_is_looked_at_when_the_user_comes(widget, tmp_path):
    study = study_of(tmp_path)
    save(study, tmp_path / "scene.mrml")
    widget.parent.exit()
    load(tmp_path / "scene.mrml")
    assert widget.logic.session.study is None and widget.panel.parameters is None
    widget.parent.enter()
    assert widget.logic.study.root == study.root


def test_study_opened_from_elsewhere_is_noted_in_the_scene(widget, tmp_path):
    widget.parent.exit()
    study = widget.logic.openStudy(study_of(tmp_path).root)
    assert widget.logic.getParameterNode().studyFolder == str(study.root)


def test_unknown_files_are_not_read_by_opening_a_scene(widget, tmp_path):
    study = study_of(tmp_path)
    widget.panel.questions = Answers()
    widget.panel.open("cases")
    widget.panel.steps["cases"].reopen(str(study.root))
    assert widget.logic.session.study is None
    assert "open it" in widget.panel.steps["cases"].ui.emptyLabel.text
    widget.panel.refresh()
    assert "open it" in widget.panel.steps["cases"].ui.emptyLabel.text
    widget.panel.steps["cases"].reopen(str(tmp_path / "nowhere"))


def test_what_others_did_meanwhile_is_seen_on_coming_back(widget, tmp_path, waitFor):
    """Roles, results and a job that began, and one that ended, while the user was in another module."""
    study = study_of(tmp_path)
    widget.logic.openStudy(study.root)
    widget.panel.open("cases")
    heard = []
    widget.logic.session.listen(heard.append)
    proxy = widget.panel.steps["cases"].table.proxy

    def row(number):
        return [str(proxy.index(number, column).data()) for column in range(proxy.columnCount())]

    def come_back():
        widget.parent.exit()
        widget.parent.enter()

    come_back()
    assert heard == [], "nothing changed, so nothing is read again"
    study.set_role("case_03", "ignored")
    give_result(study, "case_04")
    come_back()
    assert heard == ["cases"] and row(2)[1] == "ignored" and row(3)[4] == "predicted"
    with Worker(study.root, "run", {}) as worker:
        worker.events.emit("progress", step=1, total=9, loss=0.5)
        come_back()
        assert widget.logic.session.busy and widget.logic.session.job.run == worker.run
    waitFor(lambda: not widget.logic.session.busy)
    with Worker(study.root, "retrain", {}) as worker:
        pass
    come_back()
    train = widget.panel.steps["train"]
    assert train._job.run == worker.run and "Training the student: finished" in train.ui.jobLabel.text
    (study.root / "study.json").write_text("torn")
    come_back()
    assert "study.json" in widget.panel.ui.errorLabel.text


def test_errors_are_said_in_the_panel(widget):
    step = widget.panel.steps["cases"]
    assert step.attempt(lambda: widget.logic.study) is None
    assert "No study is open. Create or open" in widget.panel.ui.errorLabel.text
    step.attempt(lambda: 1 / 0)
    assert "division by zero" in widget.panel.ui.errorLabel.text
    assert step.attempt(lambda: 7, wait=True) == 7


def test_errors_are_gone_when_the_user_goes_on(widget, tmp_path):
    """With the next click; not by what the panel does by itself."""
    study = study_of(tmp_path)
    widget.logic.openStudy(study.root)
    widget.panel.open("cases")
    step, label = widget.panel.steps["cases"], widget.panel.ui.errorLabel
    step.table.select(["case_03"])
    step.ui.labeledButton.click()
    assert "has no label" in label.text
    widget.panel.steps["review"].keepEdits()
    widget.panel.refresh()
    assert "has no label" in label.text
    step.ui.ignoredButton.click()
    assert label.text == "" and widget.panel.ui.errorFrame.isHidden()
    step.ui.labeledButton.click()
    assert "has no label" in label.text
    step.onContextMenu(step.ui.casesTable.visualRect(step.table.proxy.index(2, 0)).center())
    next(action for action in step.menu.actions() if action.text == "Make unlabeled").trigger()
    step.menu.close()
    assert label.text == ""


def test_one_deaf_listener_does_not_silence_the_others(widget, caplog):
    heard = []
    widget.logic.session.listen(lambda what: 1 / 0)
    widget.logic.session.listen(heard.append)
    widget.logic.session.changed("chore")
    assert heard == ["chore"] and "could not show a change" in caplog.text


@pytest.fixture
def packages_put_back():
    kept = {
        name: sys.modules[name]
        for name in sys.modules
        if name.split(".")[0] in ("SFRSegmentationLib", "SFRCore")
    }
    yield kept
    for name in [name for name in sys.modules if name.split(".")[0] in ("SFRSegmentationLib", "SFRCore")]:
        del sys.modules[name]
    sys.modules.update(kept)
    slicer.util.reloadScriptedModule("SFRSegmentation")


def test_reload_takes_the_packages_along(widget, packages_put_back):
    widget.onReload()
    again = slicer.util.getModuleWidget("SFRSegmentation")
    assert again is not widget and again.panel is not None
    assert sys.modules["SFRSegmentationLib.panel"] is not packages_put_back["SFRSegmentationLib.panel"]
    assert sys.modules["SFRCore.errors"] is not packages_put_back["SFRCore.errors"]
