"""The training loop: the same path whether it is walked in one go or cut off and continued."""

from __future__ import annotations

import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from SFRCore.errors import Cancelled, OutOfMemory, SFRError
from SFRCore.runtime import loop
from SFRCore.runtime.checkpoints import Checkpoints
from SFRCore.runtime.devices import choose_device, explained_memory
from SFRCore.runtime.optimise import Optimisation, seed_step


class Tiny:
    """A trainer of one linear layer with dropout, so that what is random shows."""

    total = 12

    def __init__(self, fail_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.network = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
        )
        self.optimisation = Optimisation(
            choose_device("cpu"),
            self.network,
            torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9),
        )
        self.fail_at, self.saved_memory = fail_at, 0

    def step(self, k: int) -> dict[str, float]:
        if self.fail_at == k and not self.saved_memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seed_step(5, 1, k)
        loss = (self.network(torch.randn(4, 8)) - 1).square().mean()
        self.optimisation.descend(loss)
        return {"loss": loss.item()}

    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), **self.optimisation.state()}

    def restore(self, state: dict[str, Any], step: int) -> None:
        self.network.load_state_dict(state["network"])
        self.optimisation.restore(state)

    def save_memory(self) -> bool:
        self.saved_memory += 1
        return self.saved_memory == 1


