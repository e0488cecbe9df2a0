"""The canvas layout: the reference's numbers, and exact round trips for any patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SFRCore.errors import InputError
from SFRCore.stitching import StitchLayout, choose_canvas

# patch, tiles, (row, column) of slice 0, tile pitch, index of the tile of slice 0, ignored pixels, canvases
REFERENCE = [
    ((112, 112, 80), (9, 9), (0, 0), 114, 0, 45_056, 1),
    ((96, 96, 96), (10, 10), (5, 5 + 2 * 102), 102, 2, 163_840, 1),
    ((128, 128, 64), (8, 8), (0, 0), 128, 0, 0, 1),
    ((128, 128, 128), (8, 8), (0, 0), 128, 0, 0, 2),
    ((160, 160, 96), (6, 6), (7, 7), 170, 0, 3 * 1024**2 - 3 * 36 * 160**2, 3),
]


@pytest.mark.parametrize(("patch", "tiles", "first", "pitch", "empty", "ignored", "canvases"), REFERENCE)
def test_layout_has_the_numbers_of_the_reference(
    patch: tuple[int, int, int],
    tiles: tuple[int, int],
    first: tuple[int, int],
    pitch: int,
    empty: int,
    ignored: int,
    canvases: int,
) -> None:
    layout = StitchLayout(patch, 1024)
    assert layout.tiles == tiles
    assert layout.canvases == canvases
    assert layout.offset(0) == (0, *first)
    assert int((~layout.valid).sum()) == ignored
    assert layout.filled == pytest.approx(1 - ignored / layout.valid.numel())
    last_in_row = tiles[1] - 1 - empty
    assert layout.offset(last_in_row)[1:] == (first[0], first[1] + last_in_row * pitch)
    assert layout.offset(last_in_row + 1)[1] == first[0] + pitch
    if canvases == 1:
        z = patch[2] - 1
        row, column = divmod(z + empty, tiles[1])
        assert layout.offset(z) == (0, first[0] + row * pitch, first[1] - empty * pitch + column * pitch)


def test_left_atrium_tiles_end_at_the_last_pixel() -> None:
    layout = StitchLayout((112, 112, 80), 1024)
    assert layout.offset(79) == (0, 8 * 114, 7 * 114)
    assert layout.valid[0, 1023, 7 * 114] and not layout.valid[0, 1023, 1023]
    assert layout.offset(8)[2] + 112 == 1024


@pytest.mark.parametrize(
    "patch", [(112, 112, 80), (96, 112, 96), (80, 112, 112), (160, 160, 40), (33, 70, 150)]
)
def test_round_trip_and_transposed_tiles_at_1024(patch: tuple[int, int, int]) -> None:
    layout = StitchLayout(patch, 1024)
    volume = torch.from_numpy(np.random.default_rng(0).integers(0, 14, patch, dtype=np.uint8))
    canvas = layout.stitch(volume, 255)
    assert canvas.shape == (layout.canvases, 1024, 1024)
    assert torch.equal(layout.unstitch(canvas), volume)
    assert bool((canvas[~layout.valid] == 255).all()) and not bool((canvas[layout.valid] == 255).any())
    for z in (0, patch[2] // 2, patch[2] - 1):
        n, row, column = layout.offset(z)
        tile = canvas[n, row : row + patch[1], column : column + patch[0]]
        assert torch.equal(tile, volume[:, :, z].T)


@settings(max_examples=60, deadline=None)
@given(
    patch=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 40)),
    canvas=st.integers(40, 90),
    zoom=st.integers(1, 2),
)
def test_labels_and_images_come_back_whole_for_any_patch(
    patch: tuple[int, int, int], canvas: int, zoom: int
) -> None:
    layout = StitchLayout(patch, canvas, zoom)
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, (2, *patch), dtype=np.int64)
    assert np.array_equal(layout.unstitch(layout.stitch(labels, 255)), labels)
    image = rng.normal(size=(2, 1, *patch)).astype(np.float32)
    back = layout.unstitch(layout.stitch(image, 0))
    assert back.dtype == np.float32 and back.shape == image.shape
    np.testing.assert_allclose(back, image, rtol=0, atol=0 if zoom == 1 else 1e-6)


def test_every_slice_is_shown_where_there_are_more_slices_than_tiles() -> None:
    layout = StitchLayout((8, 8, 21), 32)
    assert layout.tiles == (4, 4) and layout.canvases == 2
    assert layout.offset(15)[0] == 0 and layout.offset(16)[0] == 1
    volume = torch.arange(8 * 8 * 21, dtype=torch.float32).reshape(8, 8, 21)
    canvas = layout.stitch(volume, -1.0)
    assert torch.equal(canvas[1, :8, :8], volume[:, :, 5].T)
    assert torch.equal(layout.unstitch(canvas), volume)


def test_doubly_covered_slices_are_averaged_for_floats_and_first_for_integers() -> None:
    layout = StitchLayout((8, 8, 21), 32)
    scores = torch.stack([torch.zeros(32, 32), torch.ones(32, 32)])
    by_slice = layout.unstitch(scores)[0, 0]
    assert by_slice.tolist() == [0.0] * 5 + [0.5] * 11 + [1.0] * 5
    assert layout.unstitch(scores.long())[0, 0].tolist() == [0] * 16 + [1] * 5


def test_zoom_repeats_labels_and_interpolates_images() -> None:
    layout = StitchLayout((3, 5, 4), 32, zoom=3)
    labels = torch.arange(60, dtype=torch.uint8).reshape(3, 5, 4)
    canvas = layout.stitch(labels, 255)
    n, row, column = layout.offset(2)
    assert bool((canvas[n, row + 3 : row + 6, column : column + 3] == labels[0, 1, 2]).all())
    assert torch.equal(layout.unstitch(canvas), labels)
    ramp = torch.arange(3.0)[:, None, None].expand(3, 5, 4)
    smooth = layout.stitch(ramp, 0.0, smooth=True)[n, row, column : column + 9]
    assert torch.allclose(smooth[1:8].diff(), torch.full((6,), 1 / 3), atol=1e-6)
    probabilities = torch.rand(2, *layout.stitch(labels, 0).shape)
    expected = probabilities[:, n, row : row + 3, column : column + 3].mean(dim=(1, 2))
    assert torch.allclose(layout.unstitch(probabilities)[:, 0, 0, 2], expected)


def test_gradient_flows_through_stitch_and_unstitch() -> None:
    layout = StitchLayout((4, 6, 9), 16, zoom=2)
    patch = torch.rand(4, 6, 9, requires_grad=True)
    layout.unstitch(layout.stitch(patch, 0.0, smooth=True)).sum().backward()
    assert patch.grad is not None and patch.grad.shape == patch.shape
    assert float(patch.grad.sum()) == pytest.approx(4 * 6 * 9, rel=1e-4)


def test_numpy_in_numpy_out_for_the_types_that_files_have() -> None:
    layout = StitchLayout((5, 4, 3), 16)
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64):
        volume = np.arange(60).reshape(5, 4, 3).astype(dtype)
        canvas = layout.stitch(volume, 0)
        assert isinstance(canvas, np.ndarray) and canvas.dtype == dtype
        assert np.array_equal(layout.unstitch(canvas), volume)


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="does not fit on a canvas of 64 pixels"):
        StitchLayout((80, 32, 4), 64)
    with pytest.raises(InputError, match="does not fit"):
        StitchLayout((40, 32, 4), 64, zoom=2)
    with pytest.raises(ValueError, match="expects"):
        StitchLayout((8, 8, 4), 32).stitch(torch.zeros(8, 8, 5), 0)


@pytest.mark.parametrize(
    ("patch", "limit", "expected"),
    [
        ((112, 112, 80), 1024, (1008, 1)),
        ((96, 96, 96), 1024, (960, 1)),
        ((128, 128, 64), 1024, (1024, 1)),
        ((128, 128, 128), 1024, (1024, 1)),
        ((48, 48, 48), 1024, (1008, 3)),
        ((64, 64, 4), 1024, (512, 4)),
        ((32, 32, 32), 256, (192, 1)),
    ],
)
def test_choose_canvas(patch: tuple[int, int, int], limit: int, expected: tuple[int, int]) -> None:
    assert choose_canvas(patch, limit) == expected
    canvas, zoom = expected
    layout = StitchLayout(patch, canvas, zoom)
    assert layout.canvases == 1 or canvas == limit


def test_choose_canvas_refuses_slices_larger_than_the_foundation() -> None:
    with pytest.raises(InputError, match="larger than the canvas of 256 pixels"):
        choose_canvas((320, 64, 8), 256)
