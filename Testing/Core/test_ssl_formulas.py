"""The loss and every gradient of the consistency methods against formulas written out in float64."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from SFRCore.ssl import acmt_perr, cct
from SFRCore.ssl.contract import Batch
from SFRCore.ssl.urpc import rectified_consistency
from Testing.Core.pyramid_student import CLASSES, at, batch, stirred

SEED = 5
STEP, TOTAL = 50, 100
RISEN = math.exp(-5 * 0.5**2)  # of every ramp at half of the training, where it spans the whole
WEIGHT = 3.0
RAMP = (40, 150, 6000)


def on(values: Tensor, mask: Tensor) -> Tensor:
    """Values (B, C, X, Y, Z) at the voxels of a mask: (N, C)."""
    return values.movedim(1, -1)[mask]


def overlap(p: Tensor, y: Tensor, mask: Tensor, first: int = 0) -> Tensor:
    """1 - Dice with squares, epsilon 1e-5, mean over the classes from ``first`` on."""
    p, y = on(p, mask), y[mask]
    scores = []
    for c in range(first, CLASSES):
        truth = (y == c).double()
        scores.append((2 * (p[:, c] * truth).sum() + 1e-5) / ((p[:, c] ** 2).sum() + (truth**2).sum() + 1e-5))
    return 1 - torch.stack(scores).mean()


def labeled_term(z: Tensor, one: Batch, first: int = 0) -> Tensor:
    entropy = functional.cross_entropy(on(z, one.labeled_valid), one.labels[one.labeled_valid])
    return (entropy + overlap(z.softmax(1), one.labels, one.labeled_valid, first)) / 2


def squared(p: Tensor, q: Tensor, mask: Tensor) -> Tensor:
    return ((on(p, mask) - on(q, mask)) ** 2).mean()


def noise(images: Tensor) -> Tensor:
    return (torch.randn(images.shape) * 0.1).clamp(-0.2, 0.2).double()


def doubt(p: Tensor) -> Tensor:
    return -(p * torch.log(p + 1e-6)).sum(1)


def mean_of_eight(network: Any, images: Tensor) -> Tensor:
    twice = torch.cat([images, images])
    with torch.no_grad():
        passes = [network(twice + noise(twice)).softmax(1) for _ in range(4)]
        return torch.stack([half for one in passes for half in one.chunk(2)]).mean(0)


def partly(mask: Tensor, valid: Tensor) -> Tensor:
    """The mask where valid; fails unless some voxels are in and some out."""
    chosen = mask & valid
    assert 0 < int(chosen.sum()) < int(valid.sum())
    return chosen


def expect_acmt(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    z, x = m.student(one.images), one.unlabeled_images
    target = m.teacher(x + noise(x)).softmax(1).detach()
    p = z[2:].softmax(1)
    threshold = 0.5 + (0.9 - 0.5) * RISEN
    mask = partly(doubt(p) / math.log(3) >= threshold, one.unlabeled_valid)
    return labeled_term(z[:2], one), squared(p, target, mask)


def expect_acmt_mu(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    z, x = m.student(one.images), one.unlabeled_images
    target = m.teacher(x + noise(x)).softmax(1).detach()
    threshold = (0.5 + (0.9 - 0.5) * RISEN) * math.log(3)
    mask = partly(doubt(mean_of_eight(m.student, x)) >= threshold, one.unlabeled_valid)
    return labeled_term(z[:2], one), 3 * squared(z[2:].softmax(1), target, mask)


def expect_acmt_serr(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    from Testing.Core.test_confident_learning import errors_by_hand

    z, x = m.student(one.images), one.unlabeled_images
    target = m.teacher(x + noise(x)).softmax(1).detach()
    p, valid = z[2:].softmax(1), one.unlabeled_valid
    wrong = torch.zeros_like(valid)
    opinion = on(m.teacher(x).softmax(1), valid).detach().numpy()
    wrong[valid] = torch.from_numpy(errors_by_hand(p.argmax(1)[valid].numpy(), opinion))
    return labeled_term(z[:2], one), squared(p, target, partly(wrong, valid))


def expect_acmt_perr(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    z, x, valid = m.student(one.images), one.unlabeled_images, one.unlabeled_valid
    target = m.teacher(x + noise(x)).softmax(1).detach()
    with torch.no_grad():  # without dropout the passes agree, and no class is uncertain
        confidence = m.teacher(x).softmax(1)
        coarse = m.teacher.decode(m.teacher.encode(x))[-2]
        fine = functional.interpolate(coarse, size=x.shape[2:], mode="trilinear", align_corners=False)
    p = z[2:].softmax(1)
    nearest = torch.zeros_like(valid, dtype=torch.long)
    for b in range(2):
        away = []
        for c in range(CLASSES):
            w = confidence[b, c] * (confidence[b].argmax(0) == c) * valid[b]
            prototype = (fine[b] * w).sum((1, 2, 3)) / (w.sum() + 1e-5)
            distance = ((fine[b] - prototype.view(-1, 1, 1, 1)) ** 2).sum(0)
            away.append(distance if bool(w.any()) else torch.full_like(distance, math.inf))
        nearest[b] = torch.stack(away).argmin(0)
    mask = partly(nearest != p.argmax(1), valid)
    clear = ((doubt(p) / math.log(3)) * (valid & ~mask)).sum() / valid.sum()
    return labeled_term(z[:2], one), squared(p, target, mask) + clear


def expect_ua_mt(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    z, x = m.student(one.images), one.unlabeled_images
    target = m.teacher(x + noise(x)).softmax(1).detach()
    threshold = (0.8 + (1.0 - 0.8) * RISEN) * math.log(3)
    mask = partly(doubt(mean_of_eight(m.teacher, x)) < threshold, one.unlabeled_valid).double()[:, None]
    squares = mask * (z[2:].softmax(1) - target) ** 2
    return labeled_term(z[:2], one, first=1), squares.sum() / (3 * mask.sum() + 1e-16)


def expect_ua_mt_all(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    z, x = m.student(one.images), one.images
    target = m.teacher(x + noise(x)).softmax(1).detach()
    threshold = (0.8 + (1.0 - 0.8) * RISEN) * math.log(3)
    mask = partly(doubt(mean_of_eight(m.teacher, x)) < threshold, one.valid)
    return labeled_term(z[:2], one), squared(z.softmax(1), target, mask)


def expect_cps(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    first, second = m.student(one.images), m.partner(one.images)
    valid = one.unlabeled_valid
    crossed = [
        functional.cross_entropy(on(a[2:], valid), on(b[2:], valid).detach().argmax(1))
        for a, b in ((first, second), (second, first))
    ]
    return labeled_term(first[:2], one) + labeled_term(second[:2], one), crossed[0] + crossed[1]


def expect_ict(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    alpha = torch.full((1, 1, 1, 1, 1), 0.2, dtype=torch.float64)
    mu = torch.distributions.Beta(alpha, alpha).sample()
    a, b = one.unlabeled_images[:1], one.unlabeled_images[1:]
    z = m.student(torch.cat([one.labeled_images, (1 - mu) * a + mu * b]))
    target = (1 - mu) * m.teacher(a).softmax(1) + mu * m.teacher(b).softmax(1)
    valid = one.unlabeled_valid[:1] & one.unlabeled_valid[1:]
    return labeled_term(z[:2], one), squared(z[2:].softmax(1), target.detach(), valid)


def expect_urpc(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    coarse, fine = m.student.decode(m.student.encode(one.images))
    below = functional.interpolate(m.heads[0].convolution(coarse), scale_factor=2, mode="trilinear")
    outputs, valid = [m.student.head(fine), below], one.unlabeled_valid
    supervised = sum(labeled_term(z[:2], one) for z in outputs) / 2
    p = [on(z[2:].softmax(1), valid) for z in outputs]
    mean = (p[0] + p[1]) / 2
    terms = []
    for each in p:
        divergence = (mean * (mean.log() - each.log())).sum(1, keepdim=True)
        w = torch.exp(-divergence)
        terms.append((((mean - each) ** 2) * w).mean() / (w.mean() + 1e-8) + divergence.mean())
    return supervised, (terms[0] + terms[1]) / 2


def expect_cct(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    features = m.student.encode(one.images)
    outputs = [m.student.head(m.student.decode(features)[-1])]
    for decoder, factor in zip(m.decoders, (1.1, 0.8, -0.5), strict=True):
        outputs.append(decoder.head(decoder.decode([factor * f for f in features])[-1]))
    p = [z[2:].softmax(1) for z in outputs]
    supervised = sum(labeled_term(z[:2], one) for z in outputs) / 4
    return supervised, sum(squared(p[0], q, one.unlabeled_valid) for q in p[1:]) / 3


def expect_dtc(m: Any, one: Batch) -> tuple[Tensor, Tensor]:
    from Testing.Core.test_signed_distance import distance_by_hand

    features = m.student.decode(m.student.encode(one.images))[-1]
    p, u = m.student.head(features).softmax(1), torch.tanh(m.distance_head(features))
    truth = torch.from_numpy(distance_by_hand(one.labels.numpy(), one.labeled_valid.numpy(), CLASSES))
    supervised = overlap(p[:2], one.labels, one.labeled_valid, 1) + 0.3 * squared(
        u[:2], truth, one.labeled_valid
    )
    return supervised, squared(torch.sigmoid(-20.0 * u), p[:, 1:], one.valid)


LOOSE = {"threshold": (0.5, 0.9)}
STRICT = {"threshold": (0.8, 1.0)}
Expected = Callable[[Any, Batch], tuple[Tensor, Tensor]]
FORMULAS: list[tuple[str, dict[str, Any], Expected]] = [
    ("acmt", LOOSE, expect_acmt),
    ("acmt_mu", LOOSE, expect_acmt_mu),
    ("acmt_serr", {}, expect_acmt_serr),
    ("acmt_perr", {}, expect_acmt_perr),
    ("ua_mt", STRICT, expect_ua_mt),
    ("ua_mt", STRICT | {"consistency_on": "all", "dice": "all"}, expect_ua_mt_all),
    ("cps", {}, expect_cps),
    ("ict", {}, expect_ict),
    ("urpc", {}, expect_urpc),
    ("cct", {}, expect_cct),
    ("dtc", {"steepness": 20.0}, expect_dtc),
]


@pytest.fixture(autouse=True)
def fixed_perturbations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def scale(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda features: factor * features

    monkeypatch.setattr(cct, "PERTURBATIONS", tuple(scale(factor) for factor in (1.1, 0.8, -0.5)))
    yield


@pytest.mark.parametrize(("name", "options", "expect"), FORMULAS)
def test_loss_and_gradients_follow_the_formula(name: str, options: dict[str, Any], expect: Expected) -> None:
    trained = stirred(name, consistency=WEIGHT, ramp=RAMP, **options)
    reference = copy.deepcopy(trained).double()
    one = batch()
    exact = batch()
    exact.labeled_images = exact.labeled_images.double()
    exact.unlabeled_images = exact.unlabeled_images.double()

    torch.manual_seed(SEED)
    supervised, consistency = expect(reference, exact)
    assert float(consistency.detach()) > 1e-4
    expected = supervised + WEIGHT * RISEN * consistency
    expected.backward()
    torch.manual_seed(SEED)
    step = trained(one, at(STEP, TOTAL, trained))
    step.loss.backward()

    assert float(step.parts["supervised"]) == pytest.approx(float(supervised.detach()), rel=1e-4)
    assert float(step.parts["consistency"]) == pytest.approx(float(consistency.detach()), rel=1e-4)
    assert float(step.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    for (key, found), wanted in zip(trained.named_parameters(), reference.parameters(), strict=True):
        assert (found.grad is None) == (wanted.grad is None), key
        if found.grad is not None:
            difference = (found.grad.double() - wanted.grad).abs().max()
            assert difference <= 1e-3 * wanted.grad.abs().max() + 1e-5, key


def test_ua_mt_and_acmt_mu_take_opposite_voxels_of_one_network() -> None:
    certain, doubtful = stirred("ua_mt", threshold=(0.7, 0.7)), stirred("acmt_mu", threshold=(0.7, 0.7))
    certain.teacher.load_state_dict(doubtful.student.state_dict())
    parts = []
    for trained in (certain, doubtful):
        torch.manual_seed(SEED)
        parts.append(trained(batch(), at(STEP, TOTAL, trained)).parts)
    assert 0 < float(parts[0]["certain"]) < 1
    assert float(parts[0]["certain"]) + float(parts[1]["ambiguous"]) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "at_start", "at_end"),
    [("acmt", 0.75135, 0.95), ("acmt_mu", 0.75101, 0.90), ("ua_mt", 0.75168, 1.0)],
)
def test_thresholds_go_from_the_first_to_the_last_number(
    name: str, at_start: float, at_end: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = stirred(name)
    module = importlib.import_module(f"SFRCore.ssl.{name}")
    for step, level in ((0, at_start), (3999, at_end)):
        for shift, above in ((-1e-4, False), (1e-4, True)):
            everywhere = (level + shift) * math.log(3)
            monkeypatch.setattr(
                module, "entropy", lambda p, value=everywhere: torch.full_like(p[:, 0], value)
            )
            parts = trained(batch(), at(step, 4000, trained)).parts
            share = parts["certain"] if name == "ua_mt" else parts["ambiguous"]
            assert float(share) == float(above != (name == "ua_mt"))


def test_single_class_students_fall_back_to_every_voxel() -> None:
    trained = stirred("acmt_serr")
    with torch.no_grad():
        trained.student.head.bias[1] += 100.0
    assert float(trained(batch(), at(STEP, TOTAL, trained)).parts["ambiguous"]) == 1.0


def test_prototypes_leave_uncertain_and_absent_classes_out() -> None:
    trained = stirred("acmt_perr", uncertainty=1e-9).train()
    seen: list[Tensor] = []
    original = acmt_perr.nearest_prototypes

    def watched(features: Tensor, labels: Tensor, confidence: Tensor, valid: Tensor) -> Tensor:
        seen.extend((labels, original(features, labels, confidence, valid)))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(acmt_perr, "nearest_prototypes", watched)
        trained(batch(), at(STEP, TOTAL, trained))
    assert not seen[0].any(), "where every class is uncertain the label is background"
    assert not seen[1].any(), "the only class with a prototype is the nearest everywhere"


def test_pyramids_of_certain_predictions_stay_finite() -> None:
    scales = [
        torch.tensor([200.0, -200.0, 0.0]).view(1, 3, 1, 1, 1).expand(2, 3, 4, 4, 4).clone().requires_grad_(),
        torch.tensor([-200.0, 200.0, 0.0]).view(1, 3, 1, 1, 1).expand(2, 3, 4, 4, 4).clone().requires_grad_(),
    ]
    loss = rectified_consistency(scales, torch.ones(2, 4, 4, 4, dtype=torch.bool))
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(z.grad).all() for z in scales)  # type: ignore[union-attr]


def test_perturbations_of_features() -> None:
    torch.manual_seed(0)
    features = torch.rand(2, 5, 6, 6, 6) + 0.1
    factor = cct.feature_noise(features) / features
    assert torch.allclose(factor[0], factor[1], atol=1e-6)
    assert factor.min() >= 0.7 - 1e-5 and factor.max() <= 1.3 + 1e-5 and factor.std() > 0.1
    dropped = cct.element_dropout(torch.ones(2, 5, 6, 6, 6))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert (dropped == 0).float().mean() == pytest.approx(0.3, abs=0.05)
    attention = features.mean(1)
    kept = (cct.attention_dropout(features) != 0).any(1)
    for mask, activity in zip(kept, attention, strict=True):
        assert 0.69 * activity.max() <= activity[~mask].min() <= 0.95 * activity.max()
        assert activity[mask].max() < activity[~mask].min(), "the most active voxels go"
