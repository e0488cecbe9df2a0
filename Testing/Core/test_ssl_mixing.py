"""What MagicNet, BCP, CauSSL, SS-Net, CPCL and SLC-Net have in common; SLC-Net's loss; real steps of each."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from SFRCore import api
from SFRCore.errors import InputError
from SFRCore.ssl import available_methods, get_method, magicnet
from SFRCore.ssl.contract import MethodContext, progress_at
from SFRCore.ssl.slc_net import block_dice_loss
from SFRCore.study import Study
from Testing.Core.small_student import (
    CLASSES,
    Loop,
    at,
    batch,
    batch_of,
    build,
    dice_by_hand,
    entropy_by_hand,
    method,
)

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "magicnet": ("magicnet", {"cube": (8, 8, 8)}),
    "bcp": ("bcp", {}),
    "caussl": ("caussl", {}),
    "caussl-cps": ("caussl", {"variant": "cps"}),
    "ss_net": ("ss_net", {}),
    "cpcl": ("cpcl", {}),
    "slc_net": ("slc_net", {}),
}
HEADS = {"caussl": 3, "caussl-cps": 2, "slc_net": 2}
TOTAL = 8


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magicnet, "LOCATION_WIDTH", 16)


def made(key: str, **more: Any) -> Any:
    name, options = METHODS[key]
    return method(name, **options, **more)


def test_shared_modules_are_no_methods() -> None:
    found = set(available_methods())
    assert {name for name, _ in METHODS.values()} <= found
    assert not found & {"cubes", "pasting", "tracing", "decoders", "dependence", "separation"}


@pytest.mark.parametrize("key", METHODS)
def test_half_the_crops_are_enough(key: str) -> None:
    name, options = METHODS[key]
    trained = get_method(name)(MethodContext(CLASSES, (16, 16, 16), build, options=options, batch=1)).train()
    trained.check_batch(TOTAL)
    phases = trained.phases(TOTAL)
    usual = [(2, 0), (2, 2)] if key == "bcp" else [(1, 1)]
    assert [(phase.labeled, phase.unlabeled) for phase in phases] == usual
    for number, phase in enumerate(phases):
        trained.begin(phase)
        loss = trained(
            batch(phase.labeled, phase.unlabeled), progress_at(phases, TOTAL, number * (TOTAL - 1))
        ).loss
        loss.backward()
        assert loss.isfinite() and any(p.grad is not None and p.grad.any() for p in trained.parameters())


@pytest.mark.parametrize("key", METHODS)
def test_gradients_reach_what_is_trained_and_nothing_else(key: str) -> None:
    trained = made(key, guided=True)
    Loop(trained, TOTAL).run(0, 3)
    progress = at(TOTAL - 1, TOTAL, trained)
    trained.begin(progress.phase)
    given = [p for group in trained.parameter_groups(progress.phase) for p in group["params"]]
    one = batch_of(trained, progress)
    step = trained(one, progress)
    assert len(step.unlabeled_logits) == HEADS.get(key, 1)
    assert all(z.shape == (len(one.unlabeled_images), CLASSES, 16, 16, 16) for z in step.unlabeled_logits)
    (step.loss + sum(z.mean() for z in step.unlabeled_logits)).backward()
    assert {id(p) for p in trained.student.parameters()} <= {id(p) for p in given}
    for name, parameter in trained.named_parameters():
        assert (parameter.grad is not None) == any(parameter is one for one in given), name
    assert all(not value.requires_grad for value in step.parts.values())


@pytest.mark.parametrize("key", METHODS)
def test_labels_of_padding_change_no_loss(key: str) -> None:
    values = []
    for label in (0, 2):
        trained = made(key, guided=True, **({} if key == "bcp" else {"consistency": 5.0}))
        Loop(trained, TOTAL).run(0, 2)
        progress = at(TOTAL - 1, TOTAL, trained)
        one = batch_of(trained, progress)
        one.labels[..., -2:] = label
        one.pseudo_labels[..., -2:] = label  # type: ignore[index]
        torch.manual_seed(0)
        values.append(float(trained(one, progress).loss.detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize(("key", "cut"), [("bcp", 1), *((key, 5) for key in METHODS)])
def test_a_training_cut_in_two_ends_with_the_same_weights(key: str, cut: int) -> None:
    whole = made(key)
    Loop(whole, TOTAL).run(0, TOTAL)
    part = Loop(made(key), TOTAL)
    part.run(0, cut)
    resumed = Loop(made(key), TOTAL)
    torch.manual_seed(99)
    for phase in resumed.trained.plan(TOTAL):
        resumed.enter(phase)
        if phase == part.phase:
            break
    resumed.trained.load_state_dict(part.trained.state_dict())
    resumed.optimizer.load_state_dict(part.optimizer.state_dict())
    resumed.run(cut, TOTAL)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.trained.state_dict()[name]), name


@pytest.mark.parametrize("key", METHODS)
def test_losses_stay_in_float32_and_gradients_arrive_under_autocast(key: str) -> None:
    trained = made(key, guided=True)
    Loop(trained, TOTAL).run(0, 2)
    progress = at(TOTAL - 1, TOTAL, trained)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = trained(batch_of(trained, progress), progress)
    step.loss.backward()
    assert step.loss.dtype == torch.float32 and torch.isfinite(step.loss)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.student.parameters())


@pytest.mark.parametrize("key", METHODS)
def test_initial_weights_depend_on_the_seed_only(key: str) -> None:
    before = torch.random.get_rng_state()
    first = made(key).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(123)
    second, other = made(key).state_dict(), made(key, seed=7).state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["student.head.weight"], other["student.head.weight"])


@pytest.mark.parametrize("key", ["magicnet", "cpcl"])
def test_the_teacher_is_the_student_after_the_first_step(key: str) -> None:
    trained = made(key)
    Loop(trained, TOTAL).run(0, 1)
    for old, new in zip(trained.teacher.parameters(), trained.student.parameters(), strict=True):
        assert torch.equal(old, new) and not old.requires_grad


def test_block_dice_is_the_mean_over_parts_that_are_not_padding() -> None:
    torch.manual_seed(1)
    p = torch.randn(2, CLASSES, 10, 8, 6).softmax(1)
    labels, valid = torch.randint(0, CLASSES, (2, 10, 8, 6)), torch.rand(2, 10, 8, 6) > 0.2
    valid[:, :3, :2] = False
    terms = []
    for xs in (slice(0, 3), slice(3, 6), slice(6, 9), slice(9, 10)):
        for ys in (slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)):
            if valid[:, xs, ys].any():
                part = (p[:, :, xs, ys], labels[:, xs, ys], valid[:, xs, ys])
                terms.append(dice_by_hand(*part, epsilon=1e-5))
    assert len(terms) == 15
    expected = float(torch.stack(terms).mean())
    assert float(block_dice_loss(p, labels, valid, 4)) == pytest.approx(expected, rel=1e-5)
    whole = dice_by_hand(p, labels, valid, epsilon=1e-5)
    assert float(block_dice_loss(p, labels, valid, 1)) == pytest.approx(float(whole), rel=1e-5)


def test_slc_net_has_the_loss_of_its_formula() -> None:
    trained = method("slc_net", dropout=False, consistency=2.0, blocks=2, passes=4)
    one = batch()
    torch.manual_seed(8)
    found = trained(one, at(15000, 30000, trained))
    parameters = [*trained.student.parameters(), *trained.second.parameters()]
    grads = torch.autograd.grad(found.loss, parameters, retain_graph=True)

    def noisy(images: Any) -> Any:
        return images + (torch.randn_like(images) * 0.1).clamp(-0.05, 0.05)

    torch.manual_seed(8)
    first = trained.student(one.images)
    second = trained.second(torch.cat([noisy(one.images), first.softmax(1)], 1))
    mean = torch.zeros(2, CLASSES, 16, 16, 16, dtype=torch.float64)
    for _ in range(2):
        passes = trained.student(noisy(torch.cat([one.unlabeled_images] * 2))).detach().double().softmax(1)
        mean += (passes[:2] + passes[2:]) / 4
    weights = (mean * (mean + 1e-6).log()).sum(1).exp()
    valid = one.unlabeled_valid
    chosen = second[2:].double().log_softmax(1).gather(1, first[2:].argmax(1)[:, None])[:, 0]
    crossed = entropy_by_hand(first[2:], second[2:].argmax(1), valid) - (chosen * weights)[valid].mean()
    expected = 2.0 * 2.718281828 ** (-5 / 4) * crossed
    for logits in (first, second):
        blocks = [
            dice_by_hand(
                logits[:2, :, x, y].softmax(1), one.labels[:, x, y], one.labeled_valid[:, x, y], epsilon=1e-5
            )
            for x in (slice(0, 8), slice(8, 16))
            for y in (slice(0, 8), slice(8, 16))
        ]
        entropy = entropy_by_hand(logits[:2], one.labels, one.labeled_valid)
        expected = expected + 0.5 * (entropy + torch.stack(blocks).mean())
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    wanted = torch.autograd.grad(expected, parameters)
    assert all(torch.allclose(a, b.float(), rtol=1e-3, atol=1e-5) for a, b in zip(grads, wanted, strict=True))
    assert trained.second.in_channels == 1 + CLASSES and not found.pseudo_average


@pytest.mark.parametrize(
    ("options", "said"),
    [({"blocks": 17}, "into 17 blocks"), ({"blocks": 0}, "into 0 blocks"), ({"passes": 3}, "passes=3"),
     ({"ramp": (40, 0, 10)}, "ramp above 0")],
)  # fmt: skip
def test_slc_net_refuses_what_it_cannot_do(options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        method("slc_net", **options)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("ema_decay", -3.0, "between 0 and 1"),
        ("consistency", -1.0, "below 0"),
        ("ramp", (40, 0, 10), "above 0"),
    ],
)
def test_every_method_refuses_a_teacher_and_a_weight_that_cannot_be(
    option: str, value: Any, said: str
) -> None:
    having = {name for name, kind in available_methods().items() if option in kind.known_options()}
    assert having >= {"mean_teacher", "magicnet", "cpcl"}
    for name in having:
        needed = {"cube": (8, 8, 8)} if name == "magicnet" else {}
        with pytest.raises(InputError, match=said):
            method(name, **{option: value}, **needed)


SETTINGS: dict[str, Any] = {
    "foundation": "tiny", "tuning": "decoder", "patch": (32, 16, 16), "iterations_finetune": 1,
    "iterations_retrain": 2, "device": "cpu", "precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, cohort: tuple[Path, Path]) -> Study:
    """A study with one label, and pseudo-labels of two cases by a foundation that learned nothing."""
    study = Study.create(tmp_path_factory.mktemp("mixing") / "study", structures={1: "Front", 2: "Back"})
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    study.add(images[0], label=labels[0])
    for image in images[1:3]:
        study.add(image)
    for stage in ("finetune", "pseudolabel"):
        api.run_stage(study, stage, **SETTINGS)
    return study


REAL = [(key, "baseline") for key in METHODS if key not in ("magicnet", "caussl-cps")]
GUIDED = [(key, "sfr") for key in ("bcp", "caussl")]
"""Where pseudo-labels act in a way of their own: one more pass, the mean of heads."""


@pytest.mark.parametrize(("key", "recipe"), REAL + GUIDED)
def test_two_steps_in_the_real_trainer(labelled: Study, key: str, recipe: str) -> None:
    name, options = METHODS[key]
    trained_really(labelled, recipe, name, SETTINGS | {"method_options": options})


def test_two_steps_of_magicnet_in_the_real_trainer(labelled: Study) -> None:
    settings = SETTINGS | {"patch": (64, 16, 16), "method_options": {"cube": (16, 16, 16)}}
    with pytest.raises(InputError, match="too small for V-Net with instance normalisation"):
        api.run_stage(labelled, "retrain", recipe="baseline", ssl="magicnet", **settings)
    settings["method_options"] = {"cube": (32, 16, 16)}
    trained_really(labelled, "baseline", "magicnet", settings)


def trained_really(study: Study, recipe: str, name: str, settings: dict[str, Any]) -> None:
    """Two steps, whose losses are told, leave a student whose weights are numbers."""
    events: list[dict[str, Any]] = []
    done = api.run_stage(study, "retrain", recipe=recipe, ssl=name, on_event=events.append, **settings)
    assert done["stages"]["retrain"]["iterations"] == 2
    weights = load_file(study.models_dir / f"{recipe}-{name}" / "student.safetensors")
    assert all(value.isfinite().all() for value in weights.values() if value.is_floating_point())
    steps = [event for event in events if event["event"] == "progress" and "loss" in event]
    assert len(steps) == 2 and all(isfinite(event["loss"]) for event in steps)
    assert ("pseudo_label" in steps[-1]) == (recipe == "sfr")
    told = json.loads((study.models_dir / f"{recipe}-{name}" / "student.json").read_text())
    kind = get_method(name)
    for option in kind.keeps:
        assert told["made_by"]["method_options"][option] == str(kind.known_options()[option]), (
            "not the preset's"
        )
