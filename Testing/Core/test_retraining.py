"""Re-training in the real trainer: what is cut off, continued, begun again, and what memory leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from SFRCore import api
from SFRCore.errors import Cancelled, InputError
from SFRCore.runtime import loop
from SFRCore.runtime.devices import choose_device
from SFRCore.runtime.files import write_json
from SFRCore.settings import Settings
from SFRCore.ssl.contract import Batch, Progress, Step, pseudo_label_loss
from SFRCore.ssl.mean_teacher import MeanTeacher
from SFRCore.stages import retrainer
from SFRCore.stages.companions import load_companions, save_companions, take_over
from SFRCore.stages.context import StageContext
from SFRCore.stages.lineage import Lineage, student_lineage
from SFRCore.stages.retrain import prepare
from SFRCore.stages.retrainer import Retrainer
from SFRCore.stages.survey import plan_for
from SFRCore.stages.training_set import training_volumes
from SFRCore.students import registry
from SFRCore.study import Study
from Testing.Core.pyramid_student import Pyramid
from Testing.Core.pyramid_student import method as made

SETTINGS: dict[str, Any] = {
    "recipe": "baseline",
    "patch": (16, 16, 16),
    "iterations_retrain": 4,
    "device": "cpu",
    "seed": 3,
}


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "student_types", lambda: {"vnet": Pyramid, "pyramid": Pyramid})


@pytest.fixture
def study(tmp_path: Path, cohort: tuple[Path, Path]) -> Study:
    """Two labeled cases, two without a label."""
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    made = Study.create(tmp_path / "study", structures={1: "Front", 2: "Back"})
    for index in range(4):
        made.add(images[index], label=labels[index] if index < 2 else None)
    return made


def retrain(study: Study, ssl: str, **changes: Any) -> dict[str, Any]:
    done: dict[str, Any] = api.run_stage(study, "retrain", ssl=ssl, **(SETTINGS | changes))
    return done["stages"]["retrain"]


def stop_at(step: int) -> Any:
    def listen(event: dict[str, Any]) -> None:
        if (event["event"], event.get("step")) == ("progress", step) and "loss" in event:
            raise Cancelled("stopped by the test")

    return listen


def test_a_student_that_is_finished_leaves_another_s_checkpoints(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", 0.0)
    with pytest.raises(Cancelled):
        retrain(study, "mean_teacher", on_event=stop_at(2))
    assert retrain(study, "supervised")["continued_at"] == 0
    assert retrain(study, "mean_teacher")["continued_at"] == 2
    assert not list(study.runs_dir.glob("*/checkpoints/*.pt"))


def test_the_preset_names_the_student_that_nobody_chose(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks = {name: type(name, (Pyramid,), {"name": name}) for name in ("vnet", "unet3d")}
    monkeypatch.setattr(registry, "student_types", lambda: networks)

    def trained(**changes: Any) -> Any:
        events: list[dict[str, Any]] = []
        done = retrain(study, "supervised", on_event=events.append, **changes)
        told = json.loads((study.models_dir / "baseline-supervised/student.json").read_text())
        planned = next(event["student"] for event in events if event["event"] == "plan")
        assert planned == told["student"] == told["made_by"]["settings"]["student"]
        return planned, done["skipped"]

    assert trained() == ("vnet", False) and trained(student="vnet") == ("vnet", True)
    assert trained(preset="brats") == ("unet3d", False)
    assert trained(preset="brats", student="unet3d") == ("unet3d", True)
    assert trained(preset="brats", student="vnet") == ("vnet", False)


def test_the_weight_of_pseudo_labels_falls_where_that_is_asked_for(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pseudo-labels made while training, by something that calls everything background."""
    weights: list[float] = []

    def weighed(step: Step, batch: Batch, weight: float = 1.0) -> Tensor:
        weights.append(weight)
        return pseudo_label_loss(step, batch, weight)

    monkeypatch.setattr(retrainer, "pseudo_label_loss", weighed)
    here = choose_device("cpu")

    def prepared(**changes: Any) -> tuple[StageContext, Lineage]:
        settings = Settings.of(**(SETTINGS | {"recipe": "sfr"} | changes))
        context = StageContext(study, settings, plan_for(study, settings, here), here, None)
        return context, student_lineage(context)

    def background() -> Any:
        return lambda crops: torch.zeros(crops[:, 0].shape, dtype=torch.int64)

    for changes in ({}, {"pseudo_weight": 0.5, "pseudo_schedule": "linear"}):
        context, lineage = prepared(**changes)
        trainer = prepare(context, lineage, *training_volumes(context, cached=False), background)
        for k in range(4):
            trainer.step(k)
        trainer.close()
    assert weights == [1.0] * 4 + [0.5, 0.375, 0.25, 0.125]
    plain, falling = prepared()[1], prepared(pseudo_schedule="linear")[1]
    assert prepared(pseudo_schedule="constant")[1].recipe == plain.recipe != falling.recipe
    assert "pseudo_schedule" not in plain.settings, "models that were made before stay valid"


def test_a_continued_training_has_its_parent_s_weights_though_its_first_phase_is_empty(study: Study) -> None:
    here = choose_device("cpu")
    settings = Settings.of(**(SETTINGS | {"ssl": "bcp"}))
    context = StageContext(study, settings, plan_for(study, settings, here), here, None)
    volumes = training_volumes(context)
    weights: dict[str, Tensor] = {}
    for _ in range(2):
        trainer = Retrainer(context, *volumes, total=4, guided=False, parent_weights=weights or None)
        assert trainer.phases[0] is not trainer.first is trainer.phases[1]
        before = {name: value.clone() for name, value in trainer.method.student.state_dict().items()}
        weights = weights or {
            name: value + 5.0 if value.is_floating_point() else value for name, value in before.items()
        }
        trainer.step(0)
        trainer.close()
    after = trainer.method.student.state_dict()
    for name, _ in trainer.method.student.named_parameters():
        assert torch.allclose(after[name], weights[name], atol=2.0), name


