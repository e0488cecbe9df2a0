"""The panel as a whole: it opens on a bare Slicer, one section is open, and it bears what a scene goes
through.
"""

import slicer


def test_opens_with_five_steps(widget):
    assert list(widget.panel.steps) == ["setUp", "cases", "train", "review", "results"]
    assert [step.section.text[:2] for step in widget.panel.steps.values()] == ["1.", "2.", "3.", "4.", "5."]


def test_one_section_is_open(widget):
    widget.panel.open("cases")
    assert widget.panel.openKey == "cases"
    widget.panel.steps["train"].section.click()
    assert widget.panel.openKey == "train"
    assert [step.section.collapsed for step in widget.panel.steps.values()].count(False) == 1


def test_scene_closed(widget):
    slicer.mrmlScene.Clear(0)
    assert widget.panel.parameters is not None
    widget.exit()
    slicer.mrmlScene.Clear(0)
    widget.enter()
