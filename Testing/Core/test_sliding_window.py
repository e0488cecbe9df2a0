"""Sliding-window prediction against the released loop, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from SFRCore.errors import Cancelled
from SFRCore.students import fast_stride, fast_window
from SFRCore.students.sliding_window import FAST_VOXELS, sliding_window, window_starts

PATCH = (8, 6, 4)


def volume(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def place_dependent(patches: Tensor) -> Tensor:
    """Probabilities that depend on the place within the patch, so that a wrong window shows."""
    ramp = torch.linspace(-1, 1, patches[0, 0].numel()).reshape(patches.shape[2:])
    values = patches[:, 0]
    return torch.stack([values + ramp, -values, 2 * ramp.expand_as(values)], 1).softmax(1)


def released(image: np.ndarray, patch: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """One window after the other, as UA-MT's test_single_case."""
    shape = image.shape
    pads = [max(p - s, 0) for p, s in zip(patch, shape, strict=True)]
    image = np.pad(image, [(t // 2, t - t // 2) for t in pads])
    scores = np.zeros((3, *image.shape))
    hits = np.zeros(image.shape)
    counts = [math.ceil((d - p) / s) + 1 for d, p, s in zip(image.shape, patch, stride, strict=True)]
    for index in np.ndindex(*counts):
        start = [min(i * s, d - p) for i, s, d, p in zip(index, stride, image.shape, patch, strict=True)]
        window = tuple(slice(b, b + p) for b, p in zip(start, patch, strict=True))
        part = torch.from_numpy(image[window][None, None])
        scores[(slice(None), *window)] += place_dependent(part)[0].numpy()
        hits[window] += 1
    crop = tuple(slice(t // 2, t // 2 + s) for t, s in zip(pads, shape, strict=True))
    return (scores / hits)[(slice(None), *crop)]


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 14), st.integers(1, 9)),
    st.tuples(st.integers(1, 8), st.integers(1, 6), st.integers(1, 4)),
    st.integers(1, 5),
)
def test_equals_the_released_loop(shape: tuple[int, ...], stride: tuple[int, ...], batch: int) -> None:
    image = volume(shape)
    found = sliding_window(place_dependent, image, PATCH, stride=stride, batch=batch)
    assert found.dtype == np.float32 and found.shape == (3, *shape)
    np.testing.assert_allclose(found, released(image, PATCH, stride), atol=1e-6)


def test_starts_cover_the_axis_and_end_at_its_end() -> None:
    assert window_starts(20, 8, 6) == [0, 6, 12]
    assert window_starts(21, 8, 6) == [0, 6, 12, 13]
    assert window_starts(8, 8, 1) == [0]
    assert window_starts(16, 8, 8) == [0, 8]
    assert fast_stride((112, 112, 80)) == (84, 84, 60)
    assert fast_stride((1, 2, 3)) == (1, 1, 2)


def test_probabilities_stay_probabilities() -> None:
    found = sliding_window(place_dependent, volume((19, 5, 9)), PATCH, stride=(3, 3, 3))
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert found.min() >= 0


def test_overlaps_are_averaged_with_equal_weights() -> None:
    def edges(patches: Tensor) -> Tensor:
        """Certain of class 1 in the first half of the patch, of class 0 in the second."""
        first = torch.zeros_like(patches)
        first[:, :, :4] = 1
        return torch.cat([1 - first, first], 1)

    found = sliding_window(edges, volume((12, 6, 4)), PATCH, stride=(4, 6, 4))[1, :, 0, 0]
    np.testing.assert_allclose(found, [1] * 4 + [0.5] * 4 + [0] * 4, atol=1e-6)


def test_several_channels_and_a_memory_map(tmp_path) -> None:  # type: ignore[no-untyped-def]
    values = volume((2, 10, 7, 5))
    np.save(tmp_path / "volume.npy", values)
    mapped = np.load(tmp_path / "volume.npy", mmap_mode="r")
    seen = []

    def both(patches: Tensor) -> Tensor:
        seen.append(patches.shape)
        return torch.cat([patches[:, :1] - patches[:, 1:], patches[:, 1:]], 1)

    found = sliding_window(both, mapped, PATCH, stride=(2, 2, 2), batch=3)
    np.testing.assert_allclose(found[0], values[0] - values[1], atol=1e-5)
    np.testing.assert_allclose(found[1], values[1], atol=1e-5)
    assert {tuple(shape[1:]) for shape in seen} == {(2, *PATCH)}
    assert max(shape[0] for shape in seen) == 3


def test_half_precision_is_averaged_in_float32() -> None:
    def half(patches: Tensor) -> Tensor:
        return torch.full((len(patches), 2, *PATCH), 1 / 3, dtype=torch.float16)

    found = sliding_window(half, volume((20, 14, 9)), PATCH, stride=(1, 1, 1), batch=64)
    np.testing.assert_allclose(found, float(torch.tensor(1 / 3).half()), atol=1e-6)


def test_cancelled_before_the_next_batch() -> None:
    seen, calls = [], []

    def probabilities(patches: Tensor) -> Tensor:
        seen.append(len(patches))
        return place_dependent(patches)

    def check() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Cancelled("Stopped.")

    image = volume((20, 6, 4))
    with pytest.raises(Cancelled):
        sliding_window(probabilities, image, PATCH, stride=(4, 6, 4), batch=3, check=check)
    assert seen == [3]


def test_no_gradient_is_kept() -> None:
    factor = torch.ones(1, requires_grad=True)
    tracked = []

    def probabilities(patches: Tensor) -> Tensor:
        result = patches * factor
        tracked.append(result.requires_grad)
        return result

    sliding_window(probabilities, volume((9, 6, 4)), PATCH, stride=PATCH)
    assert tracked and not any(tracked)


@pytest.mark.parametrize("stride", [(0, 1, 1), (9, 6, 4), (4, 4)])
def test_strides_that_leave_gaps_are_refused(stride: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="stride"):
        sliding_window(place_dependent, volume((20, 20, 20)), PATCH, stride=stride)


def test_fast_windows_hold_the_volume_whole_where_memory_allows() -> None:
    assert fast_window((180, 140, 88), (112, 112, 80)) == ((192, 144, 96), (164, 116, 76))
    assert fast_window((20, 90, 100), (32, 80, 96))[0] == (32, 96, 112), "never smaller than the patch"
    assert fast_window((35, 50, 36), (32, 48, 32))[0] == (32, 48, 32), (
        "small patches stay as they were trained"
    )


@pytest.mark.parametrize("shape", [(512, 512, 300), (300, 120, 100), (113, 97, 500)])
@pytest.mark.parametrize("patch", [(112, 112, 80), (96, 96, 96), (32, 48, 32)])
def test_fast_windows_stay_within_memory_and_cover_with_overlap(shape, patch) -> None:
    window, stride = fast_window(shape, patch)
    assert math.prod(window) <= max(FAST_VOXELS, math.prod(patch))
    for size, side, least, step in zip(shape, window, patch, stride, strict=True):
        assert side % 16 == 0 and side >= least
        assert side - step == least // 4
        starts = window_starts(max(size, side), side, step)
        assert starts[-1] + side >= size
        assert len(starts) <= math.ceil(max(0, size - side) / step) + 1


def test_beyond_the_training_patch_the_border_goes_on_and_below_it_zeros_do() -> None:
    seen = []

    def probabilities(patches: torch.Tensor) -> torch.Tensor:
        seen.append(patches)
        return torch.ones(len(patches), 2, *patches.shape[2:]) / 2

    volume = np.ones((20, 10, 16), np.float32)
    found = sliding_window(probabilities, volume, (32, 16, 16), stride=(32, 16, 16), trained_on=(16, 16, 16))
    assert found.shape == (2, 20, 10, 16)
    assert seen[0][0, 0, :, 8, 8].min() == 1, "20 voxels of at least 16: continued to 32"
    assert seen[0][0, 0, 8, 0, 8] == 0, "10 voxels of 16: zeros, as in training"
