"""Step 2: studies are made and opened, cases added, given roles and labels, by clicks on its controls."""

import time

import numpy as np
import pytest
import qt
import slicer
from event_loop import Stopwatch, measured
from panel_tools import Answers, cohort, give_result, loaded_volume, study_of
from SFRSegmentationLib import chores
from SFRSegmentationLib.study_questions import ask_for_structures

from SFRCore.errors import InputError


@pytest.fixture
def step(widget):
    widget.panel.open("cases")
    return widget.panel.steps["cases"]


def rows(step):
    proxy = step.table.proxy
    return [
        [str(proxy.index(row, column).data()) for column in range(proxy.columnCount())]
        for row in range(proxy.rowCount())
    ]


def ask(step, *answers):
    step.panel.questions = Answers(*answers)
    return step.panel.questions


def test_new_study_by_clicks(step, tmp_path):
    assert step.ui.newStudyButton.enabled and not step.ui.addVolumeButton.enabled
    assert "Create or open a study" in step.ui.addVolumeButton.toolTip
    ask(step, tmp_path / "la", "Left atrium, Right atrium")
    step.ui.newStudyButton.click()
    study = step.session.study
    assert [(s.value, s.name) for s in study.structures] == [(1, "Left atrium"), (2, "Right atrium")]
    assert str(study.root) in step.ui.studyLabel.text
    assert step.panel.parameters.studyFolder == str(study.root)


def test_values_and_colours_of_structures(step, tmp_path):
    _volume, segmentation = loaded_volume()
    segmentation.GetSegmentation().GetNthSegment(0).SetColor(1.0, 0.0, 0.0)
    step.ui.segmentationSelector.setCurrentNode(segmentation)
    asked = ask(step, tmp_path / "a", "3+4=Anterior lobe, 5=Stalk").asked
    step.ui.newStudyButton.click()
    assert "Anterior lobe" in asked[1][2]
    first, second = step.session.study.structures
    assert (first.value, first.also, first.color, second.also) == (3, (4,), (255, 0, 0), ())


