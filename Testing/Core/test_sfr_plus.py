"""SFR+: which crops are confident, who learns from them, and whole runs that are cut off and continued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from SFRCore import api
from SFRCore.errors import Cancelled, InputError, SFRError
from SFRCore.foundation.spec import SPECS
from SFRCore.recipes import get_recipe
from SFRCore.report import write_report
from SFRCore.report.history import read_history
from SFRCore.runtime import loop
from SFRCore.ssl.contract import Batch, Step, pseudo_label_loss
from SFRCore.stages import retrainer, selection
from SFRCore.stages.finetuner import FineTuner
from SFRCore.stages.lineage import shortened
from SFRCore.stages.selection import SelectiveTrainer, crop_confidence
from SFRCore.students import vnet
from SFRCore.study import Study

SETTINGS: dict[str, Any] = {
    "recipe": "sfr_plus",
    "patch": (16, 16, 16),
    "iterations_finetune": 2,
    "iterations_retrain": 6,
    "device": "cpu",
    "seed": 3,
}
POCKET = {
    "dim": 24, "depth": 2, "heads": 2, "global_blocks": (1,), "canvas": 64, "out_chans": 16, "mlp_dim": 16,
    "iou_hidden": 16,
}  # fmt: skip
STUDENT = "models/sfr_plus-mean_teacher/student.safetensors"


@pytest.fixture(autouse=True)
def pocket_networks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same networks with a few hundred times fewer weights, on one thread."""
    monkeypatch.setitem(SPECS, "tiny", replace(SPECS["tiny"], **POCKET))
    monkeypatch.setattr(vnet, "_CHANNELS", (2, 4, 4, 8, 8))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_study(root: Path, cohort: tuple[Path, Path]) -> Study:
    """Two labeled cases, two without a label, one for testing."""
    study = Study.create(root, structures={1: "Front", 2: "Back"})
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    for index, (image, label) in enumerate(zip(images[:5], labels[:5], strict=True)):
        if index < 2:
            study.add(image, label=label)
        else:
            study.add(image, reference=label, role="test" if index == 4 else "unlabeled")
    return study


@pytest.fixture
def study(tmp_path: Path, cohort: tuple[Path, Path]) -> Study:
    return make_study(tmp_path / "study", cohort)


def run(study: Study, *, options: dict[str, Any] | None = None, **changes: Any) -> tuple[Any, list[Any]]:
    events: list[dict[str, Any]] = []
    given = SETTINGS | {"recipe_options": options or {}} | changes
    return api.run(study, on_event=events.append, **given)["stages"], events


# Confidence


def probabilities(classes: int = 3, shape: tuple[int, ...] = (2, 4, 5, 6)) -> torch.Tensor:
    drawn = torch.randn(shape[0], classes, *shape[1:], generator=torch.Generator().manual_seed(1))
    return drawn.softmax(1)


def test_confidence_is_the_mean_of_the_largest_probability_over_real_voxels() -> None:
    p = probabilities()
    valid = torch.ones(2, 4, 5, 6, dtype=torch.bool)
    torch.testing.assert_close(crop_confidence(p, valid), p.amax(1).mean((1, 2, 3)))
    valid[0, 2:] = False
    torch.testing.assert_close(crop_confidence(p, valid)[0], p[0, :, :2].amax(0).mean())


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 5), sure=st.floats(0.0, 1.0), region=st.sampled_from(["all", "foreground"]))
def test_confidence_lies_between_chance_and_one(classes: int, sure: float, region: str) -> None:
    p = (1 - sure) * probabilities(classes) + sure * torch.eye(classes)[0].view(1, -1, 1, 1, 1)
    found = crop_confidence(p, torch.ones(2, 4, 5, 6, dtype=torch.bool), region)
    assert ((found >= 1 / classes - 1e-5) & (found <= 1 + 1e-5)).all()


def test_the_region_leaves_sure_background_out() -> None:
    p = torch.zeros(1, 2, 16, 16, 16)
    p[:, 0] = 1.0
    p[:, :, 7:9, 7:9, 7:9] = torch.tensor([0.45, 0.55]).view(1, 2, 1, 1, 1)
    valid = torch.ones(1, 16, 16, 16, dtype=torch.bool)
    everywhere, near = (float(crop_confidence(p, valid, region)) for region in ("all", "foreground"))
    assert everywhere > 0.985 > near
    assert near == pytest.approx((8 * 0.55 + (6**3 - 8)) / 6**3)
    p[:] = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1, 1)
    assert float(crop_confidence(p, valid, "foreground")) == 1, "nothing found: everything is looked at"


