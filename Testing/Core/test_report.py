"""The report: how slices lie, what the pictures show, what a page says and what it never says."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import shutil
from html.parser import HTMLParser
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.figure import Figure
from PIL import Image

from SFRCore.errors import InputError
from SFRCore.report import figures, write_report
from SFRCore.report.figures import curve_picture, doubt_picture, outline_picture, slice_size
from SFRCore.report.history import read_history, readable_rows, without_paths
from SFRCore.report.markup import moment
from SFRCore.report.slices import SOFT_TISSUE, choose_view
from SFRCore.study import Study

DATA = Path(__file__).parents[3] / "shared/data"
SIZE = (20, 16, 10)
SPACING = (1.0, 1.0, 3.0)
RED, BLUE = (230, 30, 30), (30, 60, 230)


def lps_image(array: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> sitk.Image:
    """An image whose axes are L, P, S from an array (L, P, S)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing(spacing)
    image.SetOrigin((-12.0, 5.0, 40.0))
    return image


def marked(corner: tuple[int, int, int]) -> np.ndarray:
    """Values 0..1 with one value of 100 at ``corner`` (L, P, S)."""
    array = np.random.default_rng(0).random(SIZE).astype(np.float32)
    array[corner] = 100.0
    return array


ORIENTATIONS = [
    "".join(pair[sign] for pair, sign in zip(order, signs, strict=True))
    for order in permutations(("LR", "PA", "SI"))
    for signs in product((0, 1), repeat=3)
]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_file_orientation_is_shown_alike(orientation: str) -> None:
    corner = (1, 2, 3)  # right, anterior, inferior
    file = sitk.DICOMOrient(lps_image(marked(corner)), orientation)
    label = sitk.DICOMOrient(lps_image((marked(corner) > 50).astype(np.uint8)), orientation)
    file_axis = next(i for i, letter in enumerate(orientation) if letter in "SI")
    index = 3 if orientation[file_axis] == "S" else SIZE[2] - 1 - 3
    view = choose_view(file, label, doubtful=(file_axis, index))
    assert view.plane == "axial" and view.edges == ("R", "L", "A", "P")
    assert (view.number, view.count) == (index + 1, SIZE[2])
    assert view.spacing == (1.0, 1.0)
    row, column = np.argwhere(view.image == 100.0)[0]
    assert view.label is not None and view.label[row, column] == 1
    assert row < view.image.shape[0] / 2 and column < view.image.shape[1] / 2


@pytest.mark.parametrize(
    ("spacing", "plane", "edges"),
    [
        ((4.0, 1.0, 1.0), "sagittal", ("A", "P", "S", "I")),
        ((1.0, 4.0, 1.0), "coronal", ("R", "L", "S", "I")),
        ((1.0, 1.0, 4.0), "axial", ("R", "L", "A", "P")),
        ((1.0, 1.0, 1.0), "axial", ("R", "L", "A", "P")),
    ],
)
def test_slices_are_taken_across_the_coarsest_axis(
    spacing: tuple[float, float, float], plane: str, edges: tuple[str, ...]
) -> None:
    array = marked((1, 1, 8))  # right, anterior, superior
    view = choose_view(lps_image(array, spacing), lps_image((array > 50).astype(np.uint8), spacing))
    assert (view.plane, view.edges) == (plane, edges)
    row, column = np.argwhere(view.image == 100.0)[0]
    assert row < view.image.shape[0] / 2 and column < view.image.shape[1] / 2


def test_pictures_keep_the_true_proportions() -> None:
    array = np.random.default_rng(0).random((40, 20, 30)).astype(np.float32)
    view = choose_view(lps_image(array, (1.0, 5.0, 0.5)), None, stack_axis=0)
    assert view.image.shape == (30, 20) and view.spacing == (0.5, 5.0)
    assert slice_size(view) == (380, 60)
    assert picture_of(outline_picture(view, {})).size == (380, 60)


def test_without_a_result_the_slice_with_most_foreground_is_shown() -> None:
    label = np.zeros(SIZE, np.uint8)
    label[4:6, 4:6, 2] = 1
    label[4:9, 4:9, 7] = 1
    image = lps_image(np.random.default_rng(0).random(SIZE).astype(np.float32))
    assert choose_view(image, lps_image(label)).number == 8
    assert choose_view(image, lps_image(np.zeros(SIZE, np.uint8))).number == 6
    assert choose_view(image, None, reference=lps_image(label)).number == 8