class Told:
    """Hears the events; asks to stop after some steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.asked, self.stop_after = 0, stop_after

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})

    def check(self) -> None:
        if self.stop_after is not None and self.asked >= self.stop_after:
            raise Cancelled("stop")
        self.asked += 1


def weights(trainer: Tiny) -> list[torch.Tensor]:
    return [value.clone() for value in trainer.network.state_dict().values()]


def run(trainer: Tiny, folder: Path, told: Told | None = None, run_name: str = "a") -> int:
    checkpoints = Checkpoints(folder, folder / run_name, "tiny", "abc123")
    return loop.train(trainer, told or Told(), choose_device("cpu"), checkpoints, "testing")


def test_cancelled_and_continued_is_bit_identical(tmp_path: Path) -> None:
    whole = Tiny()
    run(whole, tmp_path / "whole")
    with pytest.raises(Cancelled):
        run(Tiny(), tmp_path / "cut", Told(stop_after=5))
    continued = Tiny()
    assert run(continued, tmp_path / "cut", run_name="b") == 5
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(continued), strict=True))


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole = Tiny()
    run(whole, tmp_path / "whole")
    with pytest.raises(Cancelled):
        run(Tiny(), tmp_path / "cut", Told(stop_after=7))
    found = Checkpoints(tmp_path / "cut", tmp_path / "cut" / "b", "tiny", "abc123").found()
    assert [step for step, _ in found] == [7, 6], "the last two are kept"
    found[0][1].write_bytes(found[0][1].read_bytes()[:300])
    continued = Tiny()
    assert run(continued, tmp_path / "cut", run_name="b") == 6
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(continued), strict=True))


def test_checkpoints_of_another_training_are_not_continued(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        run(Tiny(), tmp_path, Told(stop_after=5))
    other = Checkpoints(tmp_path, tmp_path / "b", "tiny", "fff000")
    assert other.load(torch.device("cpu")) is None


def test_memory_is_saved_first_and_only_then_the_job_ends(tmp_path: Path) -> None:
    told = Told()
    trainer = Tiny(fail_at=3)
    run(trainer, tmp_path / "saved", told)
    assert trainer.saved_memory == 1
    assert [event["code"] for event in told.events if event["event"] == "warning"] == ["memory"]
    hopeless = Tiny(fail_at=3)
    hopeless.saved_memory = 0
    hopeless.save_memory = lambda: False  # type: ignore[method-assign]
    with pytest.raises(OutOfMemory) as caught:
        run(hopeless, tmp_path / "hopeless")
    assert caught.value.exit_code == 4
    assert "--batch 1" in caught.value.hint
    with pytest.raises(OutOfMemory) as caught, explained_memory(choose_device("cpu"), "predicting a volume"):
        raise MemoryError
    assert "--batch" not in caught.value.hint, "a prediction has none"


def test_progress_tells_step_loss_and_remaining_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", 0.0)
    told = Told()
    run(Tiny(), tmp_path, told)
    progress = [event for event in told.events if event["event"] == "progress"]
    assert [event["step"] for event in progress] == list(range(1, 13))
    assert progress[-1]["eta_s"] == 0
    assert all(event["total"] == 12 and event["loss"] >= 0 for event in progress)


class Diverging(Tiny):
    """Its loss is not a number in the steps ``lost``."""

    def __init__(self, lost: range, total: int = 60) -> None:
        super().__init__()
        self.lost, self.total, self.steps = lost, total, 0

    def step(self, k: int) -> dict[str, float]:
        self.steps = k + 1
        return {"loss": math.nan if k in self.lost else 1.0}


def steps_kept(folder: Path) -> list[int]:
    return [step for step, _ in Checkpoints(folder, folder / "a", "tiny", "abc123").found()]


def test_a_training_that_diverges_is_given_up_and_its_checkpoints_are_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    trainer = Diverging(range(30, 60))
    with pytest.raises(SFRError, match="since step 31") as caught:
        run(trainer, tmp_path)
    assert caught.value.code == "diverged" and caught.value.hint
    assert trainer.steps == 50, "given up after 20 steps"
    assert steps_kept(tmp_path) == [30, 29]


def test_a_few_lost_steps_are_borne_but_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    run(Diverging(range(30, 49)), tmp_path / "whole")
    assert steps_kept(tmp_path / "whole") == [59, 58]
    with pytest.raises(Cancelled):
        run(Diverging(range(30, 49)), tmp_path / "cut", Told(stop_after=40))
    assert steps_kept(tmp_path / "cut") == [30, 29]
    with pytest.raises(SFRError, match="since step 11"):
        run(Diverging(range(10, 99), total=12), tmp_path / "short")


def some_checkpoint(folder: Path, model: str, identity: str, run_name: str) -> Checkpoints:
    checkpoints = Checkpoints(folder, folder / run_name, model, identity)
    checkpoints.save(3, {})
    return checkpoints


def test_only_checkpoints_of_the_same_training_go_once_its_model_is_written(tmp_path: Path) -> None:
    """A run with a forgotten option must not cost the one that was cut off."""
    old = some_checkpoint(tmp_path, "sfr-tiny", "fff000", "a")
    other = some_checkpoint(tmp_path, "sfr-tiny_other", "abc123", "a")
    round_1 = some_checkpoint(tmp_path, "sfr-tiny-round-1", "abc123", "a")
    own = some_checkpoint(tmp_path, "sfr-tiny", "abc123", "b")
    assert [step for step, _ in own.found()] == [3]
    own.clear()
    assert not own.found() and len(old.found()) == 1
    assert len(other.found()) == len(round_1.found()) == 1


def test_trainings_that_were_left_keep_two_checkpoints_in_all(tmp_path: Path) -> None:
    left = []
    for age, identity in ((30, "aaa"), (20, "bbb"), (10, "ccc")):
        left.append(some_checkpoint(tmp_path, "tiny", identity, identity))
        written = time.time() - age
        os.utime(left[-1].found()[0][1], (written, written))
    some_checkpoint(tmp_path, "tiny", "ddd", "d")
    assert [len(one.found()) for one in left] == [0, 1, 1]


def test_two_trainings_in_half_precision_scale_their_gradients_each_for_itself() -> None:
    half = replace(choose_device("cpu"), precision="fp16")
    layers = [torch.nn.Linear(1, 1, bias=False) for _ in range(2)]
    sam, student = (
        Optimisation(half, layer, torch.optim.SGD(layer.parameters(), lr=0.5)) for layer in layers
    )
    before = [layer.weight.item() for layer in layers]
    one = torch.ones(1, 1)
    sam.gradient(layers[0](one).sum())
    student.descend(layers[1](one).sum() * math.inf)
    sam.step()
    assert layers[1].weight.item() == before[1], "a step that overflowed is left out"
    assert layers[0].weight.item() == pytest.approx(before[0] - 0.5)
    scales = [optimisation.state()["scaler"]["scale"] for optimisation in (sam, student)]
    assert scales[1] == scales[0] / 2
    again = Optimisation(half, layers[1], torch.optim.SGD(layers[1].parameters(), lr=0.5))
    again.restore(student.state())
    assert again.state()["scaler"]["scale"] == scales[1]


def test_items_are_made_ahead_and_in_order() -> None:
    with loop.made_ahead(lambda k: k * k) as ahead:
        assert [ahead.get(k) for k in (0, 1, 2, 5, 6)] == [0, 1, 4, 25, 36]
