"""Confident learning against its definition, voxel by voxel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from SFRCore.ssl.confident_learning import label_errors


def errors_by_hand(labels: npt.NDArray[np.int64], p: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Northcutt et al., JAIR 2021: pruning by class and by noise rate, both from the calibrated joint."""
    number, classes = p.shape
    present = [c for c in range(classes) if (labels == c).any()]
    threshold = {c: p[labels == c, c].mean() for c in present}
    joint = np.zeros((classes, classes))
    for voxel in range(number):
        candidates = [c for c in present if p[voxel, c] >= threshold[c] - 1e-6]
        if candidates:
            joint[labels[voxel], max(candidates, key=lambda c: p[voxel, c])] += 1
    for c in present:
        joint[c] *= (labels == c).sum() / joint[c].sum()
    by_class, by_rate = np.zeros(number, bool), np.zeros(number, bool)
    for i in present:
        members = np.flatnonzero(labels == i)
        worst = sorted(members, key=lambda v: p[v, i])
        by_class[worst[: round(joint[i].sum() - joint[i, i])]] = True
        for j in range(classes):
            if j != i:
                likely = sorted(members, key=lambda v: p[v, i] - p[v, j])
                by_rate[likely[: round(joint[i, j])]] = True
    return by_class & by_rate


@pytest.mark.parametrize(("classes", "absent"), [(2, None), (3, None), (4, 2)])
def test_the_definition_is_followed(classes: int, absent: int | None) -> None:
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, 700)
    p = rng.dirichlet(np.ones(classes), 700) + 1.5 * np.eye(classes)[truth]
    p /= p.sum(1, keepdims=True)
    given = np.where(rng.random(700) < 0.2, rng.integers(0, classes, 700), truth)
    if absent is not None:
        given[given == absent] = 0
    expected = errors_by_hand(given, p)
    found = label_errors(torch.from_numpy(given), torch.from_numpy(p)).numpy()
    assert 0 < expected.sum() < 700
    assert np.array_equal(found, expected)


def test_flipped_labels_are_found_and_clean_ones_kept() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 3000)
    p = 0.05 + 0.8 * np.eye(3)[truth] + 0.05 * rng.random((3000, 3))
    p /= p.sum(1, keepdims=True)
    flipped = rng.random(3000) < 0.1
    given = np.where(flipped, (truth + 1) % 3, truth)
    found = label_errors(torch.from_numpy(given), torch.from_numpy(p)).numpy()
    assert found[flipped].mean() > 0.95
    assert found[~flipped].mean() < 0.01
    assert not label_errors(torch.from_numpy(truth), torch.from_numpy(p)).any()


def test_one_class_alone_has_no_errors() -> None:
    p = torch.rand(50, 2).softmax(1)
    assert not label_errors(torch.zeros(50, dtype=torch.long), p).any()
