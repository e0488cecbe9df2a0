"""Confident learning: which given labels are probably wrong, by another model's probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-6


@torch.no_grad()
def label_errors(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Which of N labels (N,) int64 are probably wrong, given probabilities (N, C): (N,) bool.

    A label is flagged where pruning by class and pruning by noise rate both drop it. A class without any
    label is nobody's confident class.

    Source: Northcutt, Jiang and Chuang, JAIR 2021 (confident joint: section 3.1; pruning: section 3.2).
    """
    classes = probabilities.shape[1]
    expected = _joint(labels, probabilities).tolist()
    own = probabilities.gather(1, labels[:, None])[:, 0]
    by_class = torch.zeros_like(labels, dtype=torch.bool)
    by_rate = torch.zeros_like(by_class)
    for given in range(classes):
        members = (labels == given).nonzero()[:, 0]
        wrong = [expected[given][other] if other != given else 0.0 for other in range(classes)]
        by_class[_highest(members, -own[members], sum(wrong))] = True
        for other in range(classes):
            margin = probabilities[members, other] - own[members]
            by_rate[_highest(members, margin, wrong[other])] = True
    return by_class & by_rate


def _joint(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Expected numbers (C, C) of given label against true label; rows sum to the numbers of labels."""
    classes = probabilities.shape[1]
    counts = torch.bincount(labels, minlength=classes)
    confident = torch.empty_like(probabilities, dtype=torch.bool)
    for index in range(classes):
        threshold = probabilities[labels == index, index].double().mean()  # NaN: nothing exceeds it
        confident[:, index] = probabilities[:, index] >= threshold - TOLERANCE
    true = probabilities.masked_fill(~confident, -1.0).argmax(1)
    sure = confident.any(1)
    joint = torch.bincount(labels[sure] * classes + true[sure], minlength=classes**2)
    joint = joint.view(classes, classes).double()
    return joint / joint.sum(1, keepdim=True).clamp(min=1.0) * counts[:, None]


def _highest(members: Tensor, scores: Tensor, number: float) -> Tensor:
    """The (rounded) number of members with the highest scores."""
    return members[scores.topk(round(number)).indices]