def test_the_crop_holds_all_that_is_drawn() -> None:
    size = (200, 180, 6)
    label, reference = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    label[20:26, 30:36, 2], reference[24:32, 30:33, 2] = 1, 1
    image = lps_image(np.random.default_rng(0).random(size).astype(np.float32))
    view = choose_view(image, lps_image(label), reference=lps_image(reference))
    assert view.label is not None and view.reference is not None
    assert np.count_nonzero(view.label) == 36 and np.count_nonzero(view.reference) == 24
    assert max(view.image.shape) < 60


def test_volumes_that_do_not_belong_together_are_refused() -> None:
    image = lps_image(np.random.default_rng(0).random(SIZE).astype(np.float32))
    other = lps_image(np.zeros((20, 16, 9), np.uint8))
    with pytest.raises(InputError, match="does not lie on"):
        choose_view(image, other)


def test_ct_is_shown_in_a_soft_tissue_window_and_mr_in_its_own() -> None:
    ct = np.random.default_rng(0).uniform(-1000, 900, SIZE).astype(np.float32)
    assert choose_view(lps_image(ct), None).window == SOFT_TISSUE
    assert choose_view(lps_image(ct), None, window=(-10.0, 20.0)).window == (-10.0, 20.0)
    low, high = choose_view(lps_image(ct + 2000), None).window
    assert 1000 <= low < high <= 2900


