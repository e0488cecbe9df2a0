"""The training loop: the same path whether it is walked in one go or cut off and continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from SFRCore.errors import Cancelled, OutOfMemory
from SFRCore.runtime import loop
from SFRCore.runtime.checkpoints import Checkpoints
from SFRCore.runtime.devices import choose_device
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
    assert caught.value.hint


def test_progress_tells_step_loss_and_remaining_time(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", 0.0)
    told = Told()
    run(Tiny(), tmp_path, told)
    progress = [event for event in told.events if event["event"] == "progress"]
    assert [event["step"] for event in progress] == list(range(1, 13))
    assert progress[-1]["eta_s"] == 0
    assert all(event["total"] == 12 and event["loss"] >= 0 for event in progress)


def test_items_are_made_ahead_and_in_order() -> None:
    with loop.made_ahead(lambda k: k * k) as ahead:
        assert [ahead.get(k) for k in (0, 1, 2, 5, 6)] == [0, 1, 4, 25, 36]
