"""SS-Net and CPCL: what is learned from features, against formulas with loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from SFRCore.errors import InputError
from SFRCore.ssl.contract import Batch
from SFRCore.ssl.cpcl import both_ways, prototypes, similarities
from SFRCore.ssl.separation import ClassSeparation
from SFRCore.ssl.ss_net import overlap_loss
from SFRCore.students.student import statistics_untouched
from Testing.Core.small_student import CLASSES, at, batch, dice_by_hand, entropy_by_hand, method


def attention(selector: Any, rows: Any) -> Any:
    scores = selector(rows)[:, 0].double().sigmoid()
    return scores * len(scores) / scores.sum()


def separation_by_hand(part: Any, features: Any, labels: Any) -> Any:
    """Every pair of a feature and a remembered one, in float64."""
    predicted = part.prediction(part.projection(features))
    total = torch.zeros((), dtype=torch.float64)
    for index in range(CLASSES - 1):
        found, filled = predicted[labels == index + 1], int(part.filled[index])
        kept = functional.normalize(part.memory[index, :filled], dim=1)
        w = attention(part.selectors[index], found.detach())
        v = attention(part.memory_selectors[index], kept)
        cosines = functional.normalize(found.double(), dim=1) @ kept.double().T
        total = total + ((1 - cosines) * w[:, None] * v[None]).mean()
    return total / CLASSES


def test_separation_is_the_mean_over_all_pairs() -> None:
    torch.manual_seed(4)
    part = ClassSeparation(5, CLASSES)
    part.remember(torch.randn(90, 5), torch.arange(90) % 2 + 1)
    assert part.filled.tolist() == [32, 32]
    features, labels = torch.randn(60, 5, requires_grad=True), torch.arange(60) % 3
    found = part(features, labels)
    expected = separation_by_hand(part, features, labels)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for one in part.parameters():
        assert torch.allclose(
            torch.autograd.grad(found, one, retain_graph=True)[0],
            torch.autograd.grad(expected, one, retain_graph=True)[0],
            rtol=1e-3, atol=1e-6,
        )  # fmt: skip


def test_the_best_features_are_remembered_until_there_are_newer_ones() -> None:
    torch.manual_seed(5)
    part = ClassSeparation(5, CLASSES)
    rows = torch.randn(50, 5)
    part.remember(rows, torch.ones(50, dtype=torch.int64))
    with torch.no_grad():
        projected = part.projection.eval()(rows)
        scores = part.selectors[0](projected)[:, 0]
    best = projected[scores.argsort(descending=True)[:32]]
    assert torch.allclose(part.memory[0], best, atol=1e-6) and part.filled.tolist() == [32, 0]
    part.remember(torch.randn(4, 5), torch.full((4,), 2))
    assert torch.allclose(part.memory[0], best, atol=1e-6) and part.filled.tolist() == [32, 4]
    part.remember(rows[:0], torch.zeros(0, dtype=torch.int64))
    assert part.filled.tolist() == [32, 4]
    part.remember(rows[:3], torch.ones(3, dtype=torch.int64))
    assert part.filled.tolist() == [3, 4]


def test_structures_without_voxels_or_memory_count_nothing() -> None:
    part = ClassSeparation(5, CLASSES)
    assert float(part(torch.randn(9, 5), torch.ones(9, dtype=torch.int64))) == 0
    assert float(part(torch.randn(0, 5), torch.ones(0, dtype=torch.int64))) == 0


def test_overlap_of_the_same_certain_labels_is_complete() -> None:
    p = functional.one_hot(torch.randint(0, 3, (2, 4, 4, 4)), 3).movedim(-1, 1).float()
    q = p.roll(1, dims=1)
    valid = torch.ones(2, 4, 4, 4, dtype=torch.bool)
    assert float(overlap_loss(p, p, valid)) == pytest.approx(0, abs=1e-6)
    assert float(overlap_loss(p, q, valid)) == pytest.approx(1, abs=1e-6)
    valid[0] = False
    changed = torch.cat([q[:1], p[1:]])
    assert float(overlap_loss(p, changed, valid)) == pytest.approx(0, abs=1e-6)


def test_statistics_stay_untouched() -> None:
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.BatchNorm3d(2)).train()
    images = torch.randn(2, 1, 4, 4, 4) + 3
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with statistics_untouched(network):
        frozen = network(images)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert torch.equal(frozen, network(images))
    assert not torch.equal(before["1.running_mean"], network[1].running_mean)


def test_ss_net_computes_the_same_with_activations_computed_again() -> None:
    found = []
    for checkpointing in (False, True):
        trained = method("ss_net", dropout=False, consistency=2.0)
        trained.student.set_checkpointing(checkpointing)
        torch.manual_seed(9)
        trained(batch(), at(9, 10, trained)).loss.backward()
        found.append(
            {name: one.grad for name, one in trained.named_parameters()} | dict(trained.named_buffers())
        )
    kept, again = found
    for name, value in kept.items():
        if value is not None:
            assert torch.allclose(value, again[name], rtol=1e-4, atol=1e-6), name


def test_ss_net_has_the_loss_of_its_formula() -> None:
    trained = method("ss_net", dropout=False, consistency=2.0)
    one, student = batch(), trained.student
    trained.separation.remember(torch.randn(80, 4), torch.arange(80) % 2 + 1)
    state = {key: value.clone() for key, value in trained.state_dict().items()}
    torch.manual_seed(9)
    found = trained(one, at(3000, 15000, trained))
    remembered = trained.separation.memory.clone()
    grads = torch.autograd.grad(found.loss, list(student.parameters()))
    trained.load_state_dict(state)

    images, inside = one.images, one.valid[:, None]
    embedded = student.decode(student.encode(images))[-1]
    logits = student.head(embedded)
    rows, guesses = embedded.movedim(1, -1), logits.argmax(1)
    right = one.labeled_valid & (guesses[:2] == one.labels) & (one.labels > 0)
    trained.separation.remember(rows[:2][right], one.labels[right])
    assert torch.allclose(trained.separation.memory, remembered, atol=1e-5)
    contrast = separation_by_hand(
        trained.separation, rows[:2][one.labeled_valid], one.labels[one.labeled_valid]
    )
    contrast = contrast + separation_by_hand(
        trained.separation, rows[2:][one.unlabeled_valid], guesses[2:][one.unlabeled_valid]
    )
    plain = student(images).detach().softmax(1)
    torch.manual_seed(9)
    d = (torch.rand_like(images) - 0.5) * inside
    d = torch.stack([crop / (crop.norm() + 1e-8) for crop in d]).requires_grad_(True)

    def distance(noisy: Any) -> Any:
        p, q = student(noisy).softmax(1).double() * inside, plain.double() * inside
        return 1 - (2 * (p * q).sum() + 1e-8) / (p.sum() + q.sum() + 1e-8)

    (g,) = torch.autograd.grad(distance(images + 10 * d), d)
    g = g * inside
    smooth = distance(images + 10 * torch.stack([crop / crop.norm() for crop in g]))
    target = (one.labels, one.labeled_valid)
    supervised = dice_by_hand(logits[:2].softmax(1), *target, epsilon=1e-8, squared=False, first=1)
    weight = 2.0 * 2.718281828 ** (-5 / 4)
    expected = supervised + weight * (smooth + 0.1 * contrast)
    assert float(found.parts["smoothness"]) == pytest.approx(float(smooth.detach()), rel=1e-4)
    assert float(found.parts["separation"]) == pytest.approx(float(contrast.detach()), rel=1e-4)
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    wanted = torch.autograd.grad(expected, list(student.parameters()))
    assert all(torch.allclose(a, b.float(), rtol=1e-2, atol=1e-5) for a, b in zip(grads, wanted, strict=True))
    assert torch.allclose(found.unlabeled_logits[0], logits[2:], atol=1e-5)


def test_every_part_of_ss_net_learns_in_half_precision() -> None:
    trained = method("ss_net")
    trained.separation.remember(torch.randn(80, 4), torch.arange(80) % 2 + 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = trained(batch(), at(3000, 15000, trained))
    found.loss.backward()
    assert found.loss.dtype == torch.float32
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_prototypes_are_weighted_means_and_label_by_cosine() -> None:
    torch.manual_seed(6)
    features = torch.randn(2, 5, 4, 3, 2)
    labels, confidence = torch.randint(0, 2, (2, 4, 3, 2)), torch.rand(2, 3, 4, 3, 2)
    valid = torch.rand(2, 4, 3, 2) > 0.3
    means, present = prototypes(features, labels, confidence, valid)
    assert means.shape == (2, 3, 5) and present.tolist() == [[True, True, False]] * 2
    found = similarities(features, means, present)
    assert found.argmax(1).max() == 1, "a class without voxels"
    for b in range(2):
        for c in range(2):
            total, weight = torch.zeros(5, dtype=torch.float64), 1e-5
            for place in ((labels[b] == c) & valid[b]).nonzero().tolist():
                p = float(confidence[(b, c, *place)])
                total, weight = total + p * features[(b, slice(None), *place)].double(), weight + p
            assert torch.allclose(means[b, c].double(), total / weight, atol=1e-5)
            cosine = 20 * functional.cosine_similarity(features[b].flatten(1), means[b, c, :, None], dim=0)
            assert torch.allclose(found[b, c].flatten(), cosine, atol=1e-4)


def test_cpcl_has_the_loss_of_its_formula() -> None:
    trained = method("cpcl", dropout=False, consistency=2.0)
    with torch.no_grad():
        for parameter in trained.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    one, student, teacher = batch(), trained.student, trained.teacher
    torch.manual_seed(8)
    found = trained(one, at(3000, 10000, trained))
    grads = torch.autograd.grad(found.loss, list(student.parameters()), retain_graph=True)
    torch.manual_seed(8)
    noisy = teacher(one.images + (torch.randn_like(one.images) * 0.1).clamp(-0.2, 0.2))
    decoded, taught = (
        net.decode(net.encode(x)) for net, x in ((student, one.images), (teacher, one.unlabeled_images))
    )
    logits, q = student.head(decoded[-1]), teacher.head(taught[-1]).softmax(1).detach()

    def enlarged(features: Any) -> Any:
        return functional.interpolate(features, size=(16, 16, 16), mode="trilinear")

    own, other = enlarged(decoded[0][:2]), enlarged(taught[0]).detach()
    p, (lv, uv) = logits[:2].detach().softmax(1), (one.labeled_valid, one.unlabeled_valid)
    guessed = q.argmax(1)
    theirs, ours = uv.clone(), lv.clone()  # where the other crop has the class too
    for b in range(2):
        for place in uv[b].nonzero().tolist():
            theirs[(b, *place)] = guessed[(b, *place)] in one.labels[b][lv[b]]
        for place in lv[b].nonzero().tolist():
            ours[(b, *place)] = one.labels[(b, *place)] in guessed[b][uv[b]]
    forward = similarities(other, *prototypes(own, one.labels, p, lv)).double().softmax(1)
    forward = ((forward - q) ** 2).permute(0, 2, 3, 4, 1)[theirs].mean()
    found_there = prototypes(other, guessed, q, uv)
    backward = entropy_by_hand(similarities(own, *found_there), one.labels, ours)
    stability = ((logits.double() - noisy.detach()) ** 2).permute(0, 2, 3, 4, 1)[one.valid].mean()
    target = (one.labels, lv)
    dice = dice_by_hand(logits[:2].softmax(1), *target, epsilon=1e-5)
    supervised = 0.5 * (entropy_by_hand(logits[:2], *target) + dice)
    weight = 2.0 * 2.718281828 ** (-5 / 4)
    expected = supervised + weight * (forward + stability + 10 * backward)
    for name, value in (("forward", forward), ("backward", backward), ("stability", stability)):
        assert float(found.parts[name]) == pytest.approx(float(value.detach()), rel=1e-4), name
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    wanted = torch.autograd.grad(expected, list(student.parameters()))
    assert all(torch.allclose(a, b.float(), rtol=1e-2, atol=1e-5) for a, b in zip(grads, wanted, strict=True))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_cpcl_leaves_out_classes_that_the_other_crop_lacks() -> None:
    rng = torch.Generator().manual_seed(3)
    own, other = torch.rand(2, 1, 4, 6, 6, 6, generator=rng)
    labels = torch.zeros(1, 6, 6, 6, dtype=torch.int64)
    labels[:, 2:4], labels[:, 4:] = 1, 2
    valid = torch.ones_like(labels, dtype=torch.bool)
    taught = torch.full((1, 3, 6, 6, 6), 0.1)
    taught[:, 0, :3] = taught[:, 2, 3:] = 0.8  # the teacher finds no class 1
    confidence = torch.full((1, 3, 6, 6, 6), 1 / 3)
    crops = Batch(torch.zeros(1, 1, 6, 6, 6), labels, valid, torch.zeros(1, 1, 6, 6, 6), valid)
    own.requires_grad_(True)
    _, backward = both_ways(own, other, confidence, taught, crops)
    # By hand: classes 0 and 2 alone, on the voxels that have them.
    means = [other[0][:, half].flatten(1).mean(1) for half in (slice(0, 3), slice(3, 6))]
    cosines = torch.stack([functional.cosine_similarity(own[0], m.view(-1, 1, 1, 1), dim=0) for m in means])
    terms = (20 * cosines).double().log_softmax(0)
    expected = -torch.cat([terms[0, :2], terms[1, 4:]]).mean()
    assert float(backward.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    (gradient,) = torch.autograd.grad(backward, own)
    assert gradient[0, :, 2:4].abs().max() == 0.0 and gradient[0, :, :2].abs().max() > 0.0

    # The labels lack class 2, which the teacher finds: those voxels count in no term.
    labels = torch.where(labels == 2, 0, labels)
    crops = replace(crops, labels=labels)
    forward, _ = both_ways(own, other, confidence, taught, crops)
    other[:, :, 3:] += 1.0
    again, _ = both_ways(own, other, confidence, taught, crops)
    assert float(forward.detach()) == float(again.detach()) > 0.0

    # A crop of padding alone has no class at all.
    nothing = replace(crops, unlabeled_valid=torch.zeros_like(valid))
    assert [float(part.detach()) for part in both_ways(own, other, confidence, taught, nothing)] == [0.0, 0.0]


@pytest.mark.parametrize("name", ["ss_net", "cpcl"])
def test_ramps_must_rise(name: str) -> None:
    with pytest.raises(InputError, match="ramp above 0"):
        method(name, ramp=(40, 0, 10))