def picture_of(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def two_structures() -> tuple[np.ndarray, np.ndarray]:
    label = np.zeros((60, 60, 4), np.uint8)
    label[10:25, 10:25, 1], label[35:50, 35:50, 1] = 1, 7
    doubt = np.full(label.shape, 0.02, np.float32)
    doubt[22:38, 22:38, 1] = 0.6
    return label, doubt


def near(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere(np.abs(pixels.astype(int) - color).max(axis=-1) < 45)


def test_each_structure_is_outlined_in_its_colour_at_its_place() -> None:
    label, _ = two_structures()
    image = lps_image(np.random.default_rng(0).random(label.shape).astype(np.float32), (1.0, 1.0, 2.0))
    view = choose_view(image, lps_image(label, (1.0, 1.0, 2.0)))
    pixels = np.asarray(picture_of(outline_picture(view, {1: RED, 7: BLUE})).convert("RGB"))
    scale = slice_size(view)[0] / view.image.shape[1]
    for value, color in ((1, RED), (7, BLUE)):
        assert view.label is not None
        rows, columns = np.nonzero(view.label == value)
        found = near(pixels, color) / scale
        assert len(found) > 50
        np.testing.assert_allclose(found.min(axis=0), (rows.min(), columns.min()), atol=1.0)
        np.testing.assert_allclose(found.max(axis=0), (rows.max() + 1, columns.max() + 1), atol=1.0)


def test_the_doubt_scale_ends_at_the_largest_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    whole = figures.data_uri

    def keep(figure: Figure, **options: int) -> str:
        drawn.append(figure)
        return whole(figure, **options)

    monkeypatch.setattr(figures, "data_uri", keep)
    label, doubt = two_structures()
    image = lps_image(np.random.default_rng(0).random(label.shape).astype(np.float32))
    view = choose_view(image, lps_image(label), doubt=lps_image(doubt))
    uri = doubt_picture(view, {1: RED, 7: BLUE}, 2 / 3)
    bar = drawn[0].axes[1]
    assert bar.get_ylim() == pytest.approx((0.0, 2 / 3))
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0", "0.33", "0.67"]
    pixels = np.asarray(picture_of(uri).convert("RGB")).astype(int)
    width = slice_size(view)[0]
    slice_pixels = pixels[:, :width]
    coloured = np.argwhere(np.ptp(slice_pixels, axis=-1) > 90)
    centre = np.median(coloured, axis=0) / (width / view.image.shape[1])
    np.testing.assert_allclose(centre, np.array(view.image.shape) / 2, atol=4)


def test_a_picture_of_a_noisy_slice_stays_small() -> None:
    array = np.random.default_rng(0).normal(size=(180, 140, 3)).astype(np.float32)
    label = np.zeros(array.shape, np.uint8)
    label[10:170, 10:130, 1] = 1
    doubt = np.random.default_rng(1).random(array.shape).astype(np.float32) / 2
    view = choose_view(lps_image(array), lps_image(label), doubt=lps_image(doubt))
    size = len(outline_picture(view, {1: RED})) + len(doubt_picture(view, {1: RED}, 0.5))
    assert size < 8_000_000 / 60 * 1.5


def test_curves_are_drawn_with_gaps_and_with_a_single_point() -> None:
    steps = np.arange(1.0, 51.0)
    loss = np.exp(-steps / 20)
    loss[10:20] = math.nan
    wide = picture_of(curve_picture(steps, {"loss": loss, "consistency": loss / 3}, total=100.0))
    assert wide.size[0] > 400
    assert picture_of(curve_picture(steps[:1], {"loss": loss[:1]}, total=None)).size == wide.size


# ------------------------------------------------------------------ what was run


def write_run(runs: Path, name: str, events: list[dict[str, Any]], **job: Any) -> None:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(
        json.dumps({"pid": 1, "host": "ward7-pc", "started": 1.0, "command": "run", **job})
    )
    lines = [json.dumps({"run": name, "stage": "", **event}) for event in events]
    (folder / "events.jsonl").write_text("\n".join(lines) + '\n{"time": 99, "torn')


def progress(stage: str, steps: range, total: int, *, start: float, **more: float) -> list[dict[str, Any]]:
    return [
        {
            "time": start + s,
            "stage": stage,
            "event": "progress",
            "step": s,
            "total": total,
            "loss": 1 / s,
            **more,
        }
        for s in steps
    ]


def test_a_continued_stage_is_one_curve(tmp_path: Path) -> None:
    write_run(
        tmp_path / "runs",
        "a",
        [*progress("finetune", range(1, 8), 10, start=0), {"time": 9, "event": "cancelled"}],
        start=0,
    )
    write_run(
        tmp_path / "runs",
        "b",
        [*progress("finetune", range(5, 11), 10, start=1000), {"time": 1011, "event": "finished"}],
        start=1000,
    )
    history = read_history(tmp_path)
    assert [run.state for run in history.runs] == ["cancelled", "finished"]
    (stage,) = history.stages
    steps, series = stage.curves()
    assert steps.tolist() == list(range(1, 11))
    assert series["loss"].tolist() == [1 / s for s in range(1, 11)]
    assert (stage.state, stage.step, stage.total) == ("finished", 10, 10)
    assert stage.seconds == pytest.approx(6 + 5)


def test_a_stage_that_starts_anew_replaces_its_curve(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "a", progress("retrain", range(1, 11), 10, start=0), start=0)
    write_run(
        tmp_path / "runs",
        "b",
        [
            *progress("retrain", range(1, 4), 20, start=100, rate=0.01, supervised=0.5),
            {
                "time": 105,
                "event": "error",
                "message": "/home/Jane Doe/x.nii.gz is damaged.",
                "code": "input",
            },
        ],
        start=100,
    )
    history = read_history(tmp_path)
    (stage,) = history.stages
    steps, series = stage.curves()
    assert steps.tolist() == [1, 2, 3] and sorted(series) == ["loss", "supervised"]
    assert (stage.state, stage.step, stage.total) == ("failed", 3, 20)
    assert history.runs[-1].message == "the file is damaged."
    alone = read_history(tmp_path, "a")
    assert alone.stages[0].total == 10 and alone.runs[0].state == "running"
    os.utime(tmp_path / "runs/a/events.jsonl", (1.0, 1.0))
    assert read_history(tmp_path, "a").runs[0].state == "died"
    with pytest.raises(InputError, match="no run 'c'"):
        read_history(tmp_path, "c")


def test_a_finished_stage_that_runs_again_counts_anew(tmp_path: Path) -> None:
    def run(start: float, stages: dict[str, int]) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        for stage, cases in stages.items():
            events += [{"time": start, "stage": stage, "event": "started" if cases else "skipped"}]
            events += [{"time": start + 1 + n, "stage": stage, "event": "case"} for n in range(cases)]
            start += 10
        return [*events, {"time": start, "event": "finished"}]

    write_run(tmp_path / "runs", "a", run(0, {"pseudolabel": 4, "predict": 5}), start=0)
    write_run(tmp_path / "runs", "b", run(100, {"predict": 0, "pseudolabel": 2}), start=100)
    shown = [(stage.stage, stage.cases, stage.seconds) for stage in read_history(tmp_path).stages]
    assert shown == [("predict", 5, 5.0), ("pseudolabel", 2, 2.0)]


def test_progress_without_a_loss_is_no_curve(tmp_path: Path) -> None:
    events = [
        {"time": 1, "stage": "predict", "event": "progress", "step": 1, "total": 2, "doing": "reading"},
        {"time": 3, "stage": "predict", "event": "case", "id": "x"},
    ]
    write_run(tmp_path / "runs", "a", events, start=0)
    (stage,) = read_history(tmp_path).stages
    assert (stage.cases, stage.total, stage.seconds) == (1, 0, 2.0)
    steps, series = stage.curves()
    assert not len(steps) and not series


def test_long_curves_are_thinned_but_keep_their_ends(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "a", progress("retrain", range(1, 3001), 3000, start=0), start=0)
    steps, series = read_history(tmp_path).stages[0].curves()
    assert len(steps) == len(series["loss"]) == 800
    assert (steps[0], steps[-1]) == (1, 3000)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/data/Jane Doe/scan one.nii.gz is damaged.", "the file is damaged."),
        (r"C:\Users\Doe\a.nrrd cannot be read.", "the file cannot be read."),
        ("~/Doe/a.mha is empty.", "the file is empty."),
        ("The folder known/place holds two series.", "The folder the file holds two series."),
        ("Slices lie 3 mm apart and/or overlap.", "Slices lie 3 mm apart and/or overlap."),
    ],
)
def test_paths_are_taken_out_of_messages(text: str, shown: str) -> None:
    assert without_paths(text, ["known/place"]) == shown


