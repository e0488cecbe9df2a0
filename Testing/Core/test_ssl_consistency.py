"""What every consistency method owes the loop: masks, gradients, ramps, teachers, resuming, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from SFRCore.errors import InputError
from SFRCore.ssl import available_methods, get_method
from SFRCore.ssl.contract import Batch, Method, MethodContext, pseudo_label_loss
from SFRCore.students import make_student
from SFRCore.students.student import Student
from Testing.Core.pyramid_student import CLASSES, PATCH, Loop, Pyramid, at, batch, build, method, stirred

ACMT = ("acmt", "acmt_mu", "acmt_serr", "acmt_perr")
TAUGHT = (*ACMT, "ua_mt", "ict")
NAMES = (*TAUGHT, "cps", "urpc", "cct", "dtc")
LARGEST = {"dtc": 1.0}
LOOSE = {"acmt": {"threshold": (0.5, 0.5)}, "acmt_mu": {"threshold": (0.5, 0.5)}}
ALL = [(name, guided) for name in NAMES for guided in (False, True)]


def loss_of(trained: Method, one: Batch, step: int = 9, total: int = 10) -> Tensor:
    """The whole loss at one step, with the pseudo-label term where there is one."""
    torch.manual_seed(7)
    done = trained(one, at(step, total, trained))
    loss: Tensor = done.loss
    return loss + pseudo_label_loss(done, one) if trained.context.with_pseudo_labels else loss


def test_all_are_found_and_their_helpers_are_no_methods() -> None:
    assert set(NAMES) <= set(available_methods())
    helpers = {"ambiguity", "confident_learning", "consistency", "passes", "signed_distance"}
    assert not helpers & set(available_methods())


@pytest.mark.parametrize("name", NAMES)
def test_every_method_learns(name: str) -> None:
    trained = method(name, guided=name == "ict")
    supervised = Loop(trained, 40).run(0, 40)
    assert sum(supervised[-3:]) < 0.9 * sum(supervised[:3])
    held = batch(seed=999)
    trained.student.eval()
    with torch.no_grad():
        found = trained.student(held.images).argmax(1)
    truth = torch.cat([held.labels, held.pseudo_labels])  # type: ignore[list-item]
    assert (found == truth).float().mean() > 0.45


@pytest.mark.parametrize("name", [*NAMES, "mean_teacher"])
def test_one_crop_of_each_kind_is_enough_but_where_pairs_are_mixed(name: str) -> None:
    trained = get_method(name)(MethodContext(CLASSES, PATCH, build, batch=1)).train()
    if name == "ict":
        with pytest.raises(
            InputError, match="groups of 2, so it cannot be trained with a batch of 1"
        ) as caught:
            trained.check_batch(10)
        assert "multiple of 2" in caught.value.hint
        return
    trained.check_batch(10)
    assert [(phase.labeled, phase.unlabeled) for phase in trained.phases(10)] == [(1, 1)]
    loss = loss_of(trained, batch(1, 1))
    loss.backward()
    assert loss.isfinite() and any(p.grad is not None and p.grad.any() for p in trained.student.parameters())


@pytest.mark.parametrize(("name", "guided"), ALL)
def test_gradients_reach_what_is_trained_and_nothing_else(name: str, guided: bool) -> None:
    trained = method(name, guided=guided)
    phase = trained.plan(10)[0]
    trained.begin(phase)
    given = [p for group in trained.parameter_groups(phase) for p in group["params"]]
    assert {id(p) for p in trained.student.parameters()} <= {id(p) for p in given}
    loss_of(trained, batch(phase.labeled, phase.unlabeled)).backward()
    assert all(p.grad is not None for p in given)
    others = [p for p in trained.parameters() if id(p) not in {id(q) for q in given}]
    assert all(p.grad is None and not p.requires_grad for p in others)
    if name in TAUGHT:
        assert not any(p.requires_grad for p in trained.teacher.parameters())


def spoil_padding(trained: Method, valid: Tensor) -> None:
    """Make every head of every network answer nonsense where crops are padded."""

    def spoil(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        crops = {len(valid): valid, 2 * len(valid[2:]): torch.cat([valid[2:], valid[2:]])}
        mask = valid[-len(output) :] if len(output) <= len(valid) else crops[len(output)]
        return output + 30.0 * (~mask)[:, None] * torch.arange(output.shape[1]).view(1, -1, 1, 1, 1)

    for name, module in trained.named_modules():
        last = name.rpartition(".")[2]
        if last in ("head", "distance_head") or "heads." in f"{name}." and last.isdigit():
            module.register_forward_hook(spoil)


@pytest.mark.parametrize(("name", "guided"), ALL)
def test_padding_counts_in_no_loss(name: str, guided: bool) -> None:
    trained = stirred(name, guided=guided, consistency=5.0, **LOOSE.get(name, {}))
    one = batch()
    expected = float(loss_of(trained, one).detach())
    everywhere = batch()
    everywhere.unlabeled_valid[:] = True
    assert float(loss_of(trained, everywhere).detach()) != pytest.approx(expected, rel=1e-4)
    spoil_padding(trained, one.valid)
    hooked = float(loss_of(trained, one).detach())
    assert hooked == pytest.approx(expected, rel=1e-6)
    labels = batch()
    labels.labels[..., -2:] = 2
    labels.pseudo_labels[..., -2:] = 0  # type: ignore[index]
    assert float(loss_of(trained, labels).detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_crops_without_a_valid_voxel_leave_a_finite_gradient(name: str) -> None:
    trained = method(name)
    one = batch()
    one.unlabeled_valid[:] = False
    loss_of(trained, one).backward()
    assert all(torch.isfinite(p.grad).all() for p in trained.student.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_a_training_cut_in_two_ends_with_the_same_weights(name: str) -> None:
    guided = name in ("ict", "cps")
    whole, part = method(name, guided=guided), method(name, guided=guided)
    Loop(whole, 6).run(0, 6)
    cut = Loop(part, 6)
    cut.run(0, 3)
    again = Loop(method(name, guided=guided, seed=1), 6)
    again.trained.load_state_dict(part.state_dict())
    again.optimizer.load_state_dict(cut.optimizer.state_dict())
    again.run(3, 6)
    resumed = again.trained
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", TAUGHT)
def test_teachers_copy_once_then_average(name: str) -> None:
    trained = method(name, ema_decay=0.75)
    Loop(trained, 10).run(0, 1)
    teacher, student = trained.teacher.head.weight, trained.student.head.weight
    assert torch.equal(teacher, student)
    before = teacher.clone()
    with torch.no_grad():
        student.add_(1.0)
    trained.after_step(at(8, 10, trained))
    assert torch.allclose(teacher, before + 0.25, atol=1e-6)
    assert trained.teacher.training


@pytest.mark.parametrize("name", NAMES)
def test_the_weight_rises_over_fractions_of_any_training(name: str) -> None:
    trained = method(name, ramp=(40, 150, 6000)).eval()
    largest = LARGEST.get(name, 0.1)
    assert trained.options["consistency"] == largest
    for total in (200, 6000):
        for share, risen in ((0.0, 0.0067379), (0.25, 0.0600547), (0.5, 0.2865048)):
            parts = trained(batch(), at(int(share * total), total, trained)).parts
            assert float(parts["consistency_weight"]) == pytest.approx(largest * risen, rel=1e-4)
    assert get_method(name).keeps == ({"consistency"} if name == "dtc" else set())


@pytest.mark.parametrize("name", NAMES)
def test_pseudo_labels_meet_the_plain_unlabeled_crops(name: str) -> None:
    one = batch()
    guided = stirred(name, guided=True)
    step = guided(one, at(3, 10, guided))
    networks = [guided.student, guided.partner] if name == "cps" else [guided.student]
    assert len(step.unlabeled_logits) == len(networks) and not step.pseudo_average
    for logits, network in zip(step.unlabeled_logits, networks, strict=True):
        assert (logits - network(one.unlabeled_images)).abs().max() < 1e-4
        assert logits.requires_grad
    if name == "ict":
        assert stirred(name)(one, at(3, 10, guided)).unlabeled_logits == []


@pytest.mark.parametrize("name", NAMES)
def test_losses_stay_in_float32_under_autocast(name: str) -> None:
    trained = method(name, guided=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = trained(batch(), at(5, 10, trained))
    step.loss.backward()
    assert step.loss.dtype == torch.float32 and torch.isfinite(step.loss)
    assert all(part.dtype == torch.float32 for part in step.parts.values())


@pytest.mark.parametrize(
    ("name", "network"),
    [
        *((name, "vnet") for name in NAMES),
        *((name, "unet3d") for name in ("acmt_perr", "cct", "dtc", "urpc")),
    ],
)
def test_a_step_with_the_real_networks(name: str, network: str) -> None:
    def make(**options: Any) -> Student:
        options = {"in_channels": 1, "classes": 2, **options}
        return make_student(network, **options, norm="batch")

    trained = get_method(name)(MethodContext(2, (16, 16, 16), make))
    trained.check()
    one = batch(patch=(16, 16, 16))
    one.labels.clamp_(max=1)
    step = trained(one, at(5, 10, trained))
    step.loss.backward()
    assert torch.isfinite(step.loss)


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_depend_on_the_seed_only(name: str) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = method(name)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second, other = method(name), method(name, seed=7)
    one, same, another = (list(made.parameters()) for made in (first, second, other))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, another, strict=True) if a.ndim > 1)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        *((name, {"ramp": (40, 0, 6000)}, "ramp above 0") for name in NAMES),
        *((name, {"consistency": -1.0}, "below 0") for name in NAMES),
        *((name, {"temperature": 1.0}, "no option 'temperature'") for name in NAMES),
        *((name, {"ema_decay": 1.5}, "between 0 and 1") for name in TAUGHT),
        ("ua_mt", {"passes": 3}, "passes=3"),
        ("ua_mt", {"dice": "background"}, "dice=background"),
        ("ua_mt", {"consistency_on": "labeled"}, "consistency_on=labeled"),
        ("acmt_mu", {"passes": 0}, "passes=0"),
        ("acmt_perr", {"passes": 1}, "at least 2 passes"),
        ("acmt", {"threshold": 0.75}, "threshold=0.75"),
        ("ict", {"alpha": 0.0}, "alpha above 0"),
        ("dtc", {"steepness": 0.0}, "steepness above 0"),
        ("dtc", {"distance_weight": -0.3}, "distance_weight below 0"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        method(name, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_patch_that_does_not_fit_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="8 x 8 x 9"):
        get_method(name)(MethodContext(CLASSES, (8, 8, 9), build)).check()


@pytest.mark.parametrize("name", ["urpc", "acmt_perr"])
def test_a_network_with_one_decoder_stage_is_refused(name: str) -> None:
    class Flat(Pyramid):
        def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
            return super().decode(features)[-1:]

    with pytest.raises(InputError, match=f"{name} cannot be used with the network pyramid"):
        get_method(name)(MethodContext(CLASSES, PATCH, lambda: Flat(1, CLASSES))).check()


def test_ict_needs_pairs_of_unlabeled_crops() -> None:
    trained = method("ict")
    for unlabeled in (1, 3):
        with pytest.raises(ValueError, match="pairs"):
            trained(batch(2, unlabeled), at(0, 10, trained))
    assert torch.isfinite(trained(batch(1, 4), at(0, 10, trained)).loss)
