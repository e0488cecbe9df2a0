"""Pictures of the panel and of a slice view with doubt over it, for the documentation: `make screenshots`.

They are rendered off-screen by the test harness: the slice views by Slicer's own displayable managers, the
panel by Qt with recorded CTK widgets. They are not screenshots of Slicer, and captions must say so.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
os.environ.setdefault("SFR_CHECKPOINTS", tempfile.mkdtemp())
# What the pictures show of folders is a reader's, not this machine's.
os.environ.setdefault("SFR_DATA", "/home/you/.local/share/sfr")

import headless  # noqa: E402

environment = headless.start()

import numpy as np  # noqa: E402
import qt  # noqa: E402
import SimpleITK as sitk  # noqa: E402
import slicer  # noqa: E402
from headless import qt_rules, views  # noqa: E402
from scene_tools import openPanel  # noqa: E402
from scipy import ndimage  # noqa: E402

from SFRCore.runtime.worker import Worker  # noqa: E402
from SFRCore.study import Study, as_structures  # noqa: E402
from SFRCore.synthetic import STRUCTURES, make_synthetic_cohort  # noqa: E402

SIZE = (96, 96, 40)
WIDTH = 500
VIEW = 560
STRIP = 20
CASES = 6


def study(folder: Path) -> Study:
    """An invented study: two labeled cases, one for testing, the others predicted with doubt."""
    made = Study.create(folder, structures=as_structures({1: STRUCTURES[1], 2: STRUCTURES[2]}))
    images, labels = make_synthetic_cohort(folder.parent / "cohort", cases=CASES, size=SIZE, seed=3)
    pairs = zip(sorted(images.iterdir()), sorted(labels.iterdir()), strict=True)
    for number, (image, label) in enumerate(pairs, start=1):
        id = f"scan{number:02d}"
        if number <= 2:
            made.add(image, label=label, id=id)
            continue
        role = "test" if number == CASES else None
        made.add(image, reference=label, role=role, id=id)
        predict(made, id, sitk.ReadImage(str(label)), number)
    return made


def predict(made: Study, id: str, truth: sitk.Image, seed: int) -> None:
    """A result that is wrong and unsure in part of the volume, as a model's would be."""
    rng = np.random.default_rng(seed)
    array = sitk.GetArrayFromImage(truth)
    field = ndimage.gaussian_filter(rng.normal(size=array.shape), (4, 8, 8))
    wrong = np.clip(field / np.abs(field).max() * 1.6, 0, 1)
    near = ndimage.distance_transform_edt(array == 0) + ndimage.distance_transform_edt(array > 0)
    unsure = 0.62 * np.exp(-((near - 1) ** 2) / 18) * (0.15 + wrong)
    found = np.where(
        ndimage.binary_dilation(array > 0, iterations=2) & (wrong > 0.5) & (array == 0), 1, array
    )
    confidence = np.rint(255 * (1 - np.clip(unsure, 0, 0.66))).astype(np.uint8)
    doubt = 1 - confidence / 255
    by_slice = (doubt * ndimage.binary_dilation(found > 0, iterations=4)).sum(axis=(1, 2))
    label, map_of_confidence = (
        sitk.GetImageFromArray(found.astype(np.uint8)),
        sitk.GetImageFromArray(confidence),
    )
    for made_image in (label, map_of_confidence):
        made_image.CopyInformation(truth)
    certain = {value: float((1 - doubt)[found == value].mean()) for value in (1, 2)}
    expected = {str(value): share - 0.04 * seed for value, share in certain.items()}
    voxel = float(np.prod(truth.GetSpacing())) / 1000
    made.write_result(
        id,
        "prediction",
        label,
        map_of_confidence,
        {
            "mean_confidence": float(1 - doubt.mean()),
            "expected_dice": min(expected.values()),
            "expected_dice_by_structure": expected,
            "volume_ml": {str(value): float((found == value).sum() * voxel) for value in (1, 2)},
            "slices": [
                {"index": k, "mean_confidence": float(1 - doubt[k].mean()), "doubt": float(by_slice[k])}
                for k in range(len(by_slice))
            ],
            "doubtful_slice": int(by_slice.argmax()),
            "slice_axis": 2,
            "made_by": {"model": "invented"},
        },
    )


def caption(path: Path) -> None:
    """Write under a picture what it is."""
    picture = qt.QImage(str(path))
    width, height = picture.width(), picture.height()
    whole = qt.QImage(width, height + STRIP, qt.QImage.Format_RGB32)
    whole.fill(qt.QColor(255, 255, 255))
    painter = qt.QPainter(whole)
    painter.drawImage(0, 0, picture)
    painter.setPen(qt.QColor(70, 70, 70))
    painter.drawText(6, height + STRIP - 6, "Rendered off-screen by the tests, not a screenshot of Slicer")
    painter.end()
    if not whole.save(str(path)):
        raise OSError(f"{path} could not be written")