def test_settings_are_shown_without_machines_and_folders() -> None:
    rows = dict(
        readable_rows(
            {
                "host": "ward7-pc",
                "seed": 7,
                "fast": True,
                "none": None,
                "made_by": {"source": "/home/doe/vit_b.pth", "rate": 0.01, "time": 1.7e9},
                "structures": [{"value": 1, "name": "Liver"}],
                "patch": [96, 96, 96],
            }
        )
    )
    assert rows == {
        "seed": "7",
        "fast": "yes",
        "made by / source": "vit_b.pth",
        "made by / rate": "0.01",
        "made by / time": moment(1.7e9),
        "structures": "Liver",
        "patch": "96, 96, 96",
    }


# ------------------------------------------------------------------ the page


def numbers(expected: dict[str, float]) -> dict[str, Any]:
    return {
        "mean_confidence": 0.97,
        "expected_dice": min(expected.values()),
        "expected_dice_by_structure": expected,
        "volume_ml": {value: 12.5 for value in expected},
        "slices": [{"index": i, "mean_confidence": 0.97, "doubt": 1.0} for i in range(SIZE[2])],
        "slice_axis": 2,
        "doubtful_slice": 4,
        "made_by": {"model": "student"},
    }


EXPECTED = {
    "Muster A": {"1": 0.95, "7": 0.91},
    "Muster B": {"1": 0.75, "7": 0.62},
    "Muster C": {"1": 0.88, "7": 0.0},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, str]:
    """A study with three results, a labeled case and one without a result, and its report."""
    tmp_path = tmp_path_factory.mktemp("shared")
    study = Study.create(tmp_path / "Liver study", structures={1: "Left <atrium>", 7: "Aorta"})
    rng = np.random.default_rng(0)
    label = np.zeros(SIZE, np.uint16)
    label[4:10, 4:10, 3:6], label[12:17, 8:13, 4:8] = 1, 7
    private = tmp_path / "Doe, Jane 1960"
    private.mkdir()
    for case in ("expert", *EXPECTED, "waiting"):
        image = lps_image((rng.random(SIZE) + 3 * (label > 0)).astype(np.float32))
        path = private / f"{case}.nrrd"
        sitk.WriteImage(image, str(path))
        study.add(path, label=lps_image(label) if case == "expert" else None)
    for case, expected in EXPECTED.items():
        found = np.where(label == 7, 0, label) if expected["7"] == 0 else label
        confidence = np.full(SIZE, 250, np.uint8)
        confidence[8:14, 8:14, 4] = 100
        study.write_result(
            case, "prediction", lps_image(found.astype(np.uint8)), lps_image(confidence), numbers(expected)
        )
    study.flag("waiting", f"{study.image_path('waiting')} has a slice missing at 34 mm.")
    write_run(
        study.runs_dir,
        "20250101-120000",
        [
            {
                "time": 1000,
                "stage": "run",
                "event": "plan",
                "reasons": [f"patch 16 x 16 x 16: {private}/a.nrrd is small"],
                "device": "CPU",
                "patch": [16, 16, 16],
            },
            *progress("finetune", range(1, 30), 29, start=1000),
            {
                "time": 1040,
                "stage": "retrain",
                "event": "warning",
                "message": "Memory ran out <once>.",
                "hint": "Wait.",
            },
            *progress("retrain", range(1, 40), 39, start=1050),
            {"time": 1100, "stage": "predict", "event": "case", "id": "Muster A"},
            {"time": 1101, "stage": "predict", "event": "finished"},
        ],
        start=1000,
        config={"settings": {"ssl": "mean_teacher", "foundation": str(private / "weights.pth")}},
    )
    return study, write_report(study).read_text(encoding="utf-8")


