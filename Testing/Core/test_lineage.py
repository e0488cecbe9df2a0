"""What a model is made by and from: plans kept, labels of test cases forgotten, cases that were left out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from SFRCore import api
from SFRCore.errors import Cancelled, InputError
from SFRCore.foundation.checkpoints import build_foundation, save_foundation_checkpoint
from SFRCore.foundation.spec import SPECS
from SFRCore.foundation.tuning import apply_tuning
from SFRCore.planning import Plan
from SFRCore.runtime import loop
from SFRCore.runtime.devices import Device, choose_device
from SFRCore.settings import Settings
from SFRCore.stages import estimate as estimation
from SFRCore.stages import finetune, lineage, survey
from SFRCore.stages.aslseg_models import adaptation_lineage
from SFRCore.stages.context import StageContext
from SFRCore.stages.finetuner import FineTuner
from SFRCore.stages.lineage import foundation_identity, foundation_lineage, shortened, student_lineage
from SFRCore.stages.predict import student_for
from SFRCore.students import vnet
from SFRCore.study import Study

SETTINGS: dict[str, Any] = {
    "patch": (16, 16, 16),
    "iterations_finetune": 2,
    "iterations_retrain": 2,
    "device": "cpu",
    "seed": 3,
}
POCKET = {
    "dim": 24, "depth": 2, "heads": 2, "global_blocks": (1,), "canvas": 64, "out_chans": 16, "mlp_dim": 16,
    "iou_hidden": 16,
}  # fmt: skip


@pytest.fixture(autouse=True)
def pocket_networks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same foundation and student with a few hundred times fewer weights, on one thread."""
    monkeypatch.setitem(SPECS, "tiny", replace(SPECS["tiny"], **POCKET))
    monkeypatch.setattr(vnet, "_CHANNELS", (2, 4, 4, 8, 8))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def study(tmp_path: Path, cohort: tuple[Path, Path]) -> Study:
    """case_01 and case_02 labeled, case_03 and case_04 unlabeled, case_05 for testing."""
    study = Study.create(tmp_path / "study", structures={1: "Front", 2: "Back"})
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    for index, (image, label) in enumerate(zip(images[:5], labels[:5], strict=True)):
        if index < 2:
            study.add(image, label=label)
        else:
            study.add(image, reference=label, role="test" if index == 4 else "unlabeled")
    return study


def run(study: Study, **changes: Any) -> dict[str, Any]:
    return api.run(study, **(SETTINGS | changes))["stages"]


def made_by(study: Study, model: str = "foundation/foundation") -> dict[str, Any]:
    return json.loads((study.models_dir / f"{model}.json").read_text())["made_by"]


STUDENT = "sfr-mean_teacher/student"


class Away:
    """Takes a case's image away, as a drive that is not plugged in."""

    def __init__(self, study: Study, case: str) -> None:
        self.image = study.image_path(case)
        self.elsewhere = self.image.with_name("elsewhere")

    def __enter__(self) -> None:
        self.image.rename(self.elsewhere)

    def __exit__(self, *_: object) -> None:
        self.elsewhere.rename(self.image)


@pytest.fixture
def own_images(study: Study) -> Study:
    """The study with its images inside, where a test may take them away."""
    study.pack()
    return study


def plans(study: Study) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in study.models_dir.glob("plan*.json")}


def device(gpu: bool) -> Device:
    class Elsewhere(Device):
        is_gpu = gpu

    made = choose_device("cpu", "auto")
    return Elsewhere(**{name: getattr(made, name) for name in made.__dataclass_fields__})


# The plan


