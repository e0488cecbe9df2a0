"""Augmentation: what moves moves together, curves are monotone, nothing is changed in place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SFRCore.volumes import Crop, bezier_intensity, random_flip, rot_flip_faithful
from SFRCore.volumes.augmentation import bezier_curve


def crop(shape: tuple[int, int, int] = (6, 6, 4), *, labels: bool = True) -> Crop:
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    label = (image % 200).astype(np.uint8) if labels else None
    return Crop(image, label, label, image % 3 > 0, (0, 0, 0))


def together(changed: Crop) -> bool:
    image = changed.image
    valid = np.array_equal(changed.valid, image % 3 > 0)
    labels = [a for a in (changed.label, changed.extra) if a is not None]
    return valid and all(np.array_equal(a, (image % 200).astype(np.uint8)) for a in labels)


@given(seed=st.integers(0, 1000), axes=st.sampled_from([(), (0,), (0, 1), (0, 1, 2)]), labels=st.booleans())
def test_flips_move_image_labels_and_validity_together(
    seed: int, axes: tuple[int, ...], labels: bool
) -> None:
    before = crop(labels=labels)
    copy = before.image.copy()
    after = random_flip(np.random.default_rng(seed), before, axes)
    assert together(after) and after.image.flags.c_contiguous
    assert np.array_equal(before.image, copy)
    assert (after.label is None) == (not labels)
    assert np.array_equal(np.sort(after.image, axis=None), copy.ravel())


def test_each_axis_is_flipped_half_of_the_time_and_only_when_asked() -> None:
    rng, before = np.random.default_rng(0), crop()
    counts = np.zeros(3)
    for _ in range(2000):
        after = random_flip(rng, before, (0, 2))
        corner = np.argwhere(after.image == 0)[0]
        counts += corner > 0
    assert counts[0] == pytest.approx(1000, abs=100) and counts[2] == pytest.approx(1000, abs=100)
    assert counts[1] == 0


def test_the_released_rotation_yields_exactly_the_four_mirror_images() -> None:
    before, rng = crop(), np.random.default_rng(0)
    seen = {rot_flip_faithful(rng, before).image.tobytes() for _ in range(200)}
    mirrored = {
        np.ascontiguousarray(np.flip(np.rot90(before.image, k, axes=(0, 1)), axis)).tobytes()
        for k in range(4)
        for axis in (0, 1)
    }
    proper = {np.ascontiguousarray(np.rot90(before.image, k, axes=(0, 1))).tobytes() for k in range(4)}
    assert seen == mirrored and len(seen) == 4 and not seen & proper
    assert together(rot_flip_faithful(rng, before))


def test_the_released_rotation_keeps_the_shape_of_an_oblong_patch() -> None:
    rng, before = np.random.default_rng(0), crop((6, 4, 3))
    for _ in range(20):
        after = rot_flip_faithful(rng, before)
        assert after.image.shape == (6, 4, 3) and together(after)


@given(control=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_the_bezier_map_is_monotone_from_0_to_1(control: list[float]) -> None:
    x, y = bezier_curve(control)
    assert (np.diff(x) >= -1e-12).all() and (np.diff(y) >= -1e-12).all()
    assert (x[0], y[0]) == (0, 0) and x[-1] == pytest.approx(1) and y[-1] == pytest.approx(1)


def test_the_bezier_map_equals_the_released_one() -> None:
    """The released code takes 100 000 points and sorts x and y (Models Genesis, nonlinear_transformation)."""
    control = np.random.default_rng(3).random(4)
    t = np.linspace(0.0, 1.0, 100_000)
    points = np.array([[0, 0], control[:2], control[2:], [1, 1]])
    basis = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    reference = np.sort(points.T @ basis, axis=1)
    values = np.linspace(-0.5, 1.5, 1001)
    expected = np.interp(values, *reference)
    assert np.interp(values, *bezier_curve(control)) == pytest.approx(expected, abs=1e-4)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), per_slice=st.booleans())
def test_default_intensities_keep_their_order_and_range(seed: int, per_slice: bool) -> None:
    image = np.random.default_rng(seed).normal(size=(8, 8, 3)).astype(np.float32)
    copy = image.copy()
    bent = bezier_intensity(np.random.default_rng(seed), image, per_slice=per_slice, probability=1.0)
    assert np.array_equal(image, copy) and bent.dtype == np.float32
    low, high = np.percentile(image, [0.5, 99.5])
    assert bent.min() >= low - 1e-4 and bent.max() <= high + 1e-4
    for z in range(3):
        order = np.argsort(image[:, :, z], axis=None)
        assert (np.diff(bent[:, :, z].ravel()[order]) >= -1e-5).all()
    assert not np.array_equal(bent, image)


def test_faithful_cuts_the_values_below_the_mean_and_the_default_does_not() -> None:
    image = np.random.default_rng(0).normal(size=(16, 16, 4)).astype(np.float32)
    faithful = bezier_intensity(np.random.default_rng(1), image, probability=1.0, faithful=True)
    assert (faithful[image <= 0] == 0).all() and (faithful[image >= 1] == 1).all()
    default = bezier_intensity(np.random.default_rng(1), image, probability=1.0)
    assert len(np.unique(default[image <= 0])) > 400


def test_slices_are_bent_one_by_one_with_the_asked_probability() -> None:
    plane = np.random.default_rng(0).normal(size=(16, 16, 1)).astype(np.float32)
    image = np.repeat(plane, 400, axis=2)
    bent = bezier_intensity(np.random.default_rng(1), image, probability=0.5)
    untouched = [np.array_equal(bent[:, :, z], image[:, :, z]) for z in range(400)]
    assert sum(untouched) == pytest.approx(200, abs=40)
    curves = {bent[:, :, z].tobytes() for z in range(400) if not untouched[z]}
    assert len(curves) == 400 - sum(untouched)
    assert np.array_equal(bezier_intensity(np.random.default_rng(1), image, probability=0.0), image)
    whole = bezier_intensity(np.random.default_rng(1), image, per_slice=False, probability=1.0)
    assert (whole == whole[:, :, :1]).all()


def test_padding_does_not_count_in_the_range_of_the_curve() -> None:
    image = np.random.default_rng(0).normal(5.0, 1.0, size=(16, 16, 20)).astype(np.float32)
    valid = np.zeros(image.shape, bool)
    valid[:, :, 5:10] = True
    padded = np.where(valid, image, 0).astype(np.float32)
    bent = bezier_intensity(np.random.default_rng(1), padded, probability=1.0, valid=valid)
    alone = bezier_intensity(np.random.default_rng(1), padded[:, :, 5:10], per_slice=False, probability=1.0)
    low, high = np.percentile(image[valid], [0.5, 99.5])
    assert bent[valid].min() == pytest.approx(low) and bent[valid].max() == pytest.approx(high)
    assert alone.min() == pytest.approx(low) and alone.max() == pytest.approx(high)
    nothing = bezier_intensity(np.random.default_rng(1), padded, probability=1.0, valid=np.zeros_like(valid))
    assert np.isfinite(nothing).all()


def test_a_flat_image_stays_as_it_is() -> None:
    flat = np.full((4, 4, 4), 3.0, dtype=np.float32)
    assert np.array_equal(bezier_intensity(np.random.default_rng(0), flat, probability=1.0), flat)