@pytest.fixture
def study(written: tuple[Study, str], tmp_path: Path) -> Study:
    """A copy of the study that a test may change, without its report."""
    root = tmp_path / written[0].root.name
    shutil.copytree(written[0].root, root)
    (root / "reports/report.html").unlink()
    images = tmp_path / "images"
    shutil.copytree(written[0].image_path("waiting").parent, images)
    copied = Study.open(root)
    with copied.transaction():
        for case in copied.cases.values():
            case.image = str(images / Path(case.image).name)
    return Study.open(root)


@pytest.fixture(scope="module")
def html(written: tuple[Study, str]) -> str:
    return written[1]


@pytest.fixture(scope="module")
def text(html: str) -> str:
    return Page(html).text.replace("\xa0", " ")


class Page(HTMLParser):
    """Text, tags and addresses of a page; fails on tags that are not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_the_page_holds_everything_it_shows(html: str) -> None:
    page = Page(html)
    pictures = [address for address in page.addresses if not address.startswith("#")]
    assert len(pictures) == 2 * len(EXPECTED) + 1 + 2 + 2
    for address in pictures:
        picture_of(address).verify()
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert "http:" not in html and "https:" not in html and "url(" not in html and "<script" not in html
    assert len(html) < 1_000_000


def test_the_most_doubtful_case_comes_first(text: str) -> None:
    assert "3 of 4 cases are segmented. 2 cases need a close look" in text
    first = text[text.index("Look at these first") : text.index("What was run")]
    assert "Muster C : Aorta was not found; look at axial slice 5 of 10." in first
    assert "Muster B : Aorta is the least certain: expected Dice 0.62" in first
    assert "Muster A" not in first
    gallery = text[text.index("the most doubtful first") : text.index("Labeled cases")]
    assert gallery.index("Muster C") < gallery.index("Muster B") < gallery.index("Muster A")
    assert "doubt cannot exceed 0.67" in gallery


def test_nothing_private_reaches_the_page(written: tuple[Study, str], html: str, text: str) -> None:
    readable = re.sub(r"base64,[^\"]+", "", html)
    for secret in ("Doe", "Jane", "1960", "ward7", str(written[0].root.parent), ".nrrd"):
        assert secret not in readable
    assert "The file has a slice missing at 34 mm." in text
    assert "weights.pth" in text


def test_names_cannot_break_the_page(html: str, text: str) -> None:
    assert "<atrium>" not in html and "<once>" not in html
    assert "Left <atrium>" in text and "Memory ran out <once>. Wait." in text


def test_the_page_tells_what_was_run(text: str) -> None:
    told = text[text.index("What was run") : text.index("Segmented cases")]
    assert told.index("Foundation model fine-tuned") < told.index("Student network trained")
    assert "29 of 29 steps" in told and "39 of 39 steps" in told
    assert "semi-supervised method mean_teacher" in told
    assert "The last run finished." in told and "computed on CPU" in told
    assert "patch 16 x 16 x 16: the file is small" in told
    assert told.count(" steps ") == 2


def test_scores_are_shown_with_what_is_undefined(study: Study) -> None:
    scores = {
        "mean_dice": 0.8123,
        "unit": "mm",
        "structures": {
            "Left <atrium>": {
                "dice": 0.9,
                "jaccard": 0.82,
                "asd": 1.25,
                "hd95": 4.5,
                "undefined_distances": 0,
            },
            "Aorta": {"dice": 0.72, "jaccard": 0.61, "asd": None, "hd95": None, "undefined_distances": 1},
        },
        "cases": {
            "Muster A": {"kind": "prediction", "structures": {"Aorta": {"dice": 0.7203, "hd95": None}}}
        },
    }
    study.reports_dir.mkdir(exist_ok=True)
    (study.reports_dir / "scores.json").write_text(json.dumps(scores))
    path = write_report(study)
    assert path == study.reports_dir / "report.html"
    text = Page(path.read_text(encoding="utf-8")).text
    assert "0.81 measured Dice (1 case with a reference)" in text
    assert "Student (prediction), 1 case" in text
    assert "Surface distance (mm)" in text and "1.25" in text and "–" in text
    assert "1 distance is left out of the means" in text
    assert "Measured Dice" in text and "0.720" in text


def test_mostly_missing_structures_are_said_in_the_headline(study: Study) -> None:
    for case in ("Muster A", "Muster B"):
        result = study.result(case, "prediction")
        assert result is not None
        found = {"1": 0.9, "7": 0.0}
        label, confidence = (sitk.ReadImage(str(p)) for p in (result.label_path, result.confidence_path))
        study.write_result(case, "prediction", label, confidence, numbers(found))
    text = Page(write_report(study, pictures=0).read_text(encoding="utf-8")).text
    assert "In 3 of them a structure was not found: train for longer" in text


def test_a_random_stand_in_is_not_called_a_trained_model(study: Study, html: str) -> None:
    job = study.runs_dir / "20250101-120000/job.json"
    settings = json.loads(job.read_text())
    settings["config"]["settings"] = {"foundation": "tiny", "preset": None, "seed": 0}
    job.write_text(json.dumps(settings))
    text = Page(write_report(study, pictures=0).read_text(encoding="utf-8")).text
    assert "A small stand-in for a foundation model, begun from random numbers" in text
    assert "(SAM)" not in text and "(SAM)" in Page(html).text
    assert "random seed 0" in text


def test_at_most_so_many_pictures_are_drawn(study: Study) -> None:
    path = write_report(study, study.root.parent / "short.html", pictures=1)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.ids == ["case-1"]
    rest = page.text[page.text.index("Cases without a picture here") :]
    for case in ("expert", "Muster A", "Muster B", "waiting"):
        assert case in rest
    assert "no result yet" in rest


def test_a_case_that_cannot_be_read_is_named_and_the_rest_is_drawn(study: Study) -> None:
    study.image_path("Muster C").write_bytes(b"NRRD0004\nnothing")
    study.result_paths("Muster B", "prediction")[1].write_bytes(b"torn")
    text = Page(write_report(study).read_text(encoding="utf-8")).text
    assert text.count("No picture:") == 2
    assert "Muster A" in text and "Axial slice 5 of 10" in text
    assert "Muster C : Aorta was not found." in text


def test_review_states_are_told(study: Study) -> None:
    study.reject("Muster C")
    study.accept("Muster B")
    text = Page(write_report(study).read_text(encoding="utf-8")).text
    assert "No case stands out as doubtful" in text
    assert "label: accepted" in text
    assert "Its segmentation was rejected in review" in text


def test_an_empty_and_a_new_study_have_a_report(tmp_path: Path) -> None:
    empty = Study.create(tmp_path / "empty", structures={1: "Liver"})
    assert "This study has no cases yet" in Page(write_report(empty).read_text(encoding="utf-8")).text
    empty.add(lps_image(marked((1, 1, 1))), id="one")
    text = Page(write_report(empty).read_text(encoding="utf-8")).text
    assert "Nothing has been segmented yet: 0 cases are labeled, 1 case waits to be segmented." in text


def test_a_read_only_study_is_reported_elsewhere(study: Study, tmp_path: Path) -> None:
    reader = Study.open(study.root, readonly=True)
    with pytest.raises(InputError, match="read-only"):
        write_report(reader, pictures=0)
    target = write_report(reader, tmp_path / "out" / "page.html", pictures=0)
    assert target.is_file() and not (study.reports_dir / "report.html").exists()


def test_an_unknown_run_is_refused(study: Study) -> None:
    with pytest.raises(InputError, match="no run 'other'"):
        write_report(study, run="other")


@pytest.mark.skipif(
    not (DATA / "hippocampus").is_dir(), reason="the real volumes of shared/data are not here"
)
def test_a_real_case_is_drawn() -> None:
    path = sorted((DATA / "hippocampus/images").glob("*.nii.gz"))[0]
    image = sitk.ReadImage(str(path))
    label = sitk.Cast(sitk.ReadImage(str(DATA / "hippocampus/labels" / path.name)), sitk.sitkUInt8)
    view = choose_view(image, label)
    pixels = np.asarray(picture_of(outline_picture(view, {1: RED, 2: BLUE})).convert("RGB"))
    assert len(near(pixels, RED)) > 100 and len(near(pixels, BLUE)) > 100