def test_each_choice_keeps_a_plan_of_its_own(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    run(study)
    (first,) = plans(study).items()
    api.run_stage(study, "finetune", **(SETTINGS | {"patch": (16, 16, 32)}))
    kept = plans(study)
    assert len(kept) == 2 and kept[first[0]] == first[1]

    def never(*_: Any) -> Plan:
        raise AssertionError("surveyed again, with today's memory and labels")

    monkeypatch.setattr(survey, "_survey", never)
    done = run(study)
    assert not done["finetune"]["skipped"], "the other patch had taken its place"
    assert done["retrain"]["skipped"], "its foundation is tuned again to the same"


def test_only_a_training_keeps_a_plan(study: Study) -> None:
    api.estimate(study, **SETTINGS)
    assert plans(study) == {}
    api.run_stage(study, "retrain", **(SETTINGS | {"recipe": "baseline", "ssl": "supervised"}))
    kept = plans(study)
    assert len(kept) == 1
    api.run_stage(study, "predict", recipe="baseline", ssl="supervised", device="cpu")
    assert plans(study) == kept


def test_the_plan_of_a_gpu_goes_on_without_one(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.of(iterations_retrain=7)
    server, laptop = device(gpu=True), device(gpu=False)
    made = survey.plan_for(study, settings, server)
    assert made.iterations_finetune == 6000 and made.iterations_retrain == 7
    assert survey.plan_for(study, settings, laptop).iterations_finetune == 1000, "no training has begun"
    made = survey.plan_for(study, settings, server)
    survey.keep_plan(study, settings)
    assert survey.plan_for(study, settings, laptop) == made
    kept = survey.plan_for(study, Settings.of(), laptop)
    assert kept.iterations_retrain == 6000, "one run's wish is not part of the plan"


def test_what_tuning_adds_begins_as_the_seed_says(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def noted(model: Any, method: str, *, seed: int) -> Any:
        seeds.append(seed)
        return apply_tuning(model, method, seed=seed)

    monkeypatch.setattr(finetune, "apply_tuning", noted)
    for seed in (1, 2):
        api.run_stage(study, "finetune", **(SETTINGS | {"tuning": "lora", "seed": seed}))
    assert seeds == [1, 2]


def test_the_tuning_of_a_gpu_goes_on_without_one(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPECS, "vit_b", SPECS["tiny"])
    settings = Settings.of(**(SETTINGS | {"foundation": "tiny"}))
    here = choose_device("cpu", "auto")
    context = StageContext(study, settings, survey.plan_for(study, settings, here), here, None)
    assert foundation_lineage(context).tuning == "decoder"
    api.run_stage(study, "finetune", **(SETTINGS | {"tuning": "lora"}))
    assert foundation_lineage(context).tuning == "lora"
    wish = replace(context, settings=settings.with_(tuning="full"))
    assert foundation_lineage(wish).tuning == "full"
    other = replace(context, settings=settings.with_(foundation="vit_b"))
    assert foundation_lineage(other).tuning == "decoder", "another foundation"
    assert api.run_stage(study, "finetune", **SETTINGS)["stages"]["finetune"]["skipped"]


def test_a_batch_of_one_tunes_on_one_canvas_at_a_time(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    canvases = FineTuner.canvases

    def counted(tuner: FineTuner, k: int) -> Any:
        made = canvases(tuner, k)
        drawn.append(len(made[0]))
        return made

    monkeypatch.setattr(FineTuner, "canvases", counted)

    def tuned(**changes: Any) -> bool:
        done: bool = api.run_stage(study, "finetune", **(SETTINGS | changes))["stages"]["finetune"]["skipped"]
        return done

    assert not tuned(batch=1) and drawn and set(drawn) == {1}
    drawn.clear()
    assert not tuned() and drawn and set(drawn) == {2}
    assert tuned(batch=2) and made_by(study)["settings"]["batch"] == 2
    settings, here = Settings.of(**(SETTINGS | {"batch": 1})), choose_device("cpu", "auto")
    context = StageContext(study, settings, survey.plan_for(study, settings, here), here, None)
    assert context.plan.finetune_batch == 1 and student_lineage(context).settings["batch"] == 1
    plain = replace(context, settings=settings.with_(batch=None))
    plain.plan = survey.plan_for(study, plain.settings, here)
    assert "batch" not in student_lineage(plain).settings
    aslseg = replace(context, settings=settings.with_(recipe="aslseg"))
    assert adaptation_lineage(aslseg).settings["batch"] == 1


def test_the_newest_student_is_the_one_trained_last(study: Study) -> None:
    made = [
        study.models_dir / name / "student.json"
        for name in ("baseline-ua_mt", "sfr-mean_teacher", "aslseg-cct")
    ]
    for age, path in zip((10, 30, 20), made, strict=True):
        path.parent.mkdir(parents=True)
        path.write_text("{}")
        os.utime(path, (1e9 - age, 1e9 - age))
    here = choose_device("cpu", "auto")
    settings = Settings.of(**SETTINGS)
    context = StageContext(study, settings, survey.plan_for(study, settings, here), here, None)
    assert student_for(context, newest=True) == made[0].parent
    assert student_for(context) == made[1].parent


# Labels of test cases


def test_weights_that_saw_a_label_are_not_gone_on_from_once_it_is_for_testing(study: Study) -> None:
    run(study)
    for model in ("foundation/foundation", STUDENT):
        assert made_by(study, model)["seen"] == ["case_01", "case_02"]
    study.set_role(["case_02"], "unlabeled")
    done = run(study)
    for stage, model in (("finetune", "foundation/foundation"), ("retrain", STUDENT)):
        assert done[stage]["iterations"] == shortened(2)
        assert made_by(study, model)["parent"]
        assert made_by(study, model)["seen"] == ["case_01", "case_02"], "by way of the first weights"
    study.set_role(["case_02"], "test")
    with pytest.raises(InputError, match="learned from what is a test case now"):
        api.run_stage(study, "pseudolabel", **SETTINGS)
    with pytest.raises(InputError, match="learned from what is a test case now"):
        api.run_stage(study, "retrain", **SETTINGS)
    done = run(study)  # the labels are those of the run before: only what was seen tells
    for stage, model in (("finetune", "foundation/foundation"), ("retrain", STUDENT)):
        assert done[stage]["iterations"] == 2
        assert made_by(study, model)["parent"] is None
        assert made_by(study, model)["seen"] == ["case_01"]
    assert all(stage["skipped"] for stage in run(study).values())


def test_a_student_has_seen_what_its_foundation_saw(study: Study) -> None:
    for stage in ("finetune", "pseudolabel"):
        api.run_stage(study, stage, **SETTINGS)
    study.set_role(["case_02"], "ignored")
    api.run_stage(study, "retrain", **SETTINGS)
    assert made_by(study, STUDENT)["labeled"] == ["case_01"]
    assert made_by(study, STUDENT)["seen"] == ["case_01", "case_02"]


def test_a_result_by_a_model_that_knows_the_label_is_not_scored(study: Study) -> None:
    """A case that becomes a test case while the job that learned from it still runs."""
    run(study)
    study.set_role(["case_02"], "test")
    missing: dict[str, str] = {}
    api.evaluate(study, on_problem=lambda case, error: missing.update({case: error.code}))
    assert missing == {"case_02": "no_result"}
    api.run_stage(study, "predict", device="cpu")
    result = study.result("case_02", "prediction")
    assert result is not None and result.made_by["seen"] is True
    told: dict[str, str] = {}
    scores = api.evaluate(study, on_problem=lambda case, error: told.update({case: error.code}))
    assert set(scores["cases"]) == {"case_05"} and told == {"case_02": "seen"}
    run(study)
    assert set(api.evaluate(study)["cases"]) == {"case_02", "case_05"}


def test_the_hounsfield_range_forgets_the_label_of_a_test_case(tmp_path: Path) -> None:
    study = Study.create(tmp_path / "study", structures={1: "Organ"})
    noise = np.random.default_rng(0).normal(size=(10, 12, 12))
    mask = np.zeros(noise.shape, np.uint8)
    mask[3:7, 3:9, 3:9] = 1
    for name, hounsfield in (("a", 50), ("b", 400)):
        image = sitk.GetImageFromArray((noise + np.where(mask, hounsfield, -1000)).astype(np.float32))
        study.add(image, label=sitk.GetImageFromArray(mask), id=name)
    settings, here = Settings.of(patch=(16, 16, 16)), device(gpu=False)

    def highest() -> float:
        made = survey.plan_for(study, settings, here).preprocessing.normalisation
        survey.keep_plan(study, settings)
        assert made.kind == "ct_percentile" and made.high is not None
        return made.high

    both = highest()
    study.set_role("b", "ignored")
    assert both > 390 and highest() == both, "the plan that a training began with is kept"
    study.set_role("b", "test")
    assert survey.saved_plan(study, settings) is None
    assert highest() < 60
    kept = survey.saved_plan(study, settings)
    assert kept is not None and kept.preprocessing.normalisation.high == highest()


def test_a_result_of_an_image_that_was_replaced_is_not_scored(own_images: Study) -> None:
    study = own_images
    study.set_role(["case_04"], "test")
    for case in study.test_cases():
        label = sitk.ReadImage(str(study.reference_path(case.id)), sitk.sitkUInt8)
        made = {"model": "m", "student": "sfr-mean_teacher", "image": lineage.image_hash(case)}
        numbers = {
            "mean_confidence": 0.9, "expected_dice": 0.9, "expected_dice_by_structure": {}, "volume_ml": {},
            "slices": [], "doubtful_slice": 0, "made_by": made,
        }  # fmt: skip
        study.write_result(case.id, "prediction", label, label * 0 + 200, numbers)
    assert set(api.evaluate(study)["cases"]) == {"case_04", "case_05"}
    image = study.image_path("case_04")
    sitk.WriteImage(sitk.ReadImage(str(image)) + 1, str(image))
    told: dict[str, Any] = {}
    scores = api.evaluate(study, on_problem=told.__setitem__)
    assert set(scores["cases"]) == {"case_05"} and "of another image" in told["case_04"].message
    with Away(study, "case_05"):
        assert set(api.evaluate(study)["cases"]) == {"case_05"}, "scoring needs no image"


def test_scores_are_of_one_student(own_images: Study) -> None:
    study = own_images
    study.set_role(["case_04"], "test")
    first, second = ({"recipe": "baseline", "ssl": name} for name in ("supervised", "mean_teacher"))

    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "case" and event["id"] == "case_04":
            raise Cancelled("stopped by the test")

    run(study, **first)
    with pytest.raises(Cancelled):
        run(study, on_event=stop, **second)
    for asked, student, mine, others in (
        ({}, "baseline-mean_teacher", "case_04", "case_05"),
        (first, "baseline-supervised", "case_05", "case_04"),
    ):
        told: dict[str, str] = {}
        scores = api.evaluate(
            study, on_problem=lambda case, error, told=told: told.update({case: error.code}), **asked
        )
        assert (
            scores["student"] == student and set(scores["cases"]) == {mine} and told == {others: "no_result"}
        )
    with pytest.raises(InputError, match="prediction by the student sfr-ua_mt yet") as caught:
        api.evaluate(study, ssl="ua_mt")
    assert "--ssl ua_mt" in caught.value.hint
    with pytest.raises(InputError, match="not by a student"):
        api.evaluate(study, kind="pseudo_label", ssl="ua_mt")

    with Away(study, "case_05"):
        run(study, **second)
    assert study.result("case_05", "prediction") is None, "what another student said of it is gone"
    assert set(api.evaluate(study)["cases"]) == {"case_04"}
    assert study.label_path("case_01").is_file()


def test_an_empty_label_is_said_once_in_a_run(study: Study) -> None:
    label = sitk.ReadImage(str(study.label_path("case_01")))
    study.accept_label("case_01", label * 0)
    events: list[dict[str, Any]] = []
    api.run(study, on_event=events.append, **SETTINGS)
    said = [e["message"] for e in events if e["event"] == "warning" and e["code"] == "blank_label"]
    assert len(said) == 1 and "case_01" in said[0]


def test_weights_of_one_save_and_the_words_of_another_are_trained_anew(study: Study) -> None:
    """As a process leaves them that is killed between the two files while it continues a training."""
    run(study)
    models = ("foundation/foundation", STUDENT)
    before = {model: (study.models_dir / f"{model}.json").read_bytes() for model in models}
    study.accept("case_03")
    assert run(study)["retrain"]["iterations"] == shortened(2)
    for model, text in before.items():
        (study.models_dir / f"{model}.json").write_bytes(text)
    with pytest.raises(InputError, match="does not belong to"):
        api.run_stage(study, "predict", device="cpu")
    events: list[dict[str, Any]] = []
    done = api.run(study, on_event=events.append, **SETTINGS)["stages"]
    said = [e["message"] for e in events if e["event"] == "warning" and "made anew" in e["message"]]
    assert len(said) == 2
    for stage, model in zip(("finetune", "retrain"), models, strict=True):
        assert done[stage]["iterations"] == 2 and made_by(study, model)["parent"] is None


# What was left out


def test_a_label_that_was_away_is_learned_once_it_is_back(own_images: Study) -> None:
    study = own_images
    with Away(study, "case_02"):
        run(study)
        for model in ("foundation/foundation", STUDENT):
            assert made_by(study, model)["seen"] == ["case_01"]
        again = run(study)
        assert again["finetune"]["skipped"] and again["retrain"]["skipped"], "still away"
        assert api.estimate(study, **SETTINGS)["per_stage"]["finetune"] == 0
    done = run(study)
    for stage, model in (("finetune", "foundation/foundation"), ("retrain", STUDENT)):
        assert done[stage]["iterations"] == shortened(2)
        assert made_by(study, model)["seen"] == ["case_01", "case_02"]
    with Away(study, "case_02"):
        assert run(study)["finetune"]["skipped"], "it has been learned"


def test_an_unlabeled_case_that_was_away_is_learned_from_once_it_is_back(own_images: Study) -> None:
    study = own_images
    with Away(study, "case_04"):
        run(study)
        assert made_by(study, STUDENT)["unlabeled"] == ["case_03"]
        assert run(study)["retrain"]["skipped"]
    done = run(study)
    assert done["finetune"]["skipped"] and done["pseudolabel"]["cases"] == 1
    assert done["retrain"]["iterations"] == shortened(2)
    assert made_by(study, STUDENT)["unlabeled"] == ["case_03", "case_04"]
    study.reject("case_04")
    assert not run(study)["retrain"]["skipped"]
    assert made_by(study, STUDENT)["unlabeled"] == ["case_03"]


def test_an_image_that_was_replaced_is_learned_and_predicted_anew(own_images: Study) -> None:
    study = own_images
    run(study)
    for case in ("case_01", "case_03", "case_05"):  # copied with another time: the same image
        os.utime(study.image_path(case), (1e9, 1e9))
    assert all(stage["skipped"] for stage in run(study).values())

    def replace(case: str, rows: int) -> list[str]:
        image = sitk.ReadImage(str(study.image_path(case)))[:, :rows, :]
        sitk.WriteImage(image, str(study.image_path(case)))
        events: list[dict[str, Any]] = []
        done = api.run(study, on_event=events.append, **SETTINGS)["stages"]
        assert [event["case"] for event in events if event.get("code") == "image"] == [case]
        return [stage for stage, said in done.items() if not said["skipped"]]

    assert replace("case_05", 16) == ["predict"]
    result = study.result("case_05", "prediction")
    assert result is not None and sitk.ReadImage(str(result.label_path)).GetSize()[1] == 16
    assert replace("case_03", 16) == ["pseudolabel", "retrain", "predict"]
    assert made_by(study, STUDENT)["iterations"] == shortened(2)
    assert replace("case_01", 20) == ["finetune", "pseudolabel", "retrain", "predict"]
    assert made_by(study)["iterations"] == shortened(2)


def test_models_and_results_of_an_earlier_version_count_as_of_these_images(study: Study) -> None:
    run(study)
    for path in (*study.models_dir.glob("*/*.json"), *study.root.glob("p*/case_*.json")):
        content = json.loads(path.read_text())
        if content["made_by"].pop("images", None) or content["made_by"].pop("image"):
            path.write_text(json.dumps(content))
    assert all(stage["skipped"] for stage in run(study).values())


# Pseudo-labels and their foundation


def test_pseudo_labels_of_an_earlier_foundation_are_not_learned_from(study: Study) -> None:
    run(study)
    study.accept_label("case_03", sitk.ReadImage(str(study.reference_path("case_03"))), "expert")
    api.run_stage(study, "finetune", **SETTINGS)
    assert study.result("case_04", "pseudo_label") is not None
    with pytest.raises(InputError, match="No unlabeled case has a pseudo-label") as caught:
        api.run_stage(study, "retrain", **SETTINGS)
    assert "pseudolabel" in caught.value.hint
    assert api.estimate(study, **SETTINGS)["per_stage"]["pseudolabel"] > 0
    api.run_stage(study, "pseudolabel", **SETTINGS)
    assert not api.run_stage(study, "retrain", **SETTINGS)["stages"]["retrain"]["skipped"]


def test_another_foundation_starts_the_student_anew(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"iterations_retrain": 10}
    run(study, **long)
    monkeypatch.setattr(estimation, "_phases_seconds", lambda trainer, _: float(trainer.total))
    changes = {"tuning": "decoder", "input": "small"}
    told = api.estimate(study, **(SETTINGS | long | changes))["per_stage"]["retrain"]
    done = run(study, **long, **changes)
    assert done["finetune"]["iterations"] == 2 and done["retrain"]["iterations"] == told == 10
    assert made_by(study, STUDENT)["parent"] is None
    study.accept("case_03")
    assert run(study, **long, **changes)["retrain"]["iterations"] == shortened(10), "other labels only"


def test_a_label_that_was_taken_back_is_unlearned(study: Study) -> None:
    """Weights cannot forget it: foundation and student start anew, once."""
    run(study)
    study.accept("case_03")
    run(study)
    assert "case_03" in made_by(study, STUDENT)["seen"] and made_by(study, STUDENT)["parent"]
    study.reject("case_03")
    done = run(study)
    assert done["finetune"]["iterations"] == done["retrain"]["iterations"] == 2
    for model in ("foundation/foundation", STUDENT):
        assert made_by(study, model)["parent"] is None and "case_03" not in made_by(study, model)["seen"]
    again = run(study)
    assert again["finetune"]["skipped"] and again["retrain"]["skipped"]


def test_the_estimate_is_of_the_steps_that_are_left(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long training that was cut off at its end is not refused as a long one."""
    long = {"iterations_finetune": 10, "iterations_retrain": 10}
    monkeypatch.setattr(loop, "EVENT_SECONDS", 0.0)
    monkeypatch.setattr(estimation, "measure", lambda *_, **__: 1.0)
    monkeypatch.setattr(estimation, "_phases_seconds", lambda trainer, _: float(trainer.total))

    def cut_at(stage: str) -> dict[str, float]:
        def stop(event: dict[str, Any]) -> None:
            if (event["event"], event["stage"], event.get("step")) == (
                "progress",
                stage,
                7,
            ) and "loss" in event:
                raise Cancelled("stopped by the test")

        with pytest.raises(Cancelled):
            api.run(study, on_event=stop, **(SETTINGS | long))
        found: dict[str, float] = api.estimate(study, **(SETTINGS | long))["per_stage"]
        return found

    assert cut_at("finetune")["finetune"] == 3
    left = cut_at("retrain")
    assert left["finetune" if "finetune" in left else "pseudolabel"] == 0 and left["retrain"] == 3


def test_a_run_given_again_has_the_foundation_of_the_one_before(study: Study, tmp_path: Path) -> None:
    checkpoint = tmp_path / "own.pth"
    save_foundation_checkpoint(build_foundation("tiny", classes=4, canvas=64, seed=9), checkpoint)
    given = {key: value for key, value in SETTINGS.items() if key != "foundation"}
    api.run(study, foundation=str(checkpoint), **given)
    api.run(study, **(given | {"recipe": "baseline"}))
    again = api.run(study, **given)["stages"]
    assert all(done["skipped"] for name, done in again.items() if name in ("finetune", "retrain")), again
    checkpoint.unlink()
    with pytest.raises(InputError, match="own.pth, is not there any more") as caught:
        api.run(study, **given)
    assert "--foundation" in caught.value.hint
    api.run_stage(study, "predict", **given)
    api.run(study, **(given | {"recipe": "baseline"}))
    with pytest.raises(InputError, match="own.pth, is not there any more"):
        api.run(study, **given)
    assert api.run(study, foundation="tiny", **given)["stages"]["finetune"]["skipped"] is False


def test_a_foundation_of_other_settings_is_not_mixed_with_these(study: Study) -> None:
    api.run_stage(study, "finetune", **SETTINGS)
    for online in (False, True):
        with pytest.raises(InputError, match=r"tuned with other settings \(patch\)") as caught:
            stage = "retrain" if online else "pseudolabel"
            changes = {"patch": (32, 16, 16), "pseudo_labels": "online" if online else "cached"}
            api.run_stage(study, stage, **(SETTINGS | changes))
        assert "finetune" in caught.value.hint
    assert not (study.root / "pseudo_labels" / "case_03.nrrd").exists()
    done = api.run_stage(study, "pseudolabel", **SETTINGS)
    assert done["stages"]["pseudolabel"]["cases"] == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": "sfr_plus", "pseudo_labels": "online"}, "sfr_plus makes no use of --pseudo-labels"),
        ({"recipe": "baseline", "pseudo_weight": 0.5}, "baseline makes no use of --pseudo-weight"),
        (
            {"recipe": "aslseg", "pseudo_weight": 2.0, "pseudo_labels": "online"},
            "--pseudo-labels and --pseudo-w",
        ),
        ({"recipe": "baseline", "pseudo_schedule": "linear"}, "baseline makes no use of --pseudo-schedule"),
        ({"pseudo_schedule": "cosine"}, "'cosine' is not a value of pseudo schedule"),
        ({"pseudo_weight": 0.0}, "sfr is about pseudo-labels, and their weight is 0"),
    ],
)
def test_options_without_effect_are_refused(study: Study, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        run(study, **changes)
    assert caught.value.hint and not list(study.models_dir.glob("*/*"))


# The user's own file


def test_a_checkpoint_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    identity = lineage.file_identity
    monkeypatch.setattr(lineage, "file_identity", lambda path: hashed.append(path) or identity(path))
    file = tmp_path / "mine.pth"
    file.write_bytes(b"some weights")
    first = foundation_identity(str(file))
    assert [foundation_identity(str(file)) for _ in range(5)] == [first] * 5
    assert len(hashed) == 1
    file.write_bytes(b"other weights")
    assert foundation_identity(str(file)) != first
    assert len(hashed) == 2
