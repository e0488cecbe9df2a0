"""Frames: any orientation in, the same voxels and the same geometry out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from SFRCore.volumes import Frame, Geometry, VolumeError, choose_stack_axis, read_image

DATA = Path(__file__).parents[3] / "shared/data"


@st.composite
def images(draw: st.DrawFn) -> sitk.Image:
    size = draw(st.tuples(*[st.integers(2, 9)] * 3))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.integers(-1000, 3000, size=size).astype(np.int16))
    image.SetSpacing(tuple(draw(st.floats(0.1, 10.0)) for _ in range(3)))
    image.SetOrigin(tuple(draw(st.floats(-500.0, 500.0)) for _ in range(3)))
    axes = np.eye(3)[:, draw(st.permutations(range(3)))] * [draw(st.sampled_from((-1, 1))) for _ in range(3)]
    tilt = Rotation.from_rotvec([draw(st.floats(-0.6, 0.6)) for _ in range(3)]).as_matrix()
    image.SetDirection((tilt @ axes).ravel() if draw(st.booleans()) else axes.ravel())
    return image


def internal_axis_directions(frame: Frame) -> np.ndarray:
    signs = np.where(frame.flips, -1.0, 1.0)
    return frame.geometry.axes[:, list(frame.axes)] * signs


@settings(deadline=None, max_examples=60)
@given(image=images(), stack_axis=st.integers(0, 2))
def test_there_and_back_is_voxel_exact_with_bit_equal_geometry(image: sitk.Image, stack_axis: int) -> None:
    frame = Frame.of(image, stack_axis=stack_axis)
    array = frame.to_internal(image)
    assert array.dtype == np.float32 and array.flags.c_contiguous
    assert array.shape == frame.shape == frame.native_shape

    back = frame.to_image(array, np.int16)
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))
    assert Geometry.of(back) == Geometry.of(image)
    assert frame.to_native(array) is array


@settings(deadline=None, max_examples=60)
@given(image=images(), stack_axis=st.integers(0, 2))
def test_internal_axes_are_the_nearest_lps_axes_with_the_stack_last(
    image: sitk.Image, stack_axis: int
) -> None:
    frame = Frame.of(image, stack_axis=stack_axis)
    directions = internal_axis_directions(frame)
    order = [a for a in range(3) if a != stack_axis] + [stack_axis]
    closeness = directions[order, range(3)]
    assert (closeness > 0).all()
    best = max(
        sum(abs(frame.geometry.axes[lps, axis]) for lps, axis in enumerate(p))
        for p in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    )
    assert closeness.sum() == pytest.approx(best)


@settings(deadline=None, max_examples=50)
@given(image=images(), stack_axis=st.integers(0, 2), data=st.data())
def test_a_voxel_and_its_slice_are_found_in_the_file(
    image: sitk.Image, stack_axis: int, data: st.DataObject
) -> None:
    frame = Frame.of(image, stack_axis=stack_axis)
    place = tuple(data.draw(st.integers(0, n - 1)) for n in frame.shape)
    marked = np.zeros(frame.shape, dtype=np.uint8)
    marked[place] = 7
    in_file = sitk.GetArrayFromImage(frame.to_image(marked)).transpose()
    index = tuple(int(i) for i in np.argwhere(in_file == 7)[0])

    axis, number = frame.slice_to_original(place[2])
    assert index[axis] == number
    assert frame.to_internal(image)[place] == image.GetPixel(index)


@settings(deadline=None, max_examples=25)
@given(image=images(), stack_axis=st.integers(0, 2))
def test_a_frame_survives_json_bit_for_bit(image: sitk.Image, stack_axis: int) -> None:
    frame = Frame.of(image, stack_axis=stack_axis, spacing=(1.0, 1.0, 2.0))
    assert Frame.from_dict(json.loads(json.dumps(frame.to_dict()))) == frame


def sphere(shape: tuple[int, int, int], spacing: tuple[float, float, float], radius: float) -> sitk.Image:
    grid = np.stack(
        np.meshgrid(*[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    )
    centre = np.array([(n - 1) * s / 2 for n, s in zip(shape, spacing, strict=True)]).reshape(3, 1, 1, 1)
    distance = np.sqrt(((grid - centre) ** 2).sum(0))
    image = sitk.GetImageFromArray((100 / (1 + np.exp(distance - radius))).astype(np.float32).transpose())
    image.SetSpacing(spacing)
    image.SetDirection((-1, 0, 0, 0, 0, 1, 0, -1, 0))
    return image


def test_resampling_keeps_the_field_of_view_and_the_shape_of_things() -> None:
    image = sphere((40, 36, 20), (1.0, 1.0, 2.0), 11.0)
    native = Frame.of(image, stack_axis=1)
    frame = Frame.of(image, stack_axis=1, spacing=(1.5, 1.5, 1.5))
    assert frame.native_shape == native.shape == (40, 36, 20)
    extents = np.array(frame.shape) * frame.spacing
    assert extents == pytest.approx(np.array(frame.native_shape) * frame.native_spacing)
    assert np.array(frame.spacing) == pytest.approx((1.5, 1.5, 1.5), rel=0.05)

    array = frame.to_internal(image)
    assert array.shape == frame.shape
    returned = frame.to_native(array)
    truth = native.to_internal(image)
    assert np.abs(returned - truth).max() < 20 and np.abs(returned - truth).mean() < 1.0

    label = sitk.Cast(image > 50, sitk.sitkUInt16) * 3
    coarse = frame.to_internal(label, label=True)
    assert coarse.dtype == np.uint16 and set(np.unique(coarse)) == {0, 3}
    volume = (coarse == 3).sum() * np.prod(frame.spacing)
    assert volume == pytest.approx((native.to_internal(label, label=True) == 3).sum() * 2.0, rel=0.05)
    fine = frame.to_native(coarse, label=True)
    truth_label = native.to_internal(label, label=True)
    dice = 2 * ((fine == 3) & (truth_label == 3)).sum() / ((fine == 3).sum() + (truth_label == 3).sum())
    assert dice > 0.93


def test_probabilities_come_back_by_channel_and_still_sum_to_one() -> None:
    image = sphere((12, 10, 8), (1.0, 1.0, 2.0), 3.0)
    frame = Frame.of(image, stack_axis=2, spacing=(2.0, 2.0, 2.0))
    p = np.random.default_rng(0).random((3, *frame.shape)).astype(np.float32)
    p /= p.sum(0, keepdims=True)
    native = frame.to_native(p)
    assert native.shape == (3, *frame.native_shape) and native.dtype == np.float32
    assert native.sum(0) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(native[1], frame.to_native(p[1]))


def test_thick_slices_are_not_mixed_when_resampled() -> None:
    array = np.zeros((16, 16, 6), dtype=np.float32)
    array[:, :, 3] = 100
    image = sitk.GetImageFromArray(array.transpose())
    image.SetSpacing((0.6, 0.6, 6.0))
    frame = Frame.of(image, stack_axis=2, spacing=(1.2, 1.2, 3.0))
    resampled = frame.to_internal(image)
    assert resampled.shape == (8, 8, 12)
    assert set(np.round(np.unique(resampled), 3)) == {0.0, 100.0}
    assert (resampled[:, :, 6:8] == pytest.approx(100.0)) and resampled[:, :, [5, 8]] == pytest.approx(0.0)
    assert [frame.slice_to_original(z) for z in (0, 6, 7, 11)] == [(2, 0), (2, 3), (2, 3), (2, 5)]


def test_asking_for_the_native_spacing_resamples_nothing() -> None:
    image = sphere((9, 8, 7), (0.7, 0.9, 3.0), 2.0)
    frame = Frame.of(image, stack_axis=1)
    same = Frame.of(image, stack_axis=1, spacing=frame.spacing)
    assert same == frame
    assert np.array_equal(same.to_internal(image), frame.to_internal(image))


def test_what_does_not_belong_is_refused() -> None:
    image = sphere((9, 8, 7), (1.0, 1.0, 1.0), 2.0)
    frame = Frame.of(image, stack_axis=2)
    moved = sitk.Image(image)
    moved.SetOrigin((0.5, 0, 0))
    with pytest.raises(VolumeError, match="shifted by 0.5 mm"):
        frame.to_internal(moved)
    with pytest.raises(ValueError, match="shape"):
        frame.to_image(np.zeros((9, 8, 8)))
    with pytest.raises(ValueError, match="shape"):
        frame.to_native(np.zeros((2, 9, 8, 6)))
    with pytest.raises(ValueError, match="slice 8 is outside 0 to 7"):
        frame.slice_to_original(8)
    with pytest.raises(ValueError, match="stack_axis"):
        Frame.of(image, stack_axis=3)
    with pytest.raises(ValueError, match="spacing"):
        Frame.of(image, stack_axis=2, spacing=(1.0, 0.0, 1.0))


def test_boolean_arrays_become_label_maps() -> None:
    image = sphere((9, 8, 7), (1.0, 1.0, 1.0), 2.0)
    frame = Frame.of(image, stack_axis=0)
    mask = frame.to_internal(image) > 50
    written = frame.to_image(mask)
    assert written.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(frame.to_internal(written, label=True) == 1, mask)


def plain(spacing: tuple[float, float, float], direction: np.ndarray | None = None) -> sitk.Image:
    image = sitk.Image((4, 4, 4), sitk.sitkInt16)
    image.SetSpacing(spacing)
    if direction is not None:
        image.SetDirection(direction.ravel())
    return image


def test_the_stack_axis_is_the_coarsest_lps_axis_of_the_cohort() -> None:
    assert choose_stack_axis([plain((0.6, 0.6, 6.0))]) == 2
    assert choose_stack_axis([plain((6.0, 0.6, 0.6))]) == 0
    sagittal = np.array([[0, 0, 1], [1, 0, 0], [0, -1, 0]], float)
    assert choose_stack_axis([plain((0.6, 0.6, 6.0), sagittal)]) == 0
    coronal = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float)
    assert choose_stack_axis([plain((0.6, 0.6, 6.0), coronal)]) == 1
    assert choose_stack_axis([plain((0.6, 0.6, 6.0), coronal)] + [plain((0.6, 0.6, 6.0))] * 2) == 2


def test_a_tie_goes_to_the_axial_axis_whatever_rounding_says() -> None:
    assert choose_stack_axis([plain((1.0, 1.0, 1.0))]) == 2
    assert choose_stack_axis([plain((0.6250001, 0.625, 0.625))]) == 2
    assert choose_stack_axis([]) == 2


@pytest.mark.skipif(not DATA.is_dir(), reason=f"real volumes are not at {DATA}")
@pytest.mark.parametrize(
    "name", ["abdomen_ct/images/ct.nii.gz", "abdomen_ct/dicom", "abdomen_ct/mr_unlabeled.nii.gz"]
)
def test_real_volumes_return_exactly(name: str) -> None:
    image = read_image(DATA / name)
    for stack_axis in range(3):
        frame = Frame.of(image, stack_axis=stack_axis)
        back = frame.to_image(frame.to_internal(image), np.int16)
        assert Geometry.of(back) == Geometry.of(image)
        assert np.array_equal(sitk.GetArrayViewFromImage(back), sitk.GetArrayViewFromImage(image))


def test_native_slices_are_the_files_own_also_where_voxels_are_resampled() -> None:
    image = sitk.Image(12, 10, 30, sitk.sitkInt16)
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    frame = Frame.of(image, stack_axis=2, spacing=(1.0, 1.0, 2.0))
    assert frame.shape[2] == 15 and frame.native_shape[2] == 30
    assert [frame.native_slice(z)[1] for z in range(30)] == list(range(29, -1, -1))
    with pytest.raises(ValueError, match="outside 0 to 29"):
        frame.native_slice(30)
