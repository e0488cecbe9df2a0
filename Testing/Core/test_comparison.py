"""``sfr compare``: rows and seeds, what is kept, the table and its numbers."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.stats import wilcoxon
from typer.testing import CliRunner

from SFRCore import api
from SFRCore.cli import app
from SFRCore.comparison import Row, parse_rows, read_comparisons, running
from SFRCore.comparison.plan import comparison_folder, refuse_unknown_options, settings_of, snapshot
from SFRCore.comparison.table import difference_text, markdown, result_path, tabulate
from SFRCore.errors import Cancelled, InputError, OutOfMemory
from SFRCore.foundation.spec import SPECS
from SFRCore.report import write_report
from SFRCore.report.history import read_history
from SFRCore.runtime import loop
from SFRCore.runtime.files import write_json
from SFRCore.runtime.jobs import Job
from SFRCore.settings import Settings
from SFRCore.ssl.mean_teacher import MeanTeacher
from SFRCore.stages import estimate
from SFRCore.students import vnet
from SFRCore.study import Study

SETTINGS: dict[str, Any] = {
    "patch": (16, 16, 16), "iterations_finetune": 1, "iterations_retrain": 2, "device": "cpu",
}  # fmt: skip
POCKET = {
    "dim": 24, "depth": 2, "heads": 2, "global_blocks": (1,), "canvas": 64, "out_chans": 16, "mlp_dim": 16,
    "iou_hidden": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def pocket_networks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(SPECS, "tiny", replace(SPECS["tiny"], **POCKET))  # type: ignore[arg-type]
    monkeypatch.setattr(vnet, "_CHANNELS", (2, 4, 4, 8, 8))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def study(tmp_path: Path, cohort: tuple[Path, Path]) -> Study:
    study = Study.create(tmp_path / "study", structures={1: "Front", 2: "Back"})
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    for index, (image, label) in enumerate(zip(images[:4], labels[:4], strict=True)):
        if index < 1:
            study.add(image, label=label)
        else:
            study.add(image, reference=label, role="test" if index >= 2 else "unlabeled")
    return study


def test_rows_are_methods_or_recipe_and_method() -> None:
    assert parse_rows(["mean_teacher", "baseline/supervised"], "sfr") == [
        Row("sfr", "mean_teacher"),
        Row("baseline", "supervised"),
    ]
    with pytest.raises(InputError, match="twice"):
        parse_rows(["mean_teacher", "sfr/mean_teacher"], "sfr")
    with pytest.raises(InputError):
        parse_rows(["sfr/means_teacher"], "sfr")
    with pytest.raises(InputError, match="nothing"):
        parse_rows([], "sfr")


def test_a_table_is_made_kept_and_extended(study: Study) -> None:
    rows = ["baseline/supervised", "baseline/mean_teacher", "sfr/mean_teacher"]
    done = api.compare(study, rows, seeds=1, **SETTINGS)
    folder = Path(done["folder"])
    assert [line["row"] for line in done["rows"]] == ["supervised", "mean_teacher", "sfr: mean_teacher"]
    assert not done["failed"] and done["base"] == "supervised"
    assert not (study.root / "predictions").exists(), "the study's own results are left alone"
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}
    assert len(kept) == 3

    again = api.compare(study, rows, seeds=2, **SETTINGS)
    later = {path.name: path.stat().st_mtime_ns for path in (folder / "results").iterdir()}
    assert len(later) == 6 and all(later[name] == when for name, when in kept.items())
    assert [line["seeds"] for line in again["rows"]] == [[1, 2]] * 3
    scores = [
        json.loads(result_path(folder, Row("sfr", "mean_teacher"), seed).read_text())["scores"]
        for seed in (1, 2)
    ]
    by_hand = [np.mean([means["dice"] for means in score["structures"].values()]) for score in scores]
    assert again["rows"][2]["dice"] == pytest.approx(np.mean(by_hand))
    assert again["rows"][2]["dice_std"] == pytest.approx(np.std(by_hand, ddof=1))
    with (folder / "cases.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 3 * 2 * 2 * 2
    assert "| supervised |" in (folder / "table.md").read_text()
    assert read_comparisons(study)[0].lines == again["rows"]
    assert "Methods compared" in write_report(study).read_text(encoding="utf-8")


def test_a_study_that_has_changed_is_not_mixed_in(study: Study) -> None:
    api.compare(study, ["baseline/supervised"], seeds=1, **SETTINGS)
    with pytest.raises(InputError, match="other settings"):
        api.compare(study, ["baseline/supervised"], seeds=1, **(SETTINGS | {"iterations_retrain": 3}))
    study.set_role(["case_02"], "ignored")
    with pytest.raises(InputError, match="other") as caught:
        api.compare(study, ["baseline/supervised"], seeds=1, **SETTINGS)
    assert "--name" in caught.value.hint
    api.compare(study, ["baseline/supervised"], seeds=1, name="without", **SETTINGS)


def test_a_reference_or_an_image_that_was_replaced_is_not_mixed_in(study: Study) -> None:
    study.pack()
    folder, settings = comparison_folder(study, "methods"), Settings.of(**SETTINGS)
    snapshot(study, folder, settings, "test cases")
    kept = json.loads((folder / "comparison.json").read_text())
    study.set_reference("case_03", sitk.ReadImage(str(study.reference_path("case_03"))) * 0)
    with pytest.raises(InputError, match="begun with other references"):
        snapshot(study, folder, settings, "test cases")
    earlier = {name: kept[name] for name in ("labels", "roles", "settings", "scored cases")}
    write_json(folder / "comparison.json", earlier)
    snapshot(study, folder, settings, "test cases")
    write_json(folder / "comparison.json", kept)
    image = study.image_path("case_04")
    sitk.WriteImage(sitk.ReadImage(str(image)) + 1, str(image))
    study.preset = "left_atrium"
    with pytest.raises(InputError, match="references and images and preset"):
        snapshot(study, folder, settings, "test cases")


def test_a_comparison_of_an_older_sfr_goes_on(study: Study) -> None:
    """It knew fewer settings, and wrote down the network that was trained."""
    folder, settings = comparison_folder(study, "methods"), Settings.of(**SETTINGS)
    snapshot(study, folder, settings, "test cases")
    kept = json.loads((folder / "comparison.json").read_text())
    assert kept["settings"]["student"] == "vnet"
    older = {name: value for name, value in kept["settings"].items() if name not in ("input", "batch")}
    write_json(folder / "comparison.json", kept | {"settings": older})
    for same in (settings, settings.with_(student="vnet")):
        snapshot(study, folder, same, "test cases")
    for other in (settings.with_(input="small"), settings.with_(batch=1), settings.with_(preset="brats")):
        with pytest.raises(InputError, match="begun with other settings"):
            snapshot(study, folder, other, "test cases")


def test_a_row_that_does_not_fit_is_left_out(study: Study) -> None:
    said: list[str] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "warning":
            said.append(event["message"])

    done = api.compare(study, ["baseline/supervised", "sfr/supervised"], seeds=1, on_event=listen, **SETTINGS)
    assert list(done["failed"]) == ["sfr-supervised"] and any("left out" in line for line in said)
    assert done["rows"][1]["dice"] is None and done["rows"][0]["dice"] is not None
    with pytest.raises(InputError, match="No row could be trained"):
        api.compare(study, ["sfr/supervised"], seeds=1, name="none", **SETTINGS)


def test_cancelled_between_and_within_rows_it_goes_on(study: Study) -> None:
    rows = ["baseline/supervised", "baseline/mean_teacher"]

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["stage"] == "retrain" and "loss" in event:
            job = Job.running(study.root)
            assert job is not None
            job.cancel()

    with pytest.raises(Cancelled):
        api.compare(study, rows, seeds=1, on_event=stop, **(SETTINGS | {"iterations_retrain": 20}))
    assert not list(study.root.glob("comparisons/methods/results/*-mean_teacher-*"))
    done = api.compare(study, rows, seeds=1, **(SETTINGS | {"iterations_retrain": 20}))
    assert all(line["dice"] is not None for line in done["rows"])


def test_what_cannot_be_compared_is_refused_before_anything_is_made(study: Study) -> None:
    for words, match in (
        ({"base": "sfr/self_training"}, "not one of the rows"),
        ({"seeds": 0}, "at least one seed"),
        ({"name": "../elsewhere"}, "cannot be the name"),
    ):
        with pytest.raises(InputError, match=match):
            api.compare(study, ["baseline/supervised"], **words, **SETTINGS)
    assert not (study.root / "comparisons").exists()


def test_a_row_takes_the_options_that_it_knows() -> None:
    shared = Settings(
        input="small", pseudo_labels="online", pseudo_weight=0.5, seed=9,
        method_options={"ema_decay": 0.5}, recipe_options={"rounds": 1},
    )  # fmt: skip
    rows = [Row("sfr", "mean_teacher"), Row("baseline", "supervised"), Row("aslseg", "supervised")]
    refuse_unknown_options(rows, shared)
    sfr, baseline, aslseg = (settings_of(row, shared, 2) for row in rows)
    assert (sfr.input, sfr.pseudo_labels, sfr.pseudo_weight, sfr.seed) == ("small", "online", 0.5, 2)
    assert sfr.method_options == {"ema_decay": 0.5} and sfr.recipe_options == {}
    assert (baseline.input, baseline.pseudo_labels, baseline.pseudo_weight) == ("stitched", "cached", 1.0)
    assert aslseg.recipe_options == {"rounds": 1} and aslseg.method_options == {}
    for name in ("method", "recipe"):
        with pytest.raises(InputError, match=f"No {name} of the comparison has an option 'momentum'"):
            refuse_unknown_options(rows, shared.with_(**{f"{name}_options": {"momentum": 1}}))


def test_a_comparison_of_more_than_half_a_day_asks_first(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object, **__: object) -> dict[str, Any]:
        return {"per_stage": {"finetune": 3600.0, "retrain": 2.4 * 3600}, "device": "a slow computer"}

    monkeypatch.setattr(api, "estimate", measured)

    def trained(copy: Study, folder: Path, row: Row, settings: Settings, *_: object) -> None:
        write_json(result_path(folder, row, settings.seed), {"scores": scores_of({"c": 0.5}), "seconds": 1.0})

    monkeypatch.setattr(running, "_train", trained)
    rows, long = ["sfr/ua_mt", "sfr/cps"], SETTINGS | {"iterations_retrain": 6000}
    with pytest.raises(InputError, match="take more than 17 hours on a slow computer") as caught:
        api.compare(study, rows, **long)
    assert caught.value.code == "long_run" and not list(study.root.glob("comparisons/*"))
    api.compare(study, rows, seeds=2, **long)
    words = [
        "compare",
        str(study.root),
        "--ssl",
        ",".join(rows),
        "--iterations-retrain",
        "6000",
        "--name",
        "more",
    ]
    words += [
        "--iterations-finetune",
        "1",
        "--input",
        "small",
        "--tuning",
        "decoder",
        "--method-option",
        "ramp=1,2,3",
    ]
    assert CliRunner().invoke(app, words).exit_code != 0
    assert CliRunner().invoke(app, [*words, "--yes"]).exit_code == 0
    kept = json.loads((study.root / "comparisons/more/comparison.json").read_text())["settings"]
    assert (kept["input"], kept["tuning"], kept["method_options"]) == (
        "small",
        "decoder",
        {"ramp": [1, 2, 3]},
    )


def scores_of(dice: dict[str, float]) -> dict[str, Any]:
    entry = {"jaccard": 0.5, "asd": 1.0, "hd95": None}
    return {
        "structures": {"A": {"dice": float(np.mean(list(dice.values()))), **entry}},
        "cases": {case: {"structures": {"A": {"dice": value, **entry}}} for case, value in dice.items()},
    }


def test_differences_are_paired_by_case(tmp_path: Path) -> None:
    base, other = Row("baseline", "supervised"), Row("baseline", "mean_teacher")
    values = np.random.default_rng(1).uniform(0.4, 0.9, (2, 2, 8))
    for row, of_row in zip((base, other), values, strict=True):
        for seed, of_seed in enumerate(of_row):
            dice = {f"c{index}": float(value) for index, value in enumerate(of_seed)}
            write_json(result_path(tmp_path, row, seed), {"scores": scores_of(dice), "seconds": 60.0})
    table = tabulate(tmp_path, [base, other], [0, 1], base, "test cases")
    differences = values[1].mean(0) - values[0].mean(0)
    line = table.lines[1]
    assert line["difference"] == pytest.approx(differences.mean())
    assert line["difference_interval"][0] < differences.mean() < line["difference_interval"][1]
    assert line["p"] == pytest.approx(wilcoxon(differences).pvalue)
    assert "difference" not in table.lines[0] and line["hd95"] is None and line["minutes"] == 1.0
    text = markdown(table)
    assert f"{100 * differences.mean():+.2f} [" in text and "| – |" in text
    for row, of_row in zip((base, other), values, strict=True):
        for seed, of_seed in enumerate(of_row):
            dice = {f"c{index}": float(value) for index, value in enumerate(of_seed[:5])}
            write_json(result_path(tmp_path, row, seed), {"scores": scores_of(dice), "seconds": 60.0})
    few = tabulate(tmp_path, [base, other], [0, 1], base, "test cases").lines[1]
    assert few["difference"] is not None and few["difference_interval"] is few["p"] is None
    assert difference_text(few) == f"{100 * few['difference']:+.2f}", "five cases"


def test_a_fine_tuning_counts_for_every_row_that_needs_it(tmp_path: Path) -> None:
    rows = [Row("sfr", "ua_mt"), Row("sfr", "cps"), Row("baseline", "cps")]
    shared: list[dict[str, float]] = [{"finetune": 120.0}, {"finetune": 0.0}, {}]
    for row, seconds, own in zip(rows, (180.0, 60.0, 60.0), shared, strict=True):
        result = {"scores": scores_of({"c": 0.5}), "seconds": seconds, "shared_seconds": own}
        write_json(result_path(tmp_path, row, 1), result)
    lines = tabulate(tmp_path, rows, [1], rows[0], "test cases").lines
    assert [line["minutes"] for line in lines] == [3.0, 3.0, 1.0]
    heard: list[dict[str, Any]] = []
    timer = running.SharedTime(("finetune", "retrain"), heard.append)
    for stage in ("finetune", "finetune", "retrain"):
        timer({"event": "progress", "stage": stage})
    assert list(timer.seconds) == ["finetune"] and timer.seconds["finetune"] > 0 and len(heard) == 3


def test_a_row_that_fails_later_keeps_what_it_had(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(copy: Study, folder: Path, row: Row, settings: Settings, *_: object) -> None:
        if settings.seed > 1:
            raise InputError("The volume is gone.")
        write_json(result_path(folder, row, settings.seed), {"scores": scores_of({"c": 0.5}), "seconds": 1.0})

    monkeypatch.setattr(running, "_train", trained)
    done = api.compare(study, ["baseline/ua_mt"], seeds=2, **SETTINGS)
    assert done["failed"] == {"baseline-ua_mt": "The volume is gone."} and done["rows"][0]["seeds"] == [1]


def test_a_method_with_a_mistake_does_not_end_the_others(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, Any]] = []
    taught = MeanTeacher.step
    lost = partial(open, "weights.pt")
    measured_first = iter([False])
    monkeypatch.setattr(estimate, "is_short", lambda *_: next(measured_first, True))
    for wrong, reason in (
        (
            lambda self, *_: self.nothing_of_that_name,
            r"AttributeError: .*nothing_of_that_name.* in test_comparison\.py, line \d+",
        ),
        (lambda self, *_: {}, "gave back a dict from its step"),
        (lambda self, *_: lost(), "FileNotFoundError"),
        (lambda self, batch, _: self.student(batch.labels), r"in (vnet|student)\.py, line \d+"),
    ):
        monkeypatch.setattr(MeanTeacher, "step", wrong)
        rows = ["baseline/mean_teacher", "baseline/supervised"]
        done = api.compare(study, rows, seeds=1, on_event=said.append, **SETTINGS)
        assert re.search(reason, done["failed"]["baseline-mean_teacher"])
        assert [line["seeds"] for line in done["rows"]] == [[], [1]]
        table = (Path(done["folder"]) / "table.md").read_text(encoding="utf-8")
        assert "| left out |" in table and re.search(f"mean_teacher could not be trained: .*{reason}", table)
        assert re.search(reason, write_report(study).read_text(encoding="utf-8"))
    assert any("left out" in event.get("message", "") for event in said)
    assert any("worker.log" in str(event.get("hint")) for event in said)
    with pytest.raises(InputError, match="No row could be trained"):
        api.compare(study, ["baseline/mean_teacher"], seeds=1, **SETTINGS)
    monkeypatch.setattr(MeanTeacher, "step", taught)
    done = api.compare(study, ["baseline/mean_teacher", "baseline/supervised"], seeds=1, **SETTINGS)
    assert not done["failed"] and "left out" not in (Path(done["folder"]) / "table.md").read_text()


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: device-side assert triggered"),
        OutOfMemory("No memory is left."),
    ],
)
def test_what_would_fail_in_every_row_ends_a_comparison(
    study: Study, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    trained: list[Row] = []

    def fails(copy: Study, folder: Path, row: Row, *_: object) -> None:
        trained.append(row)
        raise error

    monkeypatch.setattr(running, "_train", fails)
    with pytest.raises(type(error)):
        api.compare(study, ["baseline/supervised", "baseline/mean_teacher"], seeds=1, **SETTINGS)
    assert len(trained) == 1


def test_nothing_is_left_of_a_comparison_that_could_not_be_begun(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "is_short", lambda *_: False)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(api, "estimate", full)
    with pytest.raises(OSError, match="No space"):
        api.compare(study, ["baseline/supervised"], seeds=1, **SETTINGS)
    assert not comparison_folder(study, "methods").exists()


def test_what_a_mistake_has_trained_does_not_go_on(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    step, steps = MeanTeacher.step, []

    def second_fails(self: MeanTeacher, *given: Any) -> Any:
        steps.append(None)
        return step(self, *given) if len(steps) == 1 else self.nothing_of_that_name

    monkeypatch.setattr(MeanTeacher, "step", second_fails)
    rows = ["baseline/mean_teacher", "baseline/supervised"]
    done = api.compare(study, rows, seeds=1, **SETTINGS)
    assert len(steps) == 2 and list(done["failed"]) == ["baseline-mean_teacher"]
    monkeypatch.setattr(MeanTeacher, "step", step)
    done = api.compare(study, rows, seeds=1, **SETTINGS)
    result = json.loads(result_path(Path(done["folder"]), Row("baseline", "mean_teacher"), 1).read_text())
    assert result["stages"]["retrain"]["continued_at"] == 0


def test_naming_one_row_more_keeps_those_of_before(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(copy: Study, folder: Path, row: Row, settings: Settings, *_: object) -> None:
        if row.ssl == "cps":
            raise InputError("It does not fit.")
        scores = scores_of({"c": {"supervised": 0.5, "mean_teacher": 0.6}.get(row.ssl, 0.7)})
        write_json(result_path(folder, row, settings.seed), {"scores": scores, "seconds": 1.0})

    monkeypatch.setattr(running, "_train", trained)
    first = ["baseline/mean_teacher", "baseline/supervised", "baseline/cps"]
    api.compare(study, first, seeds=2, base="baseline/supervised", **SETTINGS)
    added = api.compare(study, ["baseline/ua_mt"], seeds=1, **SETTINGS)
    assert [line["row"] for line in added["rows"]] == ["mean_teacher", "supervised", "cps", "ua_mt"]
    assert [line["seeds"] for line in added["rows"]] == [[1, 2], [1, 2], [], [1]]
    assert added["base"] == "supervised" and added["rows"][3]["difference"] == pytest.approx(0.2)
    assert added["rows"][2]["left_out"] == "It does not fit." and not added["failed"]
    with (Path(added["folder"]) / "cases.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 5
    other = api.compare(study, ["baseline/ua_mt"], seeds=1, base="baseline/mean_teacher", **SETTINGS)
    assert other["base"] == "mean_teacher", "a base may be a row of before"
    turned = ["baseline/ua_mt", *reversed(first)]
    whole = api.compare(study, turned, seeds=1, **SETTINGS)
    assert [f"baseline/{line['row']}" for line in whole["rows"]] == turned and whole["base"] == "ua_mt"
    with pytest.raises(InputError, match="not one of the rows"):
        api.compare(study, ["baseline/ua_mt"], seeds=1, base="baseline/ict", **SETTINGS)


def test_what_cannot_be_scored_is_refused_before_it_is_trained(study: Study) -> None:
    for wrong, said in (({"cases": "foo"}, "'foo' does not name cases"), ({"mode": "mild"}, "'mild'")):
        with pytest.raises(InputError, match=said):
            api.compare(study, ["baseline/supervised"], seeds=1, **wrong, **SETTINGS)
    assert not comparison_folder(study, "methods").exists()


def test_other_settings_are_named(study: Study) -> None:
    folder = comparison_folder(study, "methods")
    snapshot(study, folder, Settings.of(**SETTINGS), "test cases")
    other = Settings.of(**(SETTINGS | {"iterations_retrain": 3, "pseudo_weight": 0.5}))
    with pytest.raises(InputError, match=r"other settings \(iterations retrain, pseudo weight\)"):
        snapshot(study, folder, other, "test cases")


def test_a_distance_that_is_missing_is_marked(tmp_path: Path) -> None:
    one, two = Row("baseline", "supervised"), Row("baseline", "ua_mt")
    for row, undefined in ((one, 0), (two, 3)):
        scores = scores_of({"a": 0.5, "b": 0.5})
        for means in scores["structures"].values():
            means |= {"hd95": 4.0, "asd": None, "cases": 4, "undefined_distances": undefined}
        write_json(result_path(tmp_path, row, 1), {"scores": scores, "seconds": 1.0})
    table = tabulate(tmp_path, [one, two], [1], one, "test cases")
    text = markdown(table)
    assert "| 95HD (voxels) | ASD (voxels) |" in text
    lines = {line.split(" |")[0]: line for line in text.splitlines()}
    assert "| 4.00 |" in lines["| supervised"] and "| 4.00 † | – † |" in lines["| ua_mt"]
    structures = len(scores["structures"])
    assert f"ua_mt {3 * structures} of {4 * structures}." in text and "supervised 0" not in text


def test_the_stages_of_a_comparison_are_not_those_of_the_study(study: Study) -> None:
    api.compare(study, ["sfr/supervised", "sfr/mean_teacher"], seeds=1, **SETTINGS)
    history = read_history(study.root)
    assert not history.stages and history.runs[-1].command == "compare"
    settings = history.runs[-1].settings
    assert settings["iterations_retrain"] == 2 and settings["rows"] == ["sfr-supervised", "sfr-mean_teacher"]


def test_the_command_prints_the_table(study: Study) -> None:
    words = [
        "compare",
        str(study.root),
        "--ssl",
        "baseline/supervised",
        "--seeds",
        "1",
        "--patch",
        "16,16,16",
    ]
    words += ["--iterations-retrain", "1", "--device", "cpu"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "| supervised |" in done.output and "table.md" in done.output
