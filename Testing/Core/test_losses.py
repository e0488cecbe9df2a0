"""Losses against the published formulas, written out in float64 numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from SFRCore.ssl.contract import Batch, Step, pseudo_label_loss
from SFRCore.ssl.losses import consistency_mse, cross_entropy, dice_loss, segmentation_loss

SHAPE = (5, 6, 7)


def case(classes: int, seed: int = 0, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, classes, *SHAPE, generator=generator)
    target = torch.randint(classes, (batch, *SHAPE), generator=generator)
    valid = torch.rand(batch, *SHAPE, generator=generator) < 0.7
    return logits, target, valid


def softmax(logits: torch.Tensor) -> np.ndarray:
    values = logits.detach().double().numpy()
    exponentials = np.exp(values - values.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def one_hot(target: torch.Tensor, classes: int) -> np.ndarray:
    return np.stack([target.numpy() == c for c in range(classes)], 1).astype(np.float64)


def dice_by_formula(p: np.ndarray, y: np.ndarray, m: np.ndarray, epsilon: float, variant: str) -> float:
    first = 1 if variant in ("D2", "D3") else 0
    terms = []
    samples = [[b] for b in range(len(p))] if variant == "D4" else [list(range(len(p)))]
    for group in samples:
        for c in range(first, p.shape[1]):
            pc, yc = p[group, c][m[group]], y[group, c][m[group]]
            if variant in ("D1", "D2"):
                denominator = (pc**2).sum() + (yc**2).sum()
            else:
                denominator = pc.sum() + yc.sum()
            terms.append(1 - (2 * (pc * yc).sum() + epsilon) / (denominator + epsilon))
    return float(np.mean(terms))


VARIANTS: dict[str, dict[str, Any]] = {
    "D1": {},
    "D2": {"foreground_only": True, "epsilon": 1e-5},
    "D3": {"foreground_only": True, "squared": False, "epsilon": 1e-8},
    "D4": {"per_sample": True, "squared": False, "epsilon": 1e-5},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_dice_variants(variant: str, classes: int, masked: bool) -> None:
    logits, target, valid = case(classes)
    options = VARIANTS[variant]
    mask = valid.numpy() if masked else np.ones(target.shape, bool)
    expected = dice_by_formula(
        softmax(logits), one_hot(target, classes), mask, options.get("epsilon", 1e-10), variant
    )
    found = dice_loss(logits.softmax(1), target, valid=valid if masked else None, **options)
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_dice_of_a_perfect_and_of_an_absent_class() -> None:
    target = torch.zeros(1, *SHAPE, dtype=torch.long)
    probabilities = torch.zeros(1, 3, *SHAPE)
    probabilities[:, 0] = 0.75
    probabilities[:, 1] = 0.25
    size = np.prod(SHAPE)
    background = 1 - 2 * 0.75 * size / (0.75**2 * size + size)
    # a class absent from the target costs 1 as soon as it has any probability, and nothing without
    assert float(dice_loss(probabilities, target)) == pytest.approx((background + 1 + 0) / 3, abs=1e-6)


def test_cross_entropy_counts_valid_voxels_only() -> None:
    logits, target, valid = case(4)
    log_p = np.log(softmax(logits))
    voxels = -np.take_along_axis(log_p, target.numpy()[:, None], 1)[:, 0]
    assert float(cross_entropy(logits, target)) == pytest.approx(voxels.mean(), abs=1e-5)
    expected = voxels[valid.numpy()].mean()
    assert float(cross_entropy(logits, target, valid)) == pytest.approx(expected, abs=1e-5)


def test_segmentation_loss_is_half_of_both() -> None:
    logits, target, valid = case(3, seed=4)
    p, y, m = softmax(logits), one_hot(target, 3), valid.numpy()
    entropy = -np.log((p * y).sum(1))[m].mean()
    for epsilon in (1e-10, 1e-5, 10.0):
        expected = 0.5 * (entropy + dice_by_formula(p, y, m, epsilon, "D1"))
        assert float(segmentation_loss(logits, target, valid, epsilon)) == pytest.approx(expected, abs=1e-5)


def test_consistency_is_a_mean_over_voxels_and_channels() -> None:
    first, _, valid = case(3, seed=1)
    second, _, _ = case(3, seed=2)
    squares = (softmax(first) - softmax(second)) ** 2
    found = consistency_mse(first.softmax(1), second.softmax(1))
    assert float(found) == pytest.approx(squares.mean(), abs=1e-7)
    found = consistency_mse(first.softmax(1), second.softmax(1), valid)
    assert float(found) == pytest.approx(squares.transpose(0, 2, 3, 4, 1)[valid.numpy()].mean(), abs=1e-7)


@pytest.mark.parametrize("loss", [segmentation_loss, cross_entropy])
def test_invalid_voxels_get_no_gradient_and_change_nothing(loss: Any) -> None:
    logits, target, valid = case(3, seed=5)
    logits.requires_grad_()
    value = loss(logits, target, valid)
    (gradient,) = torch.autograd.grad(value, logits)
    hidden = ~valid[:, None].expand_as(gradient)
    assert gradient[hidden].abs().max() == 0
    assert gradient[~hidden].abs().min() > 0
    changed = torch.where(hidden, -logits, logits).detach()
    again = loss(changed, torch.where(valid, target, 0), valid)
    assert float(again) == pytest.approx(float(value.detach()), abs=1e-7)


def test_nothing_valid_costs_nothing() -> None:
    logits, target, valid = case(3)
    logits.requires_grad_()
    nothing = torch.zeros_like(valid)
    for value in (
        segmentation_loss(logits, target, nothing),
        consistency_mse(logits.softmax(1), logits.detach().softmax(1) * 0, nothing),
    ):
        assert float(value.detach()) == 0
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(gradient).all() and gradient.abs().max() == 0


def test_gradient_equals_the_one_of_the_formula_in_float64() -> None:
    logits, target, valid = case(3, seed=6)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(segmentation_loss(logits, target, valid), logits)
    exact = logits.detach().double().requires_grad_()
    p = exact.softmax(1)
    y = torch.from_numpy(one_hot(target, 3))
    entropy = -(p * y).sum(1).log()[valid].mean()
    dice = torch.stack(
        [1 - 2 * (p[:, c] * y[:, c])[valid].sum() / (p[:, c] ** 2 + y[:, c])[valid].sum() for c in range(3)]
    ).mean()
    (expected,) = torch.autograd.grad(0.5 * (entropy + dice), exact)
    np.testing.assert_allclose(gradient.numpy(), expected.numpy(), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(kind: torch.dtype) -> None:
    logits = torch.full((1, 2, 48, 48, 48), 2.0)
    logits[:, 1] = -2.0
    target = torch.zeros(1, 48, 48, 48, dtype=torch.long)
    target[:, :24] = 1
    exact = segmentation_loss(logits, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = segmentation_loss(logits.to(kind), target)
        consistency = consistency_mse(logits.to(kind).float().softmax(1), torch.zeros_like(logits).to(kind))
    assert half.dtype == consistency.dtype == torch.float32
    assert float(half) == pytest.approx(float(exact), abs=1e-6)


def batch_with_pseudo_labels(pseudo: torch.Tensor | None, valid: torch.Tensor) -> Batch:
    empty = torch.zeros(0, *SHAPE)
    return Batch(
        labeled_images=empty[:, None],
        labels=empty.long(),
        labeled_valid=empty.bool(),
        unlabeled_images=torch.zeros(len(valid), 1, *SHAPE),
        unlabeled_valid=valid,
        pseudo_labels=pseudo,
    )


def test_pseudo_label_loss_sums_or_averages_over_networks() -> None:
    first, target, valid = case(3, seed=1)
    second, _, _ = case(3, seed=2)
    batch = batch_with_pseudo_labels(target, valid)
    both = segmentation_loss(first, target, valid) + segmentation_loss(second, target, valid)
    step = Step(torch.zeros(()), unlabeled_logits=[first, second])
    assert float(pseudo_label_loss(step, batch)) == pytest.approx(float(both))
    assert float(pseudo_label_loss(step, batch, 0.25)) == pytest.approx(0.25 * float(both))
    step.pseudo_average = True
    assert float(pseudo_label_loss(step, batch)) == pytest.approx(0.5 * float(both))
    assert float(pseudo_label_loss(Step(torch.zeros(())), batch)) == 0


def test_pseudo_label_loss_leaves_cleared_crops_out() -> None:
    logits, target, valid = case(3, seed=3)
    valid = torch.ones_like(valid)
    valid[1] = False
    kept = [0, 2]
    expected = segmentation_loss(logits[kept], target[kept])
    found = pseudo_label_loss(
        Step(torch.zeros(()), unlabeled_logits=[logits]), batch_with_pseudo_labels(target, valid)
    )
    assert float(found) == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ValueError, match="no pseudo-labels"):
        pseudo_label_loss(
            Step(torch.zeros(()), unlabeled_logits=[logits]), batch_with_pseudo_labels(None, valid)
        )


def test_canvases_are_volumes_of_one_slice() -> None:
    logits, target, valid = case(3, seed=8)
    flat = (logits[..., 0], target[..., 0], valid[..., 0])
    thin = (logits[..., :1], target[..., :1], valid[..., :1])
    assert float(segmentation_loss(*flat)) == pytest.approx(float(segmentation_loss(*thin)), abs=1e-6)
    for options in VARIANTS.values():
        first, second = (
            dice_loss(one[0].softmax(1), one[1], valid=one[2], **options) for one in (flat, thin)
        )
        assert float(first) == pytest.approx(float(second), abs=1e-6)