def test_the_papers_threshold_is_the_default() -> None:
    recipe = get_recipe("sfr_plus")
    assert recipe.options["threshold"] == 0.985 and recipe.options["region"] == "all"
    assert recipe.options["warm_up"] * 6000 == pytest.approx(1000)
    assert set(recipe.limits) <= set(recipe.options)


# Who learns from what


class Spy:
    """Counts what SAM is updated on and what the pseudo-label loss is taken on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.updates: list[int] = []
        self.guided: list[int] = []
        gradient, guiding = SelectiveTrainer._foundation_gradient, SelectiveTrainer.guiding

        def counted(trainer: SelectiveTrainer, step: int, batch: Any, labels: Any) -> None:
            self.updates.append(step)
            gradient(trainer, step, batch, labels)

        def watched(trainer: SelectiveTrainer, batch: Any, progress: Any) -> Any:
            used = guiding(trainer, batch, progress)
            self.guided.append(int(used.unlabeled_valid.flatten(1).any(1).sum()))
            return used

        monkeypatch.setattr(SelectiveTrainer, "_foundation_gradient", counted)
        monkeypatch.setattr(SelectiveTrainer, "guiding", watched)


def test_confident_crops_update_sam_and_the_others_get_its_labels(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    done, events = run(study, options={"threshold": 0.0, "warm_up": 0.34})
    assert set(done) == {"finetune", "selective", "predict"}
    assert spy.updates == [3, 4, 5], "after the warm-up, on every step"
    assert spy.guided == [2, 2, 2, 0, 0, 0]
    steps = [event for event in events if event["event"] == "progress" and event["stage"] == "selective"]
    assert "foundation_loss" in steps[-1] and steps[-1]["confident_rate"] == 1
    told = {event["step"]: event["confident_fraction"] for event in events if event["event"] == "metric"}
    assert told == {4: 1.0, 5: 1.0, 6: 1.0}


def test_uncertain_crops_leave_sam_alone(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    monkeypatch.setattr(selection, "INACTIVE", 4)
    _, events = run(study, options={"threshold": 1.0, "warm_up": 0.0})
    assert spy.updates == [] and spy.guided == [2] * 6
    told = [event["confident_fraction"] for event in events if event["event"] == "metric"]
    assert told == [0.0] * 6
    warned = [event for event in events if event["event"] == "warning" and event["code"] == "threshold"]
    assert len(warned) == 1 and "no crop" in warned[0]["message"] and "threshold=" in warned[0]["hint"]


def test_crops_that_are_confident_now_and_then_are_a_choice(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where each batch is of one kind, as with a single unlabeled crop."""
    confidence = iter([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    monkeypatch.setattr(selection, "INACTIVE", 3)
    monkeypatch.setattr(
        selection, "crop_confidence", lambda judged, *_: torch.full((len(judged),), next(confidence))
    )
    _, events = run(study, options={"threshold": 0.5, "warm_up": 0.0})
    assert not [event for event in events if event["event"] == "warning" and event["code"] == "threshold"]


def test_sam_that_is_no_number_any_more_ends_the_training(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest of its NaN would be background, in every pseudo-label from then on."""
    monkeypatch.setattr(loop, "DIVERGED_STEPS", 2)
    gradient = SelectiveTrainer._foundation_gradient
    tuned: list[int] = []

    def broken(trainer: SelectiveTrainer, step: int, batch: Batch, labels: Any) -> None:
        gradient(trainer, step, batch, labels)
        trainer.foundation_loss = float("nan") if step > 1 else trainer.foundation_loss
        monkeypatch.setattr(trainer.tuner.optimisation, "step", lambda: tuned.append(step))

    monkeypatch.setattr(SelectiveTrainer, "_foundation_gradient", broken)
    with pytest.raises(SFRError, match="no longer a number since step 3") as caught:
        run(study, options={"threshold": 0.0, "warm_up": 0.0})
    assert caught.value.code == "diverged" and tuned == [0, 1]
    assert not (study.root / STUDENT).exists()


def test_of_a_mixed_batch_one_crop_goes_to_sam_and_the_other_learns_from_it(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[Batch] = []
    students: list[torch.Tensor] = []
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    pulls: list[torch.Tensor] = []
    gradient, canvas = SelectiveTrainer._foundation_gradient, FineTuner.canvas
    within = False

    def judged(trainer: SelectiveTrainer, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        batches.append(batch)
        students.append(torch.randint(0, 3, batch.unlabeled_valid.shape))
        return torch.tensor([0.99, 0.5]), students[-1]

    def updated(trainer: SelectiveTrainer, step: int, batch: Batch, labels: torch.Tensor) -> None:
        nonlocal within
        within = True
        gradient(trainer, step, batch, labels)
        within = False

    def drawn(tuner: FineTuner, rng: Any, image: np.ndarray, label: np.ndarray, valid: np.ndarray) -> Any:
        if within:
            shown.append((image, label))
        return canvas(tuner, rng, image, label, valid)

    def guided(step: Step, batch: Batch, weight: float = 1.0) -> torch.Tensor:
        loss = pseudo_label_loss(step, batch, weight)
        pulls.append(torch.autograd.grad(loss, step.unlabeled_logits[0], retain_graph=True)[0])
        return loss

    monkeypatch.setattr(SelectiveTrainer, "_judged", judged)
    monkeypatch.setattr(SelectiveTrainer, "_foundation_gradient", updated)
    monkeypatch.setattr(FineTuner, "canvas", drawn)
    monkeypatch.setattr(retrainer, "pseudo_label_loss", guided)
    run(study, options={"warm_up": 0.0}, iterations_retrain=2)
    assert len(batches) == len(pulls) == 2 and len(shown) == 2 * 3
    for batch, labels, pull, crops in zip(batches, students, pulls, (shown[:3], shown[3:]), strict=True):
        images = [*batch.labeled_images, batch.unlabeled_images[0]]
        for (image, label), source, target in zip(crops, images, [*batch.labels, labels[0]], strict=True):
            assert np.array_equal(image, source[0]) and np.array_equal(label, target)
        assert not pull[0].any() and pull[1].any()


def test_rounds_and_kept_crops(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    run(
        study,
        options={"threshold": 0.0, "warm_up": 0.0, "period": 3, "updates": 1, "keep_confident": True},
    )
    assert spy.updates == [2, 5] and spy.guided == [2] * 6


def test_sam_changes_the_student_and_not_the_study_s_foundation(
    tmp_path: Path, cohort: tuple[Path, Path]
) -> None:
    weights = []
    for name, rate in (("slow", 1e-8), ("fast", 0.05)):
        study = make_study(tmp_path / name, cohort)
        api.run_stage(study, "finetune", **(SETTINGS | {"recipe": "sfr"}))
        before = (study.models_dir / "foundation" / "foundation.safetensors").read_bytes()
        options = {"threshold": 0.0, "warm_up": 0.0, "foundation_rate": rate, "keep_confident": True}
        run(study, options=options)
        assert (study.models_dir / "foundation" / "foundation.safetensors").read_bytes() == before
        weights.append(load_file(study.root / STUDENT))
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("judge", ["teacher", "foundation"])
def test_other_judges(study: Study, judge: str) -> None:
    done, _ = run(study, options={"judge": judge, "threshold": 0.4, "warm_up": 0.0, "region": "foreground"})
    assert done["selective"]["iterations"] == 6


@pytest.mark.parametrize(("ssl", "tuning"), [("cps", "lora"), ("self_training", "decoder")])
def test_other_methods_and_tunings(study: Study, ssl: str, tuning: str) -> None:
    changes = {"ssl": ssl, "tuning": tuning, "input": "shuffled"}
    done, _ = run(study, options={"threshold": 0.3, "warm_up": 0.0}, **changes)
    assert (study.models_dir / f"sfr_plus-{ssl}" / "student.json").is_file()
    again, _ = run(study, options={"threshold": 0.3, "warm_up": 0.0}, **changes)
    assert all(stage["skipped"] for stage in again.values())


# Cut off, continued, done


class StopAt:
    """Stops at a step of the selective training, as a cancel would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: dict[str, Any]) -> None:
        at = (event["event"], event["stage"], event.get("step"))
        if at == ("progress", "selective", self.step) and "loss" in event:
            raise Cancelled("stopped by the test")


@pytest.mark.parametrize(("ssl", "step"), [("mean_teacher", 1), ("self_training", 4)])
def test_cut_off_and_continued_is_bit_identical(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, ssl: str, step: int
) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", 0.0)
    options = {"threshold": 0.3, "warm_up": 0.17, "foundation_rate": 1e-2, "keep_confident": True}
    whole, cut = (make_study(tmp_path / name, cohort) for name in ("whole", "cut"))
    run(whole, options=options, ssl=ssl)
    with pytest.raises(Cancelled):
        given = SETTINGS | {"recipe_options": options, "ssl": ssl}
        api.run(cut, on_event=StopAt(step), **given)
    done, _ = run(cut, options=options, ssl=ssl)
    assert done["selective"]["continued_at"] == step
    student = STUDENT.replace("mean_teacher", ssl)
    one, two = (load_file(study.root / student) for study in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not list(cut.runs_dir.glob("*/checkpoints/*.pt"))


def test_sam_is_not_tuned_in_rounds_that_do_not_ask_it(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", 0.0)
    _, events = run(study, options={"threshold": 0.0, "warm_up": 0.0}, ssl="self_training")
    steps = [event for event in events if event["event"] == "progress" and event["stage"] == "selective"]
    tuned = {event["step"] for event in steps if "foundation_loss" in event}
    assert tuned == {1, 2}, "three rounds of two steps; the later two learn from the student before"


def test_what_is_done_is_skipped_and_new_labels_continue_it(study: Study) -> None:
    run(study)
    assert all(stage["skipped"] for stage in run(study)[0].values())
    assert api.estimate(study, **SETTINGS)["seconds"] == 0
    other = {"threshold": 0.5}
    done, _ = run(study, options=other)
    assert done["finetune"]["skipped"] and done["selective"]["iterations"] == 6
    case = study.unlabeled_cases()[0].id
    study.accept(case)
    assert len(study.labeled_cases()) == 3 and study.case(case).label_origin == "accepted"
    done, _ = run(study, options=other)
    assert done["finetune"]["iterations"] == shortened(2)
    assert done["selective"]["iterations"] == shortened(6)
    made_by = json.loads((study.root / STUDENT).with_suffix(".json").read_text())["made_by"]
    assert case in made_by["labeled"] and made_by["parent"]


def test_the_estimate_counts_sam_s_updates(study: Study) -> None:
    found = api.estimate(study, **SETTINGS)
    assert set(found["per_stage"]) == {"finetune", "selective", "predict"}
    never = api.estimate(study, **(SETTINGS | {"recipe_options": {"warm_up": 1.0}}))
    assert found["per_stage"]["selective"] > 0 < never["per_stage"]["selective"]


def test_the_report_shows_the_confident_fraction(study: Study, tmp_path: Path) -> None:
    run(study, options={"threshold": 0.0, "warm_up": 0.5})
    stages = {stage.stage: stage for stage in read_history(study.root).stages}
    assert stages["selective"].metrics["confident_fraction"] == [(4, 1.0), (5, 1.0), (6, 1.0)]
    _, curves = stages["selective"].curves()
    assert "confident_rate" not in curves and "foundation_loss" in curves
    page = write_report(study, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Crops that the student was confident of" in page
    assert "Foundation model and student trained together" in page


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.9}, "no option 'tau'"),
        ({"threshold": 1.5}, "cannot use threshold=1.5"),
        ({"threshold": "high"}, "cannot use threshold=high"),
        ({"threshold": True}, "cannot use threshold=True"),
        ({"judge": "nobody"}, "cannot use judge=nobody"),
        ({"period": 2.5}, "cannot use period=2.5"),
        ({"foundation_rate": float("nan")}, "cannot use foundation_rate=nan"),
        ({"keep_confident": 1}, "cannot use keep_confident=1"),
    ],
)
def test_rubbish_is_refused_in_one_sentence_before_anything_is_made(
    study: Study, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run(study, options=options)
    assert caught.value.hint and "\n" not in caught.value.message
    assert not (study.models_dir / "foundation").exists()


def test_what_the_recipe_cannot_do_is_refused(study: Study) -> None:
    with pytest.raises(InputError, match="no option 'threshold'") as caught:
        run(study, recipe="sfr", options={"threshold": 0.9})
    assert "none" in caught.value.hint
    with pytest.raises(InputError, match="about pseudo-labels"):
        run(study, pseudo_weight=0.0)
    with pytest.raises(InputError, match="does not train its student by the stage retrain alone"):
        api.run_stage(study, "retrain", **SETTINGS)
    with pytest.raises(InputError, match="no teacher that could judge"):
        run(study, ssl="cps", options={"judge": "teacher"})
