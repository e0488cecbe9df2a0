"""A study of a thousand cases with results, while a job finishes one after the other."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from event_loop import LIMIT, Stopwatch, measured
from panel_tools import give_result

from SFRCore.study import Case, Study

CASES = 1000


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A study whose cases share one image; their results are copies of one."""
    study = Study.create(tmp_path_factory.mktemp("many") / "study", structures={1: "Organ"})
    image = study.root / "images" / "x.nrrd"
    image.parent.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((12, 20, 24), np.int16)), str(image))
    ids = [f"case_{number:04d}" for number in range(CASES)]
    with study.transaction():
        for id in ids:
            study.cases[id] = Case(id, "images/x.nrrd")
    give_result(study, ids[0], dice=0.5)
    for path in study.result_paths(ids[0], "prediction"):
        for id in ids[1:]:
            shutil.copyfile(path, path.with_name(path.name.replace(ids[0], id)))
    return study


@pytest.mark.usefixtures("ownHeap")
@pytest.mark.parametrize("key", ["cases", "train", "review", "results"])
def test_finished_cases_do_not_hold_the_event_loop(widget, many, key):
    widget.logic.openStudy(many.root)
    widget.panel.open(key)
    slicer.app.processEvents()
    session = widget.logic.session
    taken = {}
    for round, what in enumerate(("results", "progress", "job", "results")):
        session.fresh = [f"case_{round:04d}", f"case_{CASES // 2:04d}"]
        give_result(many, session.fresh[0], dice=0.9 - 0.05 * round)
        watch = Stopwatch()
        session.changed(what)
        slicer.app.processEvents()
        taken[what] = max(taken.get(what, 0.0), watch.seconds())
    told = ", ".join(f"{what} {1e3 * seconds:.0f} ms" for what, seconds in taken.items())
    measured(f"{CASES} cases, step {key} open: event loop held by {told} at most")
    assert max(taken.values()) < LIMIT
    steps = widget.panel.steps
    assert len(steps["review"].queue) == len(steps["results"].rows) == CASES
    assert steps["review"].queue[0].expected_dice == min(item.expected_dice for item in steps["review"].queue)
