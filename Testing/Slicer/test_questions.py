"""The dialogs themselves: the only place that waits for an answer, answered here by a timer."""

import qt
import slicer
from SFRSegmentationLib.questions import Questions


def answer(act):
    """Do ``act(dialog)`` as soon as a dialog is there."""

    def look():
        dialogs = [w for w in slicer.app.topLevelWidgets() if w.inherits("QInputDialog") and w.visible]
        if dialogs:
            act(dialogs[0])
        else:
            qt.QTimer.singleShot(10, look)

    qt.QTimer.singleShot(10, look)


def typed(text):
    def act(dialog):
        dialog.setTextValue(text)
        dialog.accept()

    return act


def test_text():
    answer(typed("Liver, Spleen"))
    assert Questions().text("Structures", "Names", "Left atrium") == "Liver, Spleen"
    answer(lambda dialog: dialog.accept())
    assert Questions().text("Structures", "Names", "Left atrium") == "Left atrium"
    answer(lambda dialog: dialog.reject())
    assert Questions().text("Structures", "Names") is None


def test_choice():
    answer(typed("second"))
    assert Questions().choose("Series", "Which?", ["first", "second"]) == 1
    answer(lambda dialog: dialog.reject())
    assert Questions().choose("Series", "Which?", ["first", "second"]) is None


def test_answers_under_testing_are_no():
    """Slicer says no to every confirmation while it is testing: nothing is downloaded or overwritten."""
    assert Questions().confirm("Download 375 MB?", "Download", "from a server") is False
