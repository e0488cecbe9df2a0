"""The whole recipe on small volumes: what runs, what is skipped, what is continued, what it leaves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file

from SFRCore import api
from SFRCore.errors import Cancelled, InputError, OutOfMemory
from SFRCore.runtime import loop
from SFRCore.runtime.events import read_events
from SFRCore.runtime.jobs import Job
from SFRCore.stages import pseudolabel
from SFRCore.stages.inference import as_images, describe
from SFRCore.stages.lineage import shortened
from SFRCore.study import Study
from SFRCore.volumes import Frame

SETTINGS: dict[str, Any] = {
    "patch": (16, 16, 16),
    "iterations_finetune": 4,
    "iterations_retrain": 6,
    "device": "cpu",
    "seed": 3,
}
STUDENT = "models/sfr-mean_teacher/student.safetensors"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_study(root: Path, cohort: tuple[Path, Path], *, labeled: int = 2, test: int = 1) -> Study:
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    study = Study.create(root, structures={1: "Front", 2: "Back"})
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        if index < labeled:
            study.add(image, label=label)
        else:
            study.add(image, reference=label, role="test" if index >= len(images) - test else "unlabeled")
    return study


def run(study: Study, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return api.run(study, on_event=events.append, **(SETTINGS | changes)), events


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cohort: tuple[Path, Path]) -> Study:
    """One study after one whole run; read only."""
    torch.set_num_threads(1)
    study = make_study(tmp_path_factory.mktemp("finished") / "study", cohort)
    run(study)
    return study


def test_a_run_leaves_everything_that_was_promised(finished: Study) -> None:
    for name in (
        "models/foundation/foundation.safetensors",
        "models/foundation/foundation.json",
        STUDENT,
        "models/sfr-mean_teacher/student.json",
        "confidence/confidence.csv",
        "predictions/confidence.csv",
    ):
        assert (finished.root / name).is_file(), name
    for case in finished.unlabeled_cases():
        image = sitk.ReadImage(str(finished.image_path(case.id)))
        for path in (
            f"pseudo_labels/{case.id}.nrrd",
            f"confidence/{case.id}.nrrd",
            f"predictions/{case.id}.nrrd",
            f"predictions/confidence/{case.id}.nrrd",
        ):
            made = sitk.ReadImage(str(finished.root / path))
            assert made.GetSize() == image.GetSize()
            # NRRD stores spacing times direction: their product loses the last bit.
            for name in ("GetOrigin", "GetDirection", "GetSpacing"):
                assert getattr(made, name)() == pytest.approx(getattr(image, name)(), rel=1e-12, abs=1e-12)
    test = finished.test_cases()[0].id
    assert (finished.root / f"predictions/{test}.nrrd").is_file()
    assert not (finished.root / f"pseudo_labels/{test}.nrrd").exists(), "test cases are not pseudo-labeled"


def test_checkpoints_go_when_the_model_is_there(finished: Study) -> None:
    assert not list(finished.runs_dir.glob("*/checkpoints/*.pt"))


def test_numbers_of_a_result_are_consistent(finished: Study) -> None:
    for case in finished.unlabeled_cases():
        result = finished.result(case.id, "prediction")
        assert result is not None
        confidence = sitk.GetArrayFromImage(sitk.ReadImage(str(result.confidence_path))) / 255
        assert result.mean_confidence == pytest.approx(confidence.mean(), abs=2e-3)
        assert 1 / 3 <= result.mean_confidence <= 1
        assert result.expected_dice == pytest.approx(min(result.expected_dice_by_structure.values()))
        label = sitk.GetArrayFromImage(sitk.ReadImage(str(result.label_path)))
        voxel = np.prod(sitk.ReadImage(str(result.label_path)).GetSpacing()) / 1000
        for value in (1, 2):
            assert result.volume_ml[str(value)] == pytest.approx((label == value).sum() * voxel)
        assert len(result.slices) == label.shape[0]
        doubts = {one["index"]: one["doubt"] for one in result.slices}
        assert doubts[result.doubtful_slice] == max(doubts.values())


def test_events_tell_stages_progress_and_cases(finished: Study) -> None:
    runs = sorted(finished.runs_dir.iterdir())
    events = read_events(runs[0] / "events.jsonl")
    kinds = [event["event"] for event in events]
    assert kinds[-1] == "finished"
    stages = [event["stage"] for event in events if event["event"] == "finished_stage"]
    assert stages == ["finetune", "pseudolabel", "retrain", "predict"]
    assert {
        event["id"] for event in events if event["event"] == "case" and event["stage"] == "pseudolabel"
    } == {case.id for case in finished.unlabeled_cases()}
    curve = [event for event in events if event["event"] == "progress" and "loss" in event]
    assert all(np.isfinite(event["loss"]) for event in curve)


def test_evaluation_scores_what_training_never_saw(finished: Study) -> None:
    scores = api.evaluate(finished)
    assert list(scores["cases"]) == [case.id for case in finished.test_cases()]
    assert 0 <= scores["mean_dice"] <= 1
    assert set(scores["structures"]) == {"Front", "Back"}
    with pytest.raises(InputError, match="does not name cases"):
        api.evaluate(finished, cases="some")


def test_running_again_does_nothing(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    study = make_study(tmp_path / "study", cohort)
    run(study)
    before = (study.root / STUDENT).read_bytes()
    done, events = run(study)
    assert all(stage["skipped"] for stage in done["stages"].values())
    assert (study.root / STUDENT).read_bytes() == before
    assert [event["stage"] for event in events if event["event"] == "skipped"] == list(done["stages"])

    # A corrected case joins the labeled ones and is continued from, with a fifth of the iterations.
    case = study.unlabeled_cases()[0]
    corrected = sitk.ReadImage(str(study.reference_path(case.id)))
    study.save_draft(case.id, corrected)
    study.accept_corrected(case.id)
    done, _ = run(study)
    assert done["stages"]["finetune"]["iterations"] == shortened(4)
    assert done["stages"]["retrain"]["iterations"] == shortened(6)
    assert (study.root / STUDENT).read_bytes() != before
    assert case.id not in [item.id for item in study.review_queue()]

    # A changed setting starts anew.
    done, _ = run(study, iterations_retrain=5)
    assert done["stages"]["finetune"]["skipped"]
    assert done["stages"]["retrain"]["iterations"] == 5


def test_a_rejected_pseudo_label_stays_out_of_training(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    study = make_study(tmp_path / "study", cohort)
    run(study)
    rejected = study.unlabeled_cases()[0].id
    study.reject(rejected)
    _, events = run(study)
    started = [event for event in events if event["event"] == "started" and event["stage"] == "retrain"]
    assert started[0]["unlabeled"] == len(study.unlabeled_cases()) - 1


class StopAt:
    """Stops a stage at a step, as a cancel would."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.step = stage, step

    def __call__(self, event: dict[str, Any]) -> None:
        at = (event["event"], event["stage"], event.get("step"))
        if at == ("progress", self.stage, self.step) and "loss" in event:
            raise Cancelled("stopped by the test")


