"""CauSSL: the dependence of kernels, its maximisation, and the loss of both variants."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from SFRCore.errors import InputError
from SFRCore.ssl import caussl
from SFRCore.ssl.decoders import interpolate, keep_decoder
from SFRCore.ssl.dependence import Dependence
from SFRCore.ssl.tracing import decoder_names
from SFRCore.students import make_student
from Testing.Core.small_student import CLASSES, at, batch, build, dice_by_hand, entropy_by_hand, method


def test_dependence_is_the_mean_squared_cosine() -> None:
    torch.manual_seed(1)
    measure = Dependence([4, 3], [8, 6])
    kernels = [torch.randn(4, 2, 3, 3, 3), torch.randn(3, 4, 1, 1, 1)]
    others = [torch.randn(8, 54), torch.randn(6, 4)]
    layers = []
    for layer, (own, other) in enumerate(zip(kernels, others, strict=True)):
        combined = measure.get_buffer(f"coefficients_{layer}").double() @ other.double()
        rows = [
            functional.cosine_similarity(w.flatten().double(), v, dim=0) ** 2
            for w, v in zip(own, combined, strict=True)
        ]
        layers.append(torch.stack(rows).mean())
    assert float(measure(kernels, others)) == pytest.approx(float(torch.stack(layers).mean()), rel=1e-5)


def test_a_combination_of_the_others_is_wholly_dependent() -> None:
    measure = Dependence([2], [4])
    others = torch.randn(4, 27)
    own = torch.stack([others[0] - 2 * others[3], others[1] + others[2]])
    measure.get_buffer("coefficients_0").copy_(torch.tensor([[-3.0, 0, 0, 6], [0, 2, 2, 0]]))
    assert float(measure([own], [others])) == pytest.approx(1.0, abs=1e-6)
    orthogonal = torch.eye(4, 27)
    assert float(measure([torch.eye(27)[10:12]], [orthogonal])) == pytest.approx(0.0, abs=1e-6)


def test_the_maximisation_is_adam() -> None:
    torch.manual_seed(2)
    measure = Dependence([4], [8])
    own, others = torch.randn(4, 20, requires_grad=True), torch.randn(8, 20)
    free = nn.Parameter(measure.get_buffer("coefficients_0").clone())
    adam = torch.optim.Adam([free], 2e-2)
    begin = float(measure([own], [others]).detach())
    for rounds in (7, 5):
        measure.strengthen([own], [others], rounds)
        for _ in range(rounds):
            combined = functional.normalize(free @ others, dim=1)
            loss = -((functional.normalize(own.detach(), dim=1) * combined).sum(1) ** 2).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
        assert torch.allclose(measure.get_buffer("coefficients_0"), free, rtol=1e-4, atol=1e-6)
    assert float(measure([own], [others]).detach()) > begin + 0.1
    assert own.grad is None and int(measure.updates) == 12


def test_decoders_keep_nothing_of_the_encoder() -> None:
    student = build()
    names = decoder_names(student, (8, 8, 8))
    assert {name.split(".")[0] for name in names} == {"bottom", "up", "last", "head"}
    other = keep_decoder(interpolate(build(), "nearest"), (8, 8, 8))
    assert {name.split(".")[0] for name, _ in other.named_parameters()} == {"bottom", "up", "last", "head"}
    features = student.encode(torch.randn(2, 1, 8, 8, 8))
    assert other.head(other.decode(features)[-1]).shape == (2, CLASSES, 8, 8, 8)


@pytest.mark.parametrize("name", ["vnet", "unet3d"])
@pytest.mark.parametrize("mode", ["trilinear", "nearest"])
def test_decoders_of_the_real_students(name: str, mode: str) -> None:
    size = (32, 16, 16)
    student = make_student(name, in_channels=1, classes=2)
    other = keep_decoder(interpolate(make_student(name, in_channels=1, classes=2), mode), size)
    modes = {part.mode for part in other.modules() if isinstance(part, nn.Upsample)}
    assert modes == {mode} and not any(isinstance(part, nn.ConvTranspose3d) for part in other.modules())
    with torch.no_grad():
        features = student.eval().encode(torch.randn(1, 1, *size))
        found = other.eval().head(other.decode(features)[-1])
    assert found.shape == (1, 2, *size)
    assert not any(key.startswith("encoder.") for key, _ in other.named_parameters())


def disagreement(logits: list[Any], valid: Any, variant: str) -> Any:
    total = torch.zeros((), dtype=torch.float64)
    for i, j in permutations(range(len(logits)), 2):
        if variant == "cps":
            total = total + 0.3 * entropy_by_hand(logits[i], logits[j].argmax(1), valid)
        else:
            p, q = logits[i].double().softmax(1), logits[j].detach().double().softmax(1) ** 2
            squares = ((p - q / q.sum(1, keepdim=True)) ** 2).permute(0, 2, 3, 4, 1)
            total = total + squares[valid].mean()
    return total


@pytest.mark.parametrize(
    ("variant", "step"), [("mc", 30), ("mc", 90), ("cps", 400), ("cps", 470), ("cps", 555)]
)
def test_the_loss_is_that_of_the_formula(variant: str, step: int) -> None:
    trained = method("caussl", variant=variant, dropout=False, consistency=2.0)
    one, networks = batch(), [trained.student, *trained.others]
    found = trained(one, at(step, 5000, trained))
    if variant == "cps":
        logits = [network(one.images) for network in networks]
    else:
        features = trained.student.encode(one.images)
        logits = [network.head(network.decode(features)[-1]) for network in networks]
    target = (one.labels, one.labeled_valid)
    expected = torch.zeros((), dtype=torch.float64)
    for z in logits:
        dice = dice_by_hand(z[:2].softmax(1), *target, epsilon=1e-5, first=1)
        expected = expected + 0.5 * (entropy_by_hand(z[:2], *target) + dice)
    weight = 2.0 * 2.718281828 ** (-5 * (1 - (step // 150) / 40) ** 2)
    if variant == "mc" or step > 400:
        expected = expected + weight * disagreement([z[2:] for z in logits], one.unlabeled_valid, variant)
    if step >= (60 if variant == "mc" else 540):
        names = trained.kernels
        for i, measure in enumerate(trained.dependences):
            kernels = [n.get_parameter(k) for k in names for n in networks[i : i + 1]]
            rest = [n for n in networks if n is not networks[i]]
            others = [torch.cat([n.get_parameter(k).detach().flatten(1) for n in rest]) for k in names]
            expected = expected + 3.0 * measure(kernels, others)
        assert float(found.parts["dependence"]) > 0
    else:
        assert float(found.parts["dependence"]) == 0
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=2e-5)
    parameters = [p for network in networks for p in network.parameters()]
    grads = torch.autograd.grad(found.loss, parameters)
    wanted = torch.autograd.grad(expected, parameters)
    assert all(torch.allclose(g, w.float(), rtol=1e-3, atol=2e-6) for g, w in zip(grads, wanted, strict=True))
    assert found.pseudo_average and len(found.unlabeled_logits) == len(networks)
    for kept, z in zip(found.unlabeled_logits, logits, strict=True):
        assert torch.allclose(kept, z[2:], atol=1e-5)


def test_every_decoder_is_kept_apart() -> None:
    trained = method("caussl")
    assert trained.kernels == ["bottom.0.weight", "last.0.weight", "head.weight"]
    groups = trained._kernel_groups()
    for network, measure, group in zip(
        [trained.student, *trained.others], trained.dependences, groups, strict=True
    ):
        trained.zero_grad()
        measure(*group).backward()
        touched = {name for name, p in trained.named_parameters() if p.grad is not None}
        own = {id(network.get_parameter(name)) for name in trained.kernels}
        assert {id(trained.get_parameter(name)) for name in touched} == own
    both = method("caussl", variant="cps")
    assert both.kernels == [f"{part}.0.weight" for part in ("fine", "down", "bottom", "up", "last")] + [
        "head.weight"
    ]


@pytest.mark.parametrize(
    ("variant", "total", "when"),
    [
        ("mc", 5000, [60, 120, 180]),
        ("cps", 5000, [540, 600, 660]),
        ("mc", 500, [6, 12, 18]),
        ("cps", 250, [27, 30, 33]),
    ],
)
def test_combinations_are_adapted_in_time(
    monkeypatch: pytest.MonkeyPatch, variant: str, total: int, when: list[int]
) -> None:
    trained = method("caussl", variant=variant)
    done: list[tuple[int, int]] = []
    now = 0
    monkeypatch.setattr(
        Dependence, "strengthen", lambda self, own, others, updates: done.append((now, updates))
    )
    monkeypatch.setattr(
        caussl.CauSSL, "_logits", lambda self, images: [self.student.head(z) for z in [flat] * 2]
    )
    flat = torch.zeros(4, 4, 16, 16, 16)
    one = batch()
    for now in range(when[0] - 3, when[-1] + 1):
        trained(one, at(now, total, trained))
    networks = 2 if variant == "cps" else 3
    assert done == [(k, max(1, round(60 * total / 5000))) for k in when for _ in range(networks)]


def test_no_optimiser_sees_the_combinations() -> None:
    trained = method("caussl")
    assert not any("dependences" in name for name, _ in trained.named_parameters())
    assert any("coefficients" in name for name in trained.state_dict())
    with pytest.raises(InputError, match="variant=mt"):
        method("caussl", variant="mt")
    with pytest.raises(InputError, match="ramp above 0"):
        method("caussl", ramp=(40, 0, 10))