def named(text, *segments):
    """The structures of a new study where segments with these names are chosen and ``text`` is the answer to
    the question; None leaves what is offered.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    for name in segments:
        node.GetSegmentation().AddEmptySegment("", name)

    class Asked:
        def text(self, title, label, value):
            assert "semicolons where a name has a comma" in label
            return value if text is None else text(value) if callable(text) else text

    found = ask_for_structures(Asked(), node if segments else None)
    return {structure.value: structure.name for structure in found}


def test_names_of_segments_are_taken_as_they_are():
    assert named(None, "Kidney, left") == {1: "Kidney, left"}
    assert named(None, "Kidney, left", "Label=3", "1=a;b") == {1: "Kidney, left", 2: "Label=3", 3: "1=a;b"}
    assert named(lambda value: value.replace("left", "right"), "Kidney, left") == {1: "Kidney, right"}
    assert named(lambda value: value + " Spleen", "Kidney, left") == {1: "Kidney, left", 2: "Spleen"}


def test_names_that_a_user_types():
    assert named("Liver, Spleen") == named("Liver; Spleen ;") == named("Liver\nSpleen") == {
        1: "Liver", 2: "Spleen",
    }  # fmt: skip
    assert named("Kidney, left; Kidney, right") == {1: "Kidney, left", 2: "Kidney, right"}
    assert named("1=Kidney, left; 4 + 5=Spleen") == {1: "Kidney, left", 4: "Spleen"}
    assert named("1=Liver, 4=Spleen") == {1: "Liver", 4: "Spleen"}
    assert named("T1=T2, Label=3") == {1: "T1=T2", 2: "Label=3"}
    for text, said in (("1=Liver, Spleen", "'Spleen' has no value"), ("2=A; 2=B", "given twice")):
        with pytest.raises(InputError, match=said):
            named(text)


def test_cancelled_question_changes_nothing(step, tmp_path):
    ask(step, None)
    step.ui.newStudyButton.click()
    ask(step, tmp_path / "a", None)
    step.ui.newStudyButton.click()
    assert step.session.study is None and not (tmp_path / "a").exists()


def test_wrong_folder_is_said_in_the_panel(step, tmp_path):
    ask(step, tmp_path)
    step.ui.openStudyButton.click()
    assert "is not a study" in step.panel.ui.errorLabel.text
    step.panel.ui.dismissButton.click()
    assert step.panel.ui.errorLabel.text == ""


def test_files_outside_are_listed_once(step, tmp_path):
    study = study_of(tmp_path)
    questions = ask(step, study.root, False)
    step.ui.openStudyButton.click()
    assert step.session.study is None and "case_01.nrrd" in questions.asked[1][2]
    ask(step, study.root, True)
    step.ui.openStudyButton.click()
    assert step.session.study is not None
    step.logic.closeStudy()
    ask(step, study.root)
    step.ui.openStudyButton.click()
    assert step.session.study is not None


def test_table_sorts_and_filters(step, tmp_path):
    study = study_of(tmp_path, cases=5)
    give_result(study, "case_03", dice=0.9)
    give_result(study, "case_04", dice=0.4, kind="pseudo_label")
    step.logic.openStudy(study.root)
    assert [row[0] for row in rows(step)] == ["case_01", "case_02", "case_03", "case_04", "case_05"]
    assert rows(step)[3][1:] == ["unlabeled", "", "0.60", "pseudo-label"]
    step.ui.casesTable.sortByColumn(3, qt.Qt.DescendingOrder)
    assert [row[0] for row in rows(step)][:2] == ["case_04", "case_03"]
    step.ui.filterEdit.text = "PREDICTED"
    assert [row[0] for row in rows(step)] == ["case_03"]
    step.ui.filterEdit.text = ""
    assert step.section.text.endswith("5 cases, 2 labeled")


def test_roles_for_many_by_button_and_menu(step, tmp_path):
    study = study_of(tmp_path, cases=5)
    step.logic.openStudy(study.root)
    assert not step.ui.ignoredButton.enabled and "Select cases" in step.ui.ignoredButton.toolTip
    step.table.select(["case_03", "case_04"])
    step.ui.ignoredButton.click()
    assert [case.role for case in step.session.study.cases.values()][2:4] == ["ignored", "ignored"]
    assert step.table.selected() == ["case_03", "case_04"]
    step.onContextMenu(step.ui.casesTable.visualRect(step.table.proxy.index(2, 0)).center())
    next(action for action in step.menu.actions() if action.text == "Make unlabeled").trigger()
    assert [row[1] for row in rows(step)][2:4] == ["unlabeled", "unlabeled"]
    step.menu.close()
    step.ui.labeledButton.click()
    assert "has no label" in step.panel.ui.errorLabel.text


def test_click_on_a_role_offers_the_others(step, tmp_path):
    step.logic.openStudy(study_of(tmp_path).root)
    step.table.select(["case_03"])
    step.onClicked(step.table.proxy.index(2, 0))
    assert step.menu is None
    step.onClicked(step.table.proxy.index(2, 1))
    assert [action.text for action in step.menu.actions()][0] == "Make labeled"
    step.menu.close()


def test_loaded_volume_with_its_segmentation(step, tmp_path):
    step.logic.createStudy(tmp_path / "s", {1: "Anterior lobe"})
    volume, segmentation = loaded_volume()
    assert "Choose a loaded volume" in step.ui.addVolumeButton.toolTip
    step.ui.volumeSelector.setCurrentNode(volume)
    step.ui.segmentationSelector.setCurrentNode(segmentation)
    assert step.ui.addVolumeButton.enabled
    step.ui.addVolumeButton.click()
    assert rows(step) == [["scan", "labeled", "expert", "", ""]]


def test_label_for_a_selected_case(step, tmp_path):
    step.logic.createStudy(tmp_path / "s", {1: "Anterior lobe"})
    volume, segmentation = loaded_volume()
    step.ui.volumeSelector.setCurrentNode(volume)
    step.ui.addVolumeButton.click()
    assert rows(step)[0][1] == "unlabeled"
    step.ui.segmentationSelector.setCurrentNode(segmentation)
    step.table.select(["scan"])
    step.ui.setLabelButton.click()
    assert rows(step)[0][1:3] == ["labeled", "expert"]


def test_segmentation_of_another_volume_or_an_empty_one_is_asked_about(step, tmp_path):
    step.logic.createStudy(tmp_path / "s", {1: "Anterior lobe"})
    (one, drawn), (two, empty) = loaded_volume("one"), loaded_volume("two")
    empty.GetSegmentation().RemoveAllSegments()
    empty.GetSegmentation().AddEmptySegment("a", "Anterior lobe")
    step.ui.volumeSelector.setCurrentNode(two)
    step.ui.segmentationSelector.setCurrentNode(drawn)
    asked = ask(step, False).asked
    step.ui.addVolumeButton.click()
    assert "'one drawn' was drawn on 'one', not on 'two'" in asked[0][0] and not rows(step)
    step.ui.segmentationSelector.setCurrentNode(empty)
    asked = ask(step, False).asked
    step.ui.addVolumeButton.click()
    assert "'two drawn' is empty" in asked[0][0] and not rows(step)
    ask(step, True)
    step.ui.addVolumeButton.click()
    assert rows(step)[0][:3] == ["two", "labeled", "expert"] and step.panel.ui.errorLabel.text == ""
    assert step.ui.segmentationSelector.currentNode() is None
    slicer.util.arrayFromVolume(one)[0] = 5
    step.table.select(["two"])
    step.ui.segmentationSelector.setCurrentNode(drawn)
    labels = step.session.study.case("two").label
    asked = ask(step, False).asked
    step.ui.setLabelButton.click()
    assert "not on 'two'" in asked[0][0] and step.session.study.case("two").label == labels
    ask(step, True)
    step.ui.setLabelButton.click()
    assert step.session.study.case("two").label != labels


def test_volume_that_is_a_case_gets_its_label_by_another_button(step, tmp_path):
    step.logic.createStudy(tmp_path / "s", {1: "Anterior lobe"})
    volume, segmentation = loaded_volume()
    step.ui.volumeSelector.setCurrentNode(volume)
    step.ui.addVolumeButton.click()
    step.ui.segmentationSelector.setCurrentNode(segmentation)
    step.ui.addVolumeButton.click()
    assert [row[:2] for row in rows(step)] == [["scan", "unlabeled"]]
    assert f"press '{step.ui.setLabelButton.text}'" in step.panel.ui.errorLabel.text
    assert step.ui.segmentationSelector.currentNode() is segmentation
    step.table.select(["scan"])
    step.ui.setLabelButton.click()
    assert [row[:2] for row in rows(step)] == [["scan", "labeled"]]


def test_segmentation_of_another_grid_is_asked_about(step, tmp_path):
    step.logic.createStudy(tmp_path / "s", {1: "Anterior lobe"})
    volume, segmentation = loaded_volume()
    shift = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = np.eye(4)
    matrix[0, 3] = 0.4
    shift.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    segmentation.SetAndObserveTransformNodeID(shift.GetID())
    step.ui.volumeSelector.setCurrentNode(volume)
    step.ui.segmentationSelector.setCurrentNode(segmentation)
    asked = ask(step, False).asked
    step.ui.addVolumeButton.click()
    assert "does not lie on the voxels" in asked[0][0] and "onto the voxels of scan?" in asked[0][0]
    assert not rows(step)
    ask(step, True)
    step.ui.addVolumeButton.click()
    assert rows(step)[0][1] == "labeled"


def test_folder_is_added_in_a_process(step, tmp_path, waitFor):
    images, labels = cohort(tmp_path / "cohort")
    (images / "broken.nrrd").write_text("not an image")
    step.logic.createStudy(tmp_path / "s", {1: "Anterior lobe", 2: "Posterior lobe"})
    ask(step, images, 1, labels)
    step.ui.addFolderButton.click()
    assert not step.ui.addFolderButton.enabled and step.ui.stopAddingButton.enabled
    waitFor(lambda: step.ui.addFolderButton.enabled, 60)
    assert [row[1] for row in rows(step)] == ["labeled"] * 4
    assert "4 cases were added" in step.ui.addingLabel.text and "broken.nrrd" in step.ui.addingLabel.text


AS_IT_IS = chores.Chore
SLOW = """
import sys, time
from SFRSegmentationLib import chore_process
check, asked = chore_process.Reporter.check, []
def wait(self):
    asked.append(1)
    if len(asked) >= {number}:
        while not self._stop.exists():
            time.sleep(0.01)
        check(self)