@pytest.mark.parametrize(("stage", "step"), [("finetune", 2), ("retrain", 3)])
def test_cut_off_anywhere_and_continued_is_bit_identical(
    tmp_path: Path,
    finished: Study,
    cohort: tuple[Path, Path],
    stage: str,
    step: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", 0.0)
    study = make_study(tmp_path / "study", cohort)
    with pytest.raises(Cancelled):
        api.run(study, on_event=StopAt(stage, step), **SETTINGS)
    done, _ = run(study)
    assert done["stages"][stage]["continued_at"] == step
    whole, cut = (load_file(folder / STUDENT) for folder in (finished.root, study.root))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_wish_to_stop_while_labeling_is_no_fault_of_the_case(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "study", cohort)
    real = pseudolabel.predict_volume

    def interrupted(*arguments: Any, **options: Any) -> Any:
        job = Job.running(study.root)
        assert job is not None
        job.folder.stop_file.touch()
        return real(*arguments, **options)

    monkeypatch.setattr(pseudolabel, "predict_volume", interrupted)
    events: list[dict[str, Any]] = []
    with pytest.raises(Cancelled):
        api.run(study, on_event=events.append, **SETTINGS)
    study.reload()
    assert [case.problem for case in study.cases.values() if case.problem] == []
    assert not any(event["event"] == "warning" and event.get("case") for event in events)
    assert not any(event["stage"] == "retrain" for event in events)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seed": 10**20}, "seed must be at most"),
        ({"pseudo_weight": float("nan")}, "must be a number"),
        ({"foundation": "vit_b"}, "not downloaded yet"),
    ],
)
def test_what_cannot_come_to_an_end_is_refused_before_there_is_a_run(
    tmp_path: Path,
    cohort: tuple[Path, Path],
    settings: dict[str, Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SFR_CHECKPOINTS", str(tmp_path / "nothing here"))
    study = make_study(tmp_path / "study", cohort)
    with pytest.raises(InputError, match=said):
        run(study, **settings)
    assert not list(study.runs_dir.glob("*"))


def test_online_pseudo_labels_and_self_training(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    study = make_study(tmp_path / "study", cohort)
    done, events = run(study, pseudo_labels="online")
    assert done["stages"]["retrain"]["iterations"] == 6
    assert any("pseudo_label" in event for event in events if event["event"] == "progress")
    done, events = run(study, ssl="self_training")
    assert done["stages"]["finetune"]["skipped"] and not done["stages"]["retrain"]["skipped"]
    rounds = [event for event in events if event.get("doing") == "pseudo-labels of the round"]
    assert len(rounds) == 2 * len(study.unlabeled_cases()), "rounds two and three label anew"


@pytest.mark.parametrize("ssl", ["supervised", "mean_teacher"])
def test_the_baseline_needs_no_foundation(tmp_path: Path, cohort: tuple[Path, Path], ssl: str) -> None:
    study = make_study(tmp_path / "study", cohort)
    done, _ = run(study, recipe="baseline", ssl=ssl)
    assert set(done["stages"]) == {"retrain", "predict"}
    assert not (study.root / "models" / "foundation").exists()
    assert (study.root / "models" / f"baseline-{ssl}" / "student.safetensors").is_file()


@pytest.mark.parametrize("preset", ["btcv", "uniform"])
def test_resampled_studies_come_back_on_the_files_grid(
    tmp_path: Path, cohort: tuple[Path, Path], preset: str
) -> None:
    study = make_study(tmp_path / "study", cohort)
    run(study, recipe="baseline", ssl="supervised", preset=preset, iterations_retrain=2)
    for case in study.unlabeled_cases() + study.test_cases():
        assert not study.case(case.id).problem
        result = study.result(case.id, "prediction")
        assert result is not None
        image = sitk.ReadImage(str(study.image_path(case.id)))
        assert sitk.ReadImage(str(result.label_path)).GetSize() == image.GetSize()
        assert sorted(one["index"] for one in result.slices) == list(range(len(result.slices)))
        assert len(result.slices) == image.GetSize()[result.extra["slice_axis"]]


def test_memory_that_runs_out_is_no_case_s_fault(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from SFRCore.stages import predict

    study = make_study(tmp_path / "study", cohort)
    run(study, recipe="baseline", iterations_retrain=1)
    for path in study.root.glob("predictions/*.json"):
        path.unlink()

    def full(*arguments: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(predict, "predict_by_student", full)
    with pytest.raises(OutOfMemory) as caught:
        api.run_stage(study, "predict", **(SETTINGS | {"recipe": "baseline"}))
    assert caught.value.exit_code == 4
    study.reload()
    assert not any(case.problem for case in study.cases.values())


@pytest.mark.parametrize("tuning", ["lora", "decoder"])
def test_other_tunings_of_a_checkpoint_file(tmp_path: Path, cohort: tuple[Path, Path], tuning: str) -> None:
    from SFRCore.foundation.checkpoints import build_foundation, save_foundation_checkpoint

    file = tmp_path / "mine.pth"
    save_foundation_checkpoint(build_foundation("tiny", classes=2, seed=1), file)
    study = make_study(tmp_path / "study", cohort)
    api.run_stage(study, "finetune", **(SETTINGS | {"foundation": str(file), "tuning": tuning}))
    done = api.run_stage(study, "pseudolabel", **(SETTINGS | {"foundation": str(file), "tuning": tuning}))
    assert done["stages"]["pseudolabel"]["cases"] == len(study.unlabeled_cases())


@pytest.mark.parametrize("model", [".", "models/sfr-mean_teacher"])
def test_predicting_a_single_file_equals_the_studys_prediction(
    tmp_path: Path, finished: Study, model: str
) -> None:
    case = finished.test_cases()[0]
    output = tmp_path / "out.nii.gz"
    numbers = api.predict_file(finished.root / model, finished.image_path(case.id), output, device="cpu")
    result = finished.result(case.id, "prediction")
    assert result is not None
    ours, studys = (sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (output, result.label_path))
    assert np.array_equal(ours, studys)
    assert numbers["expected_dice"] == pytest.approx(result.expected_dice)


def test_label_values_4_and_9_come_back_as_4_and_9_on_the_same_voxels(cohort: tuple[Path, Path]) -> None:
    image = sitk.ReadImage(str(sorted(cohort[0].iterdir())[2]))
    frame = Frame.of(image, stack_axis=1)
    truth = np.random.default_rng(0).integers(0, 3, frame.shape)
    probabilities = np.eye(3, dtype=np.float32)[truth].transpose(3, 0, 1, 2) * 0.7 + 0.1
    label, confidence = as_images(probabilities, [4, 9], frame)
    assert np.array_equal(frame.to_internal(label, label=True), np.array([0, 4, 9])[truth])
    assert label.GetDirection() == image.GetDirection()
    assert set(np.unique(sitk.GetArrayFromImage(confidence))) == {204}


def test_doubt_is_looked_for_around_the_foreground_and_absence_scores_zero(cohort: tuple[Path, Path]) -> None:
    frame = Frame.of(sitk.Image(20, 20, 10, sitk.sitkUInt8), stack_axis=2)
    probabilities = np.zeros((3, 20, 20, 10), np.float32)
    probabilities[0] = 1
    probabilities[:, 5:9, 5:9, 4:7] = np.array([0.1, 0.9, 0.0], np.float32)[:, None, None, None]
    probabilities[:, 5:9, 5:9, 6] = np.array([0.4, 0.6, 0.0], np.float32)[:, None, None]
    probabilities[:, 15:, 15:, 0] = np.array([0.5, 0.3, 0.2], np.float32)[:, None, None, None].squeeze(-1)
    numbers = describe(probabilities, [1, 2], frame, (1.0, 1.0, 2.0))
    assert numbers["doubtful_slice"] == 6, "slice 0 is as doubtful, but far from what was found"
    assert numbers["expected_dice_by_structure"]["2"] == 0 == numbers["expected_dice"]
    found = probabilities.argmax(0) == 1
    p = probabilities[1].astype(np.float64)
    assert numbers["expected_dice_by_structure"]["1"] == pytest.approx(
        2 * p[found].sum() / (p.sum() + found.sum())
    )
    assert numbers["volume_ml"]["1"] == pytest.approx(found.sum() * 2.0 / 1000)
    assert numbers["mean_confidence"] == pytest.approx(probabilities.max(0).mean())


def test_estimate_measures_every_stage_that_is_not_done(
    tmp_path: Path, finished: Study, cohort: tuple[Path, Path]
) -> None:
    found = api.estimate(make_study(tmp_path / "study", cohort), **SETTINGS)
    assert set(found["per_stage"]) == {"finetune", "pseudolabel", "retrain", "predict"}
    assert all(seconds > 0 for seconds in found["per_stage"].values())
    assert found["seconds"] == pytest.approx(sum(found["per_stage"].values()), rel=0.01)
    assert api.estimate(finished, **SETTINGS)["seconds"] == 0


def test_the_estimate_measures_every_phase_of_a_method(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from SFRCore.stages import estimate

    def measured(trainer: Any, device: Any, reporter: Any, steps: int = 3, begin: int = 0) -> float:
        return 10.0 if begin else 1.0

    monkeypatch.setattr(estimate, "measure", measured)
    study = make_study(tmp_path / "study", cohort)
    shared = SETTINGS | {"recipe": "baseline", "iterations_retrain": 12}
    shared.pop("foundation", None)
    half = shared | {"ssl": "bcp", "method_options": {"pretraining": 0.5}}
    assert api.estimate(study, **half)["per_stage"]["retrain"] == pytest.approx(6 * 1.0 + 6 * 10.0)
    rounds = shared | {"ssl": "self_training", "method_options": {"rounds": 3}}
    # 4 steps with 2 crops, then 8 with 4 crops at the same pace and two predictions of the unlabeled cases
    assert 4 + 16 < api.estimate(study, **rounds)["per_stage"]["retrain"] < 4 + 16 + 60


def test_a_run_of_days_asks_first(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from SFRCore.stages import estimate

    monkeypatch.setattr(estimate, "LONG_SECONDS", 0.001)
    monkeypatch.setattr(estimate, "SHORT", 1)
    study = make_study(tmp_path / "study", cohort)
    with pytest.raises(InputError, match="would take about") as caught:
        run(study)
    assert caught.value.code == "long_run"
    assert "GPU" in caught.value.hint
    assert not (study.root / "models" / "foundation").exists()


def test_only_a_short_run_of_small_networks_goes_without_an_estimate() -> None:
    from SFRCore.settings import Settings
    from SFRCore.stages.estimate import is_short

    sfr, baseline = ("finetune", "pseudolabel", "retrain", "predict"), ("retrain", "predict")
    tiny, full = Settings.of(foundation="tiny"), Settings.of(foundation="vit_b")
    assert is_short(tiny, sfr, (299, 10)) and not is_short(tiny, sfr, (10, 300))
    assert not is_short(tiny, sfr, (10, None)), "the preset's number is thousands"
    assert not is_short(full, sfr, (2, 2)) and is_short(full, baseline, (2, 2))


def test_what_is_missing_is_said_with_the_next_step(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    study = make_study(tmp_path / "study", cohort, labeled=0)
    with pytest.raises(InputError, match="No labeled case") as caught:
        run(study)
    assert caught.value.hint
    with pytest.raises(InputError, match="no student|No student"):
        api.run_stage(study, "predict", **SETTINGS)
    with pytest.raises(InputError, match="not tuned yet"):
        api.run_stage(study, "pseudolabel", **SETTINGS)
    with pytest.raises(InputError, match="neither a known name nor a file"):
        run(study, foundation="vit_x")
    with pytest.raises(InputError, match="no recipe 'sfrr'"):
        run(study, recipe="sfrr")


def test_predict_takes_another_student_only_where_none_was_named(finished: Study) -> None:
    kept = len(list(finished.runs_dir.iterdir()))
    for named in (
        {"ssl": "supervised"},
        {"recipe": "baseline"},
        {"recipe": "baseline", "ssl": "mean_teacher"},
    ):
        with pytest.raises(InputError, match="No student is trained yet for") as caught:
            api.run_stage(finished, "predict", device="cpu", **named)
        assert "sfr-mean_teacher" in caught.value.message
    assert len(list(finished.runs_dir.iterdir())) == kept
    assert api.run_stage(finished, "predict", device="cpu")["stages"]["predict"]["skipped"]
    student = finished.models_dir / "sfr-mean_teacher"
    other = student.rename(student.with_name("baseline-supervised"))
    try:
        done = api.run_stage(finished, "predict", device="cpu")["stages"]["predict"]
        assert done["skipped"], "the newest student is the same model under another name"
    finally:
        other.rename(student)


@pytest.mark.parametrize(
    ("stage", "options", "said"),
    [
        ("predict", {}, "No student is trained yet"),
        ("pseudolabel", {}, "not tuned yet"),
        ("run", {"ssl": "mean_teachr"}, "mean_teachr"),
        ("run", {"foundation": "vit_x"}, "vit_x"),
        ("run", {"student": "unet9"}, "unet9"),
        ("run", {"preset": "kidney"}, "kidney"),
        ("run", {"method_options": {"nonsense": 1}}, "nonsense"),
        ("run", {"patch": (15, 16, 16)}, "15"),
    ],
)
def test_wrong_options_leave_no_run_behind(
    tmp_path: Path, cohort: tuple[Path, Path], stage: str, options: dict[str, Any], said: str
) -> None:
    study = make_study(tmp_path / "study", cohort)
    with pytest.raises(InputError, match=said):
        if stage == "run":
            run(study, **options)
        else:
            api.run_stage(study, stage, **(SETTINGS | options))
    assert not study.runs_dir.exists()


def test_a_launched_run_that_is_refused_says_so_in_its_folder(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "study", cohort)
    folder = study.runs_dir / "20260101-000000-000abcd"
    folder.mkdir(parents=True)
    (folder / "launch.json").write_text("{}")
    monkeypatch.setenv("SFR_RUN", folder.name)
    with pytest.raises(InputError, match="No student"):
        api.run_stage(study, "predict", **SETTINGS)
    failure = Job(study.root, folder.name).error()
    assert failure is not None and "No student" in failure["message"] and failure["code"] == "input"


def test_a_study_without_unlabeled_volumes_is_told_what_to_do(
    tmp_path: Path, cohort: tuple[Path, Path]
) -> None:
    study = make_study(tmp_path / "a study", cohort)
    with study.transaction():
        for case in study.unlabeled_cases():
            case.role = "ignored"
    for recipe in ("sfr", "baseline"):
        with pytest.raises(InputError, match="no unlabeled volume left") as caught:
            run(study, recipe=recipe)
        assert "--recipe baseline --ssl supervised" in caught.value.hint
        assert f"'{study.root}'" in caught.value.hint
    assert not (study.root / "models").exists() and not study.runs_dir.exists()
    done, _ = run(study, recipe="baseline", ssl="supervised")
    assert done["stages"]["retrain"]["iterations"] == SETTINGS["iterations_retrain"]
