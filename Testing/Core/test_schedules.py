"""Ramps, learning rates and the averaged teacher, against the numbers of the released code."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from SFRCore.ssl.contract import MethodContext, Phase, Progress, phase_lengths, progress_at
from SFRCore.ssl.ema import make_teacher, perturb, update_ema
from SFRCore.ssl.schedules import Ramp, decay, gaussian_rampup, learning_rate
from SFRCore.stages.finetuner import FineTuner


@pytest.mark.parametrize(
    ("step", "weight"), [(0, 0.00067), (1500, 0.0060), (3000, 0.0287), (4500, 0.0732), (5999, 0.0997)]
)
def test_ramp_has_the_released_values(step: int, weight: float) -> None:
    assert Ramp()(step, 6000) == pytest.approx(weight, abs=5e-5)


@pytest.mark.parametrize(("schedule", "factors"), [("constant", (1, 1, 1)), ("linear", (1, 0.5, 1 / 6000))])
def test_the_pseudo_label_weight_stays_or_falls_to_nothing(schedule: str, factors: tuple[float, ...]) -> None:
    """1 - k/K at k = 0, K/2 and K - 1, of a phase where a method has several."""
    late = Phase("second", fraction=0.5)
    context = MethodContext(2, (16, 16, 16), lambda: None, pseudo_weight=0.4, pseudo_schedule=schedule)  # type: ignore[arg-type]
    for step, factor in zip((0, 3000, 5999), factors, strict=True):
        assert decay(schedule, step, 6000) == pytest.approx(factor)  # type: ignore[arg-type]
        at = Progress(6000 + step, 12000, late, step, 6000)
        assert context.pseudo_weight_at(at) == pytest.approx(0.4 * factor)
    assert MethodContext(2, (16, 16, 16), lambda: None).pseudo_schedule == "constant"  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'cosine'"):
        decay("cosine", 0, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ramp", [Ramp(), Ramp(0.1, 200, 350, 70000), Ramp(0.2, 40, 300, 30000), Ramp(1.0, 40, 150, 15000)]
)
def test_ramp_equals_the_released_formula_at_its_length(ramp: Ramp) -> None:
    for step in range(0, ramp.reference, 37):
        t = min(step // ramp.every, ramp.length)
        released = ramp.maximum * math.exp(-5 * (1 - t / ramp.length) ** 2)
        assert ramp(step, ramp.reference) == pytest.approx(released, rel=1e-12)


@given(st.integers(1, 40), st.floats(0, 1, exclude_max=True))
def test_ramp_depends_on_the_fraction_only(factor: int, fraction: float) -> None:
    step = int(fraction * 600)
    assert Ramp()(step * factor, 600 * factor) == Ramp()(step, 600)


def test_short_trainings_switch_consistency_on() -> None:
    assert Ramp()(499, 500) == pytest.approx(Ramp()(5999, 6000))
    assert Ramp(0.2, 40, 300, 30000)(200, 500) == pytest.approx(0.2)


def test_gaussian_rampup_is_clipped() -> None:
    assert gaussian_rampup(0, 40) == pytest.approx(math.exp(-5))
    assert gaussian_rampup(-3, 40) == gaussian_rampup(0, 40)
    assert gaussian_rampup(41, 40) == 1.0
    assert gaussian_rampup(0, 0) == 1.0


def test_learning_rate_by_steps() -> None:
    rates = {step: learning_rate("step", step, 6000) for step in (0, 2499, 2500, 4999, 5000, 5999)}
    assert rates == pytest.approx({0: 1e-2, 2499: 1e-2, 2500: 1e-3, 4999: 1e-3, 5000: 1e-4, 5999: 1e-4})
    every = Fraction(12000, 30000)
    assert learning_rate("step", 11999, 30000, every=every) == 0.01
    assert learning_rate("step", 12000, 30000, every=every) == pytest.approx(0.001)
    assert learning_rate("step", 208, 500) == 0.01
    assert learning_rate("step", 209, 500) == pytest.approx(0.001)


def test_learning_rate_poly_and_constant() -> None:
    assert learning_rate("poly", 0, 8000) == 0.01
    assert learning_rate("poly", 4000, 8000) == pytest.approx(0.01 * 0.5**0.9)
    assert 0 < learning_rate("poly", 7999, 8000) < 1e-5
    assert learning_rate("constant", 7999, 8000, base=0.1) == 0.1
    with pytest.raises(ValueError, match="cosine"):
        learning_rate("cosine", 0, 10)  # type: ignore[arg-type]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(1, 5000))
def test_phases_share_all_steps(fractions: list[float], total: int) -> None:
    phases = [Phase(str(index), fraction) for index, fraction in enumerate(fractions)]
    lengths = phase_lengths(phases, total)
    assert sum(lengths) == total and min(lengths) >= 0
    for length, fraction in zip(lengths, fractions, strict=True):
        assert abs(length - total * fraction / sum(fractions)) <= 1


def test_progress_within_phases() -> None:
    phases = [Phase("copy-paste", 2000 / 17000, labeled=4), Phase("self-training", 15000 / 17000)]
    assert phase_lengths(phases, 17000) == [2000, 15000]
    seen = [progress_at(phases, 17, step) for step in range(17)]
    assert [one.phase.name for one in seen] == ["copy-paste"] * 2 + ["self-training"] * 15
    assert [one.step_in_phase for one in seen] == [0, 1, *range(15)]
    assert {one.phase_total for one in seen[2:]} == {15}
    for outside in (-1, 17):
        with pytest.raises(ValueError, match="not one of"):
            progress_at(phases, 17, outside)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4))


def test_teacher_is_the_student_after_step_0_and_takes_no_gradient() -> None:
    student = network()
    teacher = make_teacher(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.normal_()
    update_ema(teacher, student, 0)
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(old, new)
        assert not old.requires_grad and new.requires_grad
        assert old.data_ptr() != new.data_ptr()


def test_teacher_follows_the_released_average_of_parameters_only() -> None:
    student = network()
    teacher = make_teacher(student)
    expected = teacher[0].weight.double().clone()
    for step in range(200):
        with torch.no_grad():
            student[0].weight.normal_(generator=torch.Generator().manual_seed(step))
        update_ema(teacher, student, step)
        kept = min(1 - 1 / (step + 1), 0.99)
        expected = kept * expected + (1 - kept) * student[0].weight.double()
    assert (teacher[0].weight.double() - expected).abs().max() < 1e-6
    student[1].running_mean.fill_(7.0)
    update_ema(teacher, student, 500)
    assert teacher[1].running_mean.abs().max() == 0


def test_noise_is_clipped_and_leaves_the_images() -> None:
    images = torch.zeros(2, 1, 20, 20, 20)
    noise = perturb(images)
    assert images.abs().max() == 0
    assert noise.abs().max() == pytest.approx(0.2)
    assert noise.std() == pytest.approx(0.0959, abs=2e-3)
    assert perturb(images, limit=0.05).abs().max() == pytest.approx(0.05)


def test_fine_tuning_falls_from_the_full_rate_as_the_released_loop() -> None:
    total, rate, iteration = 50, 1e-3, 0
    tuner = SimpleNamespace(rate=1e-3, total=total, tuning="lora")
    while iteration < total:
        assert FineTuner.rate_at(tuner, iteration) == pytest.approx(rate)  # type: ignore[arg-type]
        iteration += 1  # the released loop counts, then sets the rate of the iteration after
        rate = 1e-3 * (1 - iteration / total) ** 0.9