chore_process.Reporter.check = wait
sys.exit(chore_process.main(*sys.argv[1:]))
"""


def wait_for_stop_at(number, monkeypatch):
    """Chores begun from now on come to their image number ``number`` and wait there to be stopped."""

    def chore(name, command, env, json_lines):
        python, _m, _module, *rest = command
        return AS_IT_IS(name, [python, "-c", SLOW.format(number=number), *rest], env, json_lines=json_lines)

    monkeypatch.setattr(chores, "Chore", chore)


def test_adding_stops_when_it_is_asked_and_says_how_far_it_came(step, tmp_path, waitFor, monkeypatch):
    images, _labels = cohort(tmp_path / "cohort")
    step.logic.createStudy(tmp_path / "s", {1: "Anterior lobe"})
    wait_for_stop_at(3, monkeypatch)
    ask(step, images, 0)
    step.ui.addFolderButton.click()
    step.ui.stopAddingButton.click()
    assert step.ui.addingLabel.text == "Stopping…"
    asked = time.monotonic()
    waitFor(lambda: step.ui.addFolderButton.enabled, 9)
    assert time.monotonic() - asked < chores.SECONDS_TO_STOP
    assert step.ui.addingLabel.text == "Stopped. 2 cases were added by then."
    assert len(rows(step)) == 2 and step.panel.ui.errorLabel.text == ""
    wait_for_stop_at(2, monkeypatch)
    ask(step, True)
    step.ui.packButton.click()
    step.ui.stopAddingButton.click()
    waitFor(lambda: step.ui.packButton.enabled, 9)
    assert step.ui.addingLabel.text == "Stopped. 1 images were found or copied by then."


def test_moved_images_are_found_and_copied_in(step, tmp_path, waitFor):
    study = study_of(tmp_path)
    images, moved = tmp_path / "cohort" / "images", tmp_path / "moved"
    step.logic.openStudy(study.root)
    images.rename(moved)
    (moved / "case_04.nrrd").unlink()
    ask(step, moved)
    step.ui.relinkButton.click()
    assert not step.ui.packButton.enabled
    waitFor(lambda: step.ui.packButton.enabled, 60)
    assert "3 images were found again" in step.ui.addingLabel.text and "case_04" in step.ui.addingLabel.text
    assert step.logic.study.image_path("case_01") == moved / "case_01.nrrd"
    ask(step, True)
    step.ui.packButton.click()
    waitFor(lambda: step.ui.packButton.enabled, 60)
    assert "Find moved images" in step.panel.ui.errorLabel.text, "case_04 is still missing"
    cohort(tmp_path / "cohort")
    ask(step, True)
    step.ui.packButton.click()
    waitFor(lambda: "copied" in step.ui.addingLabel.text, 60)
    assert step.logic.study.outside_files() == []
    assert "study's own folder" in step.ui.packButton.toolTip and not step.ui.relinkButton.enabled


def test_changes_by_others_are_shown(step, tmp_path):
    study = study_of(tmp_path)
    step.logic.openStudy(study.root)
    study.set_role("case_03", "ignored")
    step.logic.reloadStudy()
    assert rows(step)[2][1] == "ignored"


@pytest.mark.usefixtures("ownHeap")
def test_thousand_rows(step, tmp_path, record_property):
    from SFRCore.study import Case, Study

    study = Study.create(tmp_path / "many", structures={1: "Organ"})
    with study.transaction():
        for number in range(1000):
            study.cases[f"case_{number:04d}"] = Case(f"case_{number:04d}", f"images/case_{number:04d}.nrrd")
    watch = Stopwatch()
    step.logic.openStudy(study.root)
    slicer.app.processEvents()
    filled = watch.seconds()
    watch = Stopwatch()
    step.ui.casesTable.sortByColumn(0, qt.Qt.DescendingOrder)
    slicer.app.processEvents()
    sorting = watch.seconds()
    watch = Stopwatch()
    step.logic.reloadStudy()
    again = watch.seconds()
    measured(
        f"1,000 cases: shown in {filled:.3f} s, sorted in {sorting:.3f} s, looked at again in {again:.3f} s"
    )
    assert rows(step)[0][0] == "case_0999"
    assert filled < 1.0 and sorting < 0.2 and again < 0.5


def dicom_series(folder, number, slices=6):
    """A small DICOM series in a folder, with a patient's name in its tags."""
    import numpy as np
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(slices):
        image = sitk.GetImageFromArray(np.full((1, 16, 16), 10 * k + number, np.int16))
        image.SetSpacing((1.0, 1.0, 2.0))
        tags = {
            "0008|0060": "MR", "0010|0010": "Doe^Jane", "0020|000d": "1.2.826.1",
            "0020|000e": f"1.2.826.1.{number}",
            "0008|0018": f"1.2.826.1.{number}.{k + 1}", "0020|0011": str(number), "0020|0013": str(k + 1),
            "0020|0032": f"0\\0\\{2 * k}", "0020|0037": "1\\0\\0\\0\\1\\0",
        }  # fmt: skip
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{number}-{k}.dcm"))
        writer.Execute(image)


