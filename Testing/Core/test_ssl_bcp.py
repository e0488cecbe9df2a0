"""BCP: boxes, pieces, two phases, and the loss of every region."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from SFRCore.errors import InputError
from SFRCore.ssl import bcp
from SFRCore.ssl.pasting import largest_pieces, random_box
from Testing.Core.small_student import CLASSES, Loop, at, batch, dice_by_hand, entropy_by_hand, method


def test_boxes_have_two_thirds_of_every_side_and_begin_anywhere() -> None:
    torch.manual_seed(0)
    starts = set()
    for _ in range(200):
        box = ~random_box((112, 12, 80), 2 / 3, torch.device("cpu"))
        inside = box.nonzero()
        first, last = inside.min(0).values, inside.max(0).values
        assert (last - first + 1).tolist() == [74, 8, 53] and box.sum() == 74 * 8 * 53
        starts.add(int(first[1]))
    assert starts == {0, 1, 2, 3}


def test_only_the_largest_piece_of_each_structure_stays() -> None:
    labels = torch.zeros(2, 8, 8, 8, dtype=torch.int64)
    labels[0, :3, :3, :3] = 1
    labels[0, 3, 3, 3] = 1  # touches at a corner
    labels[0, 6:, 6:, 6:] = 1
    labels[0, 5, 0, 0] = 2
    labels[1, 0, 0, 0] = 2
    labels[1, 4:6, 4:6, 4] = 2
    kept = largest_pieces(labels, 3)
    wanted = labels.clone()
    wanted[0, 6:, 6:, 6:] = 0
    wanted[1, 0, 0, 0] = 0
    assert torch.equal(kept, wanted) and kept.dtype == torch.int64
    assert largest_pieces(torch.zeros_like(labels), 3).sum() == 0


def test_two_phases() -> None:
    trained = method("bcp", guided=True)
    first, second = trained.plan(17000)
    assert [at(k, 17000, trained).phase.name for k in (0, 1999, 2000)] == [
        first.name,
        first.name,
        second.name,
    ]
    assert (first.labeled, first.unlabeled, second.labeled, second.unlabeled) == (4, 0, 4, 4)
    assert [first.learning_rate(k, 2000) for k in (0, 1999)] == [0.01, 0.01]
    assert (first.pseudo_labels, second.pseudo_labels) == ("none", "foundation")
    assert method("bcp").plan(10)[1].pseudo_labels == "none"


def region(logits: Any, labels: Any, where: Any) -> Any:
    """Cross-entropy and the mean over samples and classes of their Dice losses, in float64."""
    p = logits.softmax(1)
    terms = [
        dice_by_hand(p[b : b + 1], labels[b : b + 1], where[b : b + 1], epsilon=1e-5, squared=False)
        for b in range(len(p))
    ]
    return entropy_by_hand(logits, labels, where) + torch.stack(terms).mean()


def test_pretraining_mixes_labeled_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = method("bcp", dropout=False)
    one = batch(4, 0)
    box = torch.ones(16, 16, 16, dtype=torch.bool)
    box[2:12, 3:13, 4:14] = False
    monkeypatch.setattr(bcp, "random_box", lambda *_: box)
    found = trained(one, at(0, 170, trained))
    images, labels = one.labeled_images[:2].clone(), one.labels[:2].clone()
    images[:, :, 2:12, 3:13, 4:14] = one.labeled_images[2:, :, 2:12, 3:13, 4:14]
    labels[:, 2:12, 3:13, 4:14] = one.labels[2:, 2:12, 3:13, 4:14]
    expected = 0.5 * region(trained.student(images), labels, one.labeled_valid[:2])
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert found.unlabeled_logits == []


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_self_training_pastes_both_ways(monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    trained = method("bcp", dropout=False, guided=True, unlabeled_weight=weight)
    with torch.no_grad():
        for parameter in trained.teacher.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    one = batch(4, 4, pseudo=True)
    one.unlabeled_valid[1, :5] = False
    box = torch.ones(16, 16, 16, dtype=torch.bool)
    box[2:12, 3:13, 4:14] = False
    monkeypatch.setattr(bcp, "random_box", lambda *_: box)
    found = trained(one, at(100, 170, trained))
    grads = torch.autograd.grad(found.loss, list(trained.student.parameters()), retain_graph=True)

    with torch.no_grad():
        taught = torch.cat(
            [trained.teacher(one.unlabeled_images[h]).argmax(1) for h in (slice(0, 2), slice(2, 4))]
        )
    taught[~one.unlabeled_valid] = 0
    for crop in taught:
        for value in range(1, CLASSES):
            pieces, count = ndimage.label(crop.numpy() == value, np.ones((3, 3, 3)))
            sizes = [int((pieces == n).sum()) for n in range(1, count + 1)]
            crop[torch.from_numpy((pieces > 0) & (pieces != 1 + int(np.argmax(sizes or [0]))))] = 0
    outside = box.expand(2, -1, -1, -1)
    a, b, c, d = (
        one.labeled_images[:2],
        one.labeled_images[2:],
        one.unlabeled_images[:2],
        one.unlabeled_images[2:],
    )
    inward = trained.student(a * box + c * ~box)
    outward = trained.student(d * box + b * ~box)
    lv, uv = one.labeled_valid, one.unlabeled_valid
    expected = 0.5 * (
        region(inward, one.labels[:2], outside & lv[:2])
        + weight * region(inward, taught[:2], ~outside & uv[:2])
        + weight * region(outward, taught[2:], outside & uv[2:])
        + region(outward, one.labels[2:], ~outside & lv[2:])
    )
    assert float(found.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    wanted = torch.autograd.grad(expected, list(trained.student.parameters()))
    assert all(torch.allclose(g, w.float(), rtol=1e-3, atol=2e-6) for g, w in zip(grads, wanted, strict=True))
    assert len(found.unlabeled_logits) == 1 and found.unlabeled_logits[0].shape == (4, CLASSES, 16, 16, 16)


def test_regions_without_weight_give_no_gradient() -> None:
    logits = torch.randn(2, CLASSES, 8, 8, 8, requires_grad=True)
    where = torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    where[:, 2:5] = True
    bcp._region_loss(logits, torch.zeros(2, 8, 8, 8, dtype=torch.int64), where).backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum((0, 1)) > 0
    assert torch.equal(touched, where[0])


def test_the_teacher_begins_with_the_pretrained_student_and_follows_slowly() -> None:
    trained = method("bcp")
    loop = Loop(trained, 17)
    fresh = trained.teacher.head.weight.clone()
    loop.run(0, 2)
    assert torch.equal(trained.teacher.head.weight, fresh), "not taught while pretraining"
    before = trained.student.head.weight.detach().clone()
    loop.run(2, 3)
    after = trained.student.head.weight.detach()
    assert torch.allclose(trained.teacher.head.weight, 0.99 * before + 0.01 * after, atol=1e-7)
    assert not trained.teacher.head.weight.requires_grad


@pytest.mark.parametrize(
    ("option", "value"), [("box", 1.0), ("box", 0.0), ("pretraining", 1.0), ("box", 0.05)]
)
def test_what_does_not_fit_is_refused(option: str, value: float) -> None:
    with pytest.raises(InputError, match="bcp"):
        method("bcp", **{option: value})