def grab_panel(widget, key: str, name: str) -> None:
    """The panel with one section open, as high as it needs to be."""
    if key:
        widget.panel.open(key)
    for _turn in range(3):
        slicer.app.processEvents()
    parent = widget.parent
    for _turn in range(2):  # folded groups have their height only when they were shown
        parent.resize(WIDTH, 200)
        parent.show()
        slicer.app.processEvents()
        parent.resize(WIDTH, max(parent.layout().heightForWidth(WIDTH), parent.minimumSizeHint.height()))
        slicer.app.processEvents()
    if not parent.grab().save(str(FOLDER / name)):
        raise OSError(f"{FOLDER / name} could not be written")


def grab_views(name: str, view: str = "Red") -> None:
    """A slice view as it is now."""
    environment.sliceViews[view].grab(str(FOLDER / name))


def grab_training(widget, made: Study) -> None:
    """The Train step while a job runs: this process writes what a worker would, with an invented loss."""
    with Worker(made.root, "run", {}) as worker:
        tell = worker.events.emit
        tell("plan", device="NVIDIA RTX 4070", preset="auto", patch=[96, 96, 48])
        tell("estimate", seconds=4300, memory_bytes=7.1e9, per_stage={"finetune": 2600, "retrain": 1700})
        for stage, done, total, left in (("finetune", 600, 600, 0.0), ("retrain", 228, 600, 1060.0)):
            worker.stage = stage
            noise = np.random.default_rng(len(stage)).normal(size=done)
            for step in range(1, done + 1):
                loss = 0.12 + 0.8 * np.exp(-step / 130) * (1 + 0.15 * noise[step - 1])
                tell("progress", step=step, total=total, loss=float(loss), eta_s=left)
            if stage == "finetune":
                tell("finished_stage")
                tell("progress", stage="pseudolabel", step=3, total=3)
                tell("finished_stage", stage="pseudolabel")
        widget.logic.openStudy(made.root)
        widget.panel.open("train")
        train = widget.panel.steps["train"]
        until = time.monotonic() + 30
        while time.monotonic() < until and len(train.bars.bars) < 3:
            slicer.app.processEvents()
        grab_panel(widget, "train", "panel-train.png")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    views.SLICE_MANAGERS.append("vtkMRMLColorLegendDisplayableManager")
    for view in environment.sliceViews.values():
        view.size = (VIEW, VIEW)
        view.render()
    panels = openPanel()
    widget = next(panels)
    widget.panel.open("setUp")
    grab_panel(widget, "setUp", "panel-set-up.png")
    grab_panel(widget, "review", "panel-review-empty.png")
    # From here on as where the worker's packages are installed.
    os.environ["SFR_PYTHON"] = sys.executable
    work = Path(tempfile.gettempdir()) / "pictures"
    shutil.rmtree(work, ignore_errors=True)
    made = study(work / "lobes")
    widget.logic.openStudy(made.root)
    grab_panel(widget, "cases", "panel-cases.png")
    grab_panel(widget, "train", "panel-train-waits.png")
    widget.panel.steps["train"].choices.choose("foundation", "tiny")
    grab_panel(widget, "train", "panel-train-ready.png")
    widget.panel.steps["train"].ui.advancedGroup.collapsed = False
    grab_panel(widget, "train", "panel-train-advanced.png")
    widget.panel.steps["train"].ui.advancedGroup.collapsed = True
    grab_training(widget, made)
    review = widget.panel.steps["review"]
    grab_panel(widget, "review", "panel-review-queue.png")
    review.ui.nextCaseButton.click()
    grab_panel(widget, "review", "panel-review.png")
    grab_views("review-slice-view.png")
    review.ui.showDoubtCheckBox.click()
    grab_views("review-without-doubt.png")
    review.ui.showDoubtCheckBox.click()
    review.ui.correctButton.click()
    grab_panel(widget, "review", "panel-review-correct.png")
    review.ui.correctButton.click()
    review.ui.acceptButton.click()
    grab_panel(widget, "review", "panel-review-accepted.png")
    review.leaveCase()
    results = widget.panel.steps["results"]
    widget.panel.open("results")
    results.ui.loadImagesButton.click()
    while results.busy:
        slicer.app.processEvents()
    grab_panel(widget, "results", "panel-results.png")
    next(panels, None)
    shutil.rmtree(work, ignore_errors=True)
    complaints = [*environment.errors, *qt_rules.slotErrors, *qt_rules.qtMessages]
    if complaints:
        raise RuntimeError(f"the pictures were made with complaints: {complaints}")
    for picture in FOLDER.glob("*.png"):
        caption(picture)
    print(f"{len(list(FOLDER.glob('*.png')))} pictures in {FOLDER}")


if __name__ == "__main__":
    main()
    shutil.rmtree(os.environ["SFR_CHECKPOINTS"], ignore_errors=True)
