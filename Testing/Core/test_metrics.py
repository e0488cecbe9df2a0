"""Scores against medpy, hand-made cases, and the empty cases that it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from SFRCore.errors import InputError
from SFRCore.stages.metrics import case_scores, surface

medpy = pytest.importorskip("medpy.metric.binary")

SPACINGS = [None, (0.6, 0.9, 3.0)]


def blobs(seed: int, shape: tuple[int, int, int] = (24, 20, 14), quantile: float = 0.7) -> NDArray[np.uint8]:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.0)
    return (noise > np.quantile(noise, quantile)).astype(np.uint8)


def assert_like_medpy(
    prediction: NDArray[np.uint8], reference: NDArray[np.uint8], spacing: tuple[float, ...] | None
) -> None:
    scores = case_scores(prediction, reference, 2, spacing=spacing)[1]
    assert scores["dice"] == pytest.approx(medpy.dc(prediction, reference), abs=1e-12)
    assert scores["jaccard"] == pytest.approx(medpy.jc(prediction, reference), abs=1e-12)
    assert scores["asd"] == pytest.approx(medpy.asd(prediction, reference, voxelspacing=spacing), abs=1e-9)
    assert scores["hd95"] == pytest.approx(medpy.hd95(prediction, reference, voxelspacing=spacing), abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", range(6))
def test_random_blobs_that_touch_the_border_score_as_in_medpy(
    seed: int, spacing: tuple[float, ...] | None
) -> None:
    reference = blobs(seed)
    noise = np.random.default_rng(seed + 100).random(reference.shape) < 0.05
    assert reference[0].any() or reference[-1].any() or reference[:, 0].any()
    assert_like_medpy(reference ^ noise, reference, spacing)
    assert_like_medpy(blobs(seed + 50, quantile=0.9), reference, spacing)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_far_apart_boxes_single_voxels_and_a_full_array_score_as_in_medpy(
    spacing: tuple[float, ...] | None,
) -> None:
    empty = np.zeros((20, 16, 12), np.uint8)
    near, far, voxel = empty.copy(), empty.copy(), empty.copy()
    near[1:5, 2:6, 3:7] = 1
    far[12:20, 9:16, 8:12] = 1
    voxel[0, 0, 0] = 1
    full = np.ones_like(empty)
    for prediction in (near, far, voxel, full):
        for reference in (near, far, voxel, full):
            assert_like_medpy(prediction, reference, spacing)


def test_average_distance_runs_from_prediction_to_reference() -> None:
    reference = np.zeros((30, 10, 10), np.uint8)
    reference[2:6, 2:6, 2:6] = 1
    prediction = reference.copy()
    prediction[26, 4, 4] = 1
    there = case_scores(prediction, reference, 2)[1]["asd"]
    back = case_scores(reference, prediction, 2)[1]["asd"]
    assert there > 0.3
    assert back == 0.0


def test_spacing_turns_voxels_into_millimetres() -> None:
    reference = np.zeros((12, 12, 12), np.uint8)
    prediction = reference.copy()
    reference[4, 4, 4] = 1
    prediction[4, 4, 7] = 1
    assert case_scores(prediction, reference, 2)[1]["hd95"] == 3.0
    assert case_scores(prediction, reference, 2, spacing=(1.0, 1.0, 6.0))[1]["hd95"] == 18.0


def test_each_structure_is_scored_by_itself() -> None:
    reference = np.zeros((10, 10, 10), np.uint8)
    reference[1:4, 1:4, 1:4] = 1
    reference[6:9, 6:9, 6:9] = 7
    prediction = reference.copy()
    prediction[prediction == 7] = 0
    by_value = case_scores(prediction, reference, [1, 7])
    assert list(by_value) == [1, 7]
    assert by_value[1] == {"dice": 1.0, "jaccard": 1.0, "asd": 0.0, "hd95": 0.0}
    assert by_value[7]["dice"] == 0.0
    assert list(case_scores(prediction, reference, 3)) == [1, 2]


def test_empty_maps() -> None:
    empty = np.zeros((6, 6, 6), np.uint8)
    some = empty.copy()
    some[2:4, 2:4, 2:4] = 1
    for prediction, reference, overlap in [(empty, some, 0.0), (some, empty, 0.0), (empty, empty, 1.0)]:
        strict = case_scores(prediction, reference, 2, mode="strict")[1]
        assert strict["dice"] == strict["jaccard"] == overlap
        assert math.isnan(strict["asd"]) and math.isnan(strict["hd95"])
        official = case_scores(prediction, reference, 2, mode="official")[1]
        assert official == {"dice": 0.0, "jaccard": 0.0, "asd": 0.0, "hd95": 0.0}


def test_border_voxels_are_surface() -> None:
    assert np.count_nonzero(surface(np.ones((5, 5, 5), bool))) == 125 - 27


def test_bad_arguments_are_refused() -> None:
    a, b = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 5), np.uint8)
    with pytest.raises(InputError, match="4 x 4 x 4 voxels and the reference 4 x 4 x 5"):
        case_scores(a, b, 2)
    with pytest.raises(InputError, match="way of scoring called 'lenient'"):
        case_scores(a, a, 2, mode="lenient")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="does not fit"):
        case_scores(a, a, 2, spacing=(1.0, 1.0))
    with pytest.raises(InputError, match="does not fit"):
        case_scores(a, a, 2, spacing=(1.0, 0.0, 1.0))