def test_looking_for_dicom_series_can_be_stopped(step, tmp_path, waitFor, monkeypatch):
    dicom_series(tmp_path / "dicom", 1)
    step.logic.createStudy(tmp_path / "s", {1: "Organ"})
    wait_for_stop_at(3, monkeypatch)
    ask(step, tmp_path / "dicom")
    step.ui.addDicomButton.click()
    step.ui.stopAddingButton.click()
    waitFor(lambda: step.ui.addDicomButton.enabled, 9)
    assert step.ui.addingLabel.text == "Stopped; nothing was changed." and not rows(step)


def test_folder_without_dicom_is_said(step, tmp_path, waitFor):
    (tmp_path / "none").mkdir()
    step.logic.createStudy(tmp_path / "s", {1: "Organ"})
    ask(step, tmp_path / "none")
    step.ui.addDicomButton.click()
    waitFor(lambda: step.ui.addDicomButton.enabled, 60)
    assert "holds no DICOM images" in step.panel.ui.errorLabel.text and step.ui.addingLabel.text == ""


def test_which_series_is_not_asked_for_another_study(step, tmp_path, waitFor):
    dicom_series(tmp_path / "dicom", 1)
    dicom_series(tmp_path / "dicom", 2)
    step.logic.createStudy(tmp_path / "s", {1: "Organ"})
    ask(step, tmp_path / "dicom")
    step.ui.addDicomButton.click()
    step.logic.createStudy(tmp_path / "other", {1: "Organ"})
    waitFor(lambda: step.ui.addDicomButton.enabled, 60)
    assert not rows(step) and step.panel.ui.errorLabel.text == ""


def test_dicom_series_is_chosen_and_added(step, tmp_path, waitFor):
    dicom_series(tmp_path / "dicom", 1)
    dicom_series(tmp_path / "dicom", 2, slices=8)
    step.logic.createStudy(tmp_path / "s", {1: "Organ"})
    asked = ask(step, tmp_path / "dicom", 1).asked
    step.ui.addDicomButton.click()
    assert len(asked) == 1 and step.ui.stopAddingButton.enabled, "the headers are read by another process"
    waitFor(lambda: step.ui.addDicomButton.enabled, 60)
    assert len(asked[1][2]) == 2 and "8 MR slices" in asked[1][2][1] and "Doe" not in str(asked)
    assert [row[:2] for row in rows(step)] == [["case_0001", "unlabeled"]], step.panel.ui.errorLabel.text
    assert "Doe" not in (tmp_path / "s" / "study.json").read_text()
