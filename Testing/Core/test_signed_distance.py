"""Signed distance maps against the distance transform of SciPy, and what they are worth by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from SFRCore.ssl.signed_distance import signed_distance


def distance_by_hand(
    labels: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_], classes: int
) -> npt.NDArray[np.float64]:
    """DTC's target: normalised outer minus normalised inner distance, 0 on the inner boundary."""
    maps = np.zeros((len(labels), classes - 1, *labels.shape[1:]))
    cross = ndimage.generate_binary_structure(3, 1)
    for b, c in np.ndindex(len(labels), classes - 1):
        inside = (labels[b] == c + 1) & valid[b]
        if inside.any():
            outer, inner = ndimage.distance_transform_edt(~inside), ndimage.distance_transform_edt(inside)
            signed = outer / outer[valid[b]].max() - inner / inner[valid[b]].max()
            signed[inside & ~ndimage.binary_erosion(inside, cross, border_value=1)] = 0
            maps[b, c] = signed
    return maps


def test_maps_equal_the_definition_on_random_structures() -> None:
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.avg_pool3d(torch.randn(2, 1, 15, 13, 18, generator=generator), 5, 1)[:, 0]
    labels = torch.bucketize(smooth, torch.tensor([-0.02, 0.05]))
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[:, -2:] = False
    found = signed_distance(labels, valid, 4).numpy()
    expected = distance_by_hand(labels.numpy(), valid.numpy(), 4)
    assert np.abs(found - expected)[:, :2].max() < 1e-6
    assert not found[:, 2].any(), "a structure that is nowhere has distance 0"
    on_valid = found[:, :2][np.broadcast_to(valid.numpy()[:, None], found[:, :2].shape)]
    assert on_valid.min() == -1.0 and on_valid.max() == 1.0


def test_padded_labels_do_not_matter() -> None:
    labels = torch.zeros(1, 6, 6, 6, dtype=torch.long)
    labels[:, 1:4, 1:4, 1:4] = 1
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[..., -1:] = False
    expected = signed_distance(labels, valid, 2)
    labels[..., -1:] = 1
    assert torch.equal(signed_distance(labels, valid, 2), expected)


def test_the_centre_of_a_cube_and_a_crop_all_inside() -> None:
    labels = torch.zeros(1, 9, 9, 9, dtype=torch.long)
    labels[:, 2:7, 2:7, 2:7] = 1
    found = signed_distance(labels, torch.ones_like(labels, dtype=torch.bool), 2)[0, 0]
    assert found[4, 4, 4] == -1.0 and found[2, 4, 4] == 0.0 and found[0, 0, 0] == 1.0
    assert torch.isclose(found[3, 4, 4], torch.tensor(-2 / 3))
    assert torch.isclose(found[1, 4, 4], torch.tensor(1 / 12**0.5))
    inside = torch.ones_like(labels)
    assert (signed_distance(inside, inside.bool(), 2) == -1.0).all()
