"""Batches are drawn from the seed and the step alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from SFRCore.stages.data import CropSource, make_batch


@dataclass
class Volume:
    """An array in place of a cached volume."""

    image: np.ndarray
    label: np.ndarray | None
    foreground: np.ndarray | None


def volume(seed: int, shape: tuple[int, int, int] = (20, 24, 12)) -> Volume:
    rng = np.random.default_rng(seed)
    label = (rng.random(shape) < 0.02).astype(np.uint8)
    return Volume(rng.normal(size=shape).astype(np.float32), label, np.argwhere(label > 0).astype(np.int32))


def source(count: int, **options: object) -> CropSource:
    volumes = {f"case_{index}": volume(index) for index in range(count)}
    return CropSource(volumes, (16, 16, 16), seed=3, stream=0, flip_axes=(0,), **options)  # type: ignore[arg-type]


def test_any_step_can_be_drawn_again() -> None:
    first, again = source(3), source(3)
    later = [first.crops(step, 2) for step in range(6)][5]
    alone = again.crops(5, 2)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(later, alone, strict=True))


def test_every_pass_sees_every_case_once() -> None:
    stream = source(4)
    for epoch in range(5):
        assert sorted(stream.case_at(4 * epoch + i) for i in range(4)) == sorted(stream.volumes)


def test_one_labeled_case_fills_a_batch_with_different_crops() -> None:
    a, b = source(1).crops(0, 2)
    assert not np.array_equal(a.image, b.image)


def test_processes_draw_different_crops_of_one_stream() -> None:
    stream = source(4)
    together = stream.crops(0, 4)
    apart = [crop for rank in (0, 1) for crop in stream.crops(0, 2, rank, 2)]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(together, apart, strict=True))


def test_foreground_is_in_at_least_one_of_three_crops() -> None:
    volumes = {"case": volume(1, (64, 64, 64))}
    volumes["case"].label = np.zeros((64, 64, 64), np.uint8)
    volumes["case"].label[2, 2, 2] = 1
    volumes["case"].foreground = np.array([[2, 2, 2]], np.int32)
    stream = CropSource(volumes, (16, 16, 16), seed=0, stream=0)  # type: ignore[arg-type]
    hits = np.mean([stream.crop(index).label.max() for index in range(300)])
    assert 0.25 < hits < 0.45


def test_padding_is_marked_and_batches_have_the_contracts_shapes() -> None:
    stream = source(2)
    batch = make_batch(stream.crops(0, 2), stream.crops(1, 3), "label")
    assert batch.labeled_images.shape == (2, 1, 16, 16, 16)
    assert batch.unlabeled_images.shape == (3, 1, 16, 16, 16)
    assert batch.pseudo_labels is not None and batch.pseudo_labels.shape == (3, 16, 16, 16)
    assert not batch.labeled_valid[..., 0].any() and batch.labeled_valid[..., 8].all(), (
        "12 slices in a patch of 16"
    )
    assert batch.labeled_images[..., 0].abs().max() == 0


def test_overrides_replace_the_volumes_own_labels() -> None:
    made = {f"case_{index}": np.full((20, 24, 12), 2, np.uint8) for index in range(2)}
    stream = source(2, overrides=made)
    batch = make_batch([], stream.crops(0, 2), "extra")
    assert batch.pseudo_labels is not None
    assert set(batch.pseudo_labels[batch.unlabeled_valid].tolist()) == {2}
    assert len(batch.labeled_images) == 0


@pytest.mark.parametrize("share", [0, 1])
def test_streams_differ(share: int) -> None:
    volumes = {f"case_{index}": volume(index) for index in range(3)}
    ours = CropSource(volumes, (16, 16, 16), seed=3, stream=share)  # type: ignore[arg-type]
    other = CropSource(volumes, (16, 16, 16), seed=3, stream=2)  # type: ignore[arg-type]
    assert [crop.start for crop in ours.crops(0, 6)] != [crop.start for crop in other.crops(0, 6)]