def test_a_batch_of_one_is_one_crop_of_each_kind_and_another_model(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    step = MeanTeacher.step

    def watched(self: MeanTeacher, batch: Batch, progress: Progress) -> Step:
        seen.append((len(batch.labeled_images), len(batch.unlabeled_images)))
        return step(self, batch, progress)

    def trained(**changes: Any) -> bool:
        done: bool = retrain(study, "mean_teacher", iterations_retrain=2, **changes)["skipped"]
        return done

    monkeypatch.setattr(MeanTeacher, "step", watched)
    assert not trained() and set(seen) == {(2, 2)}
    assert trained(batch=2), "the paper's, as without"
    model = json.loads((study.models_dir / "baseline-mean_teacher/student.json").read_text())["made_by"]
    assert "batch" not in model["settings"], "models that were made before stay valid"
    seen.clear()
    assert not trained(batch=1) and len(seen) >= 2 and set(seen) == {(1, 1)}
    assert trained(batch=1) and not trained()


def test_a_batch_that_a_method_cannot_use_is_refused_before_anything_is_made(study: Study) -> None:
    for recipe in ("baseline", "sfr"):
        with pytest.raises(InputError, match="The method ict mixes crops in groups of 2"):
            api.run(study, ssl="ict", batch=1, **(SETTINGS | {"recipe": recipe}))
    with pytest.raises(InputError, match="batch must be at least 1, not 0"):
        retrain(study, "ict", batch=0)
    assert not list(study.models_dir.glob("*/*")) and not list(study.runs_dir.glob("*"))


def test_new_labels_go_on_from_every_network_of_the_method(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssl, part = "cps", "partner.head.weight"
    retrain(study, ssl)
    folder = study.models_dir / f"baseline-{ssl}"
    trained = load_file(folder / "method.safetensors")
    assert part in trained and not any(name.startswith("student.") for name in trained)
    told = json.loads((folder / "student.json").read_text())["companions"]
    assert told["file"] == "method.safetensors" and told["parts"] == ["partner"]
    begun: list[dict[str, Any]] = []
    step = Retrainer.step

    def watched(self: Retrainer, k: int) -> dict[str, float]:
        if self.phase is None:
            self._enter(self.phases[0], anchor=None)
            begun.append({name: value.clone() for name, value in self.method.state_dict().items()})
        return step(self, k)

    monkeypatch.setattr(Retrainer, "step", watched)
    case = study.unlabeled_cases()[0].id
    study.set_role([case], "ignored")
    assert retrain(study, ssl)["iterations"] == 1
    assert all(torch.equal(begun[-1][name], value) for name, value in trained.items())

    (folder / "method.safetensors").write_bytes(b"damaged")
    study.set_role([case], "unlabeled")
    assert retrain(study, ssl)["iterations"] == 1
    fresh = begun[-1][part]
    assert not torch.equal(fresh, trained[part]) and load_file(folder / "method.safetensors")


def test_what_does_not_fit_stays_as_it_is(tmp_path: Path) -> None:
    """The method of another patch or option has other parts."""
    method, other = made("dtc"), made("dtc", seed=5)
    told = save_companions(other, tmp_path)
    write_json(tmp_path / "student.json", {"companions": told})
    saved = load_companions(tmp_path)
    wrong = {"distance_head.bias": torch.zeros(7), "gone.weight": torch.zeros(3)}
    assert take_over(method, saved | wrong) == ["distance_head.weight"]
    assert torch.equal(method.distance_head.weight, other.distance_head.weight)
    assert save_companions(made("supervised"), tmp_path) is None and load_companions(tmp_path) == {}
    assert not (tmp_path / "method.safetensors").exists()


class Large(Pyramid):
    """A student whose activations do not fit where they are kept."""

    def encode(self, images: Tensor) -> list[Tensor]:
        if torch.is_grad_enabled() and not self.checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().encode(images)


def test_every_round_of_self_training_saves_memory_once_it_ran_out(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "student_types", lambda: {"vnet": Large})
    events: list[dict[str, Any]] = []
    assert retrain(study, "self_training", on_event=events.append)["iterations"] == 4
    told = [event["code"] for event in events if (event["event"], event["stage"]) == ("warning", "retrain")]
    assert told == ["memory"]


@pytest.mark.parametrize("faithful", [False, True])
def test_padding_counts_as_in_the_reference_if_it_is_asked_for(
    study: Study, monkeypatch: pytest.MonkeyPatch, faithful: bool
) -> None:
    batches: list[Batch] = []
    step = MeanTeacher.step

    def watched(self: MeanTeacher, batch: Batch, progress: Progress) -> Step:
        batches.append(batch)
        return step(self, batch, progress)

    monkeypatch.setattr(MeanTeacher, "step", watched)
    retrain(study, "mean_teacher", faithful=faithful, iterations_retrain=1)
    for valid in (batches[-1].labeled_valid, batches[-1].unlabeled_valid):
        assert bool(valid[..., 0].any()) == faithful, "12 slices in a patch of 16"
        assert valid[..., 8].all()
    assert not batches[-1].labels[..., 0].any()
