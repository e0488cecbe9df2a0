"""The cache, normalisation and random crops."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from SFRCore.runtime.identity import file_identity
from SFRCore.volumes import (
    Frame,
    Normalisation,
    Preprocessing,
    VolumeCache,
    VolumeError,
    cache,
    crop_at,
    random_crop,
    read_image,
    write_volume,
)
from SFRCore.volumes.crops import sample_foreground

PLAIN = Preprocessing(2, None, Normalisation(), (3, 7))


def make_image(path: Path, seed: int = 0) -> Path:
    array = np.random.default_rng(seed).normal(100, 20, size=(8, 12, 16)).astype(np.float32)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 3.0))
    image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return write_volume(image, path)


def make_label(path: Path, like: Path, size: int = 4) -> Path:
    image = read_image(like)
    array = np.zeros(image.GetSize()[::-1], dtype=np.uint16)
    array[2:5, 3 : 3 + size, 2:9] = 3
    array[5:6, 3:5, 10:12] = 7
    label = sitk.GetImageFromArray(array)
    label.CopyInformation(image)
    return write_volume(label, path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    image = make_image(tmp_path / "image.nrrd")
    return image, make_label(tmp_path / "label.nrrd", image)


def test_a_cached_case_is_the_normalised_image_with_class_indices(
    tmp_path: Path, files: tuple[Path, Path]
) -> None:
    volume = VolumeCache(tmp_path / "cache", PLAIN).volume("case é 1", *files)
    assert isinstance(volume.image, np.memmap) and volume.image.dtype == np.float32
    frame = Frame.of(read_image(files[0]), stack_axis=2)
    assert volume.frame == frame and volume.image.shape == frame.shape == (16, 12, 8)
    raw = frame.to_internal(read_image(files[0]))
    assert volume.image == pytest.approx((raw - raw.mean()) / raw.std(), abs=1e-4)

    stored = frame.to_internal(sitk.ReadImage(str(files[1])), label=True)
    assert isinstance(volume.label, np.memmap) and volume.label.dtype == np.uint8
    assert np.array_equal(np.array([0, *PLAIN.values])[volume.label], stored)
    assert set(np.unique(volume.label)) == {0, 1, 2}
    foreground = volume.foreground
    assert foreground is not None and foreground.dtype == np.int32
    classes = volume.label[tuple(foreground.T)]
    assert (classes == 1).sum() == (classes == 2).sum() == 84

    bare = VolumeCache(tmp_path / "cache", PLAIN).volume("case é 1", files[0])
    assert bare.label is None and bare.foreground is None


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    def counting(name: str, function):  # noqa: ANN001, ANN202
        def read(path, *arguments, **options):  # noqa: ANN001, ANN002, ANN003, ANN202
            seen.append(name)
            return function(path, *arguments, **options)

        return read

    monkeypatch.setattr(cache, "read_image", counting("image", cache.read_image))
    monkeypatch.setattr(cache, "read_label", counting("label", cache.read_label))
    return seen


def test_only_what_changed_is_built_again(tmp_path: Path, files: tuple[Path, Path], reads: list[str]) -> None:
    image, label = files
    store = VolumeCache(tmp_path / "cache", PLAIN)
    first = store.volume("a", image, label)
    assert reads == ["image", "label"]
    store.volume("a", image, label)
    VolumeCache(tmp_path / "cache", PLAIN).volume("a", image)
    assert reads == ["image", "label"]

    newer = make_label(tmp_path / "002.nrrd", image, size=6)
    second = store.volume("a", image, newer)
    assert reads == ["image", "label", "label"]
    assert (second.label == 1).sum() > (first.label == 1).sum()

    make_image(image, seed=1)
    third = store.volume("a", image, newer)
    assert reads == ["image", "label", "label", "image", "label"]
    assert not np.array_equal(third.image, first.image)

    other = Preprocessing(2, None, Normalisation("none"), (3, 7))
    VolumeCache(tmp_path / "cache", other).volume("a", image)
    assert reads[5:] == ["image"]
    store.volume("a", image, newer)
    assert reads[6:] == []


def test_an_identity_finds_a_moved_file_and_notices_a_changed_one(
    tmp_path: Path, files: tuple[Path, Path], reads: list[str]
) -> None:
    store = VolumeCache(tmp_path / "cache", PLAIN)
    identity = file_identity(files[0])
    store.volume("a", files[0], identity=identity)
    moved = tmp_path / "moved.nrrd"
    shutil.move(files[0], moved)
    os.utime(moved, (1, 1))
    store.volume("a", moved, identity=identity)
    assert reads == ["image"]
    make_image(moved, seed=5)
    changed = store.volume("a", moved, identity=identity)
    assert reads == ["image", "image"]
    raw = changed.frame.to_internal(read_image(moved))
    assert changed.image == pytest.approx((raw - raw.mean()) / raw.std(), abs=1e-4)


@pytest.mark.parametrize("name", ["image.npy", "label.npy", "foreground.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["truncate", "zero", "remove"])
def test_a_damaged_cache_is_built_again(
    tmp_path: Path, files: tuple[Path, Path], name: str, damage: str, reads: list[str]
) -> None:
    store = VolumeCache(tmp_path / "cache", PLAIN)
    volume = store.volume("a", *files)
    image, label = np.array(volume.image), np.array(volume.label)
    broken = sorted(store.folder.rglob(name))
    assert broken
    for path in broken:
        data = path.read_bytes()
        if damage == "remove":
            path.unlink()
        else:
            path.write_bytes(data[: len(data) // 2] if damage == "truncate" else bytes(len(data)))
    again = store.volume("a", *files)
    assert np.array_equal(again.image, image) and np.array_equal(again.label, label)
    assert len(reads) > 2
    assert not list(store.folder.rglob("*sfr-tmp*"))


def test_a_cache_deleted_during_use_is_built_again(tmp_path: Path, files: tuple[Path, Path]) -> None:
    volume = VolumeCache(tmp_path / "cache", PLAIN).volume("a", *files)
    before = np.array(volume.image)
    shutil.rmtree(tmp_path / "cache")
    assert np.array_equal(volume.image, before)
    assert volume.label is not None and volume.label.shape == before.shape


def test_a_failed_build_leaves_nothing(tmp_path: Path, files: tuple[Path, Path]) -> None:
    store = VolumeCache(tmp_path / "cache", Preprocessing(2, None, Normalisation(), (3,)))
    with pytest.raises(VolumeError, match="value 7"):
        store.volume("a", *files)
    with pytest.raises(VolumeError, match="does not exist"):
        store.volume("b", tmp_path / "none.nrrd")
    assert [p.name for p in store.folder.rglob("*.npy")] == ["image.npy"]
    assert not list(store.folder.rglob("*sfr-tmp*"))


def test_old_entries_do_not_pile_up(tmp_path: Path, files: tuple[Path, Path]) -> None:
    store = VolumeCache(tmp_path / "cache", PLAIN)
    for seed in range(5):
        make_image(files[0], seed=seed)
        volume = store.volume("a", *files)
    assert len(list(store.folder.rglob("image.npy"))) == 2
    assert len(list(store.folder.rglob("label.npy"))) == 4
    raw = volume.frame.to_internal(read_image(files[0]))
    assert volume.image == pytest.approx((raw - raw.mean()) / raw.std(), abs=1e-4)


def _build(folder: Path, image: Path, label: Path, start, results) -> None:  # noqa: ANN001
    start.wait()
    volume = VolumeCache(folder, PLAIN).volume("a", image, label)
    results.put((float(volume.image.sum()), int(volume.label.sum())))


def test_two_processes_may_build_at_once(tmp_path: Path, files: tuple[Path, Path]) -> None:
    context = multiprocessing.get_context("fork" if os.name == "posix" else "spawn")
    start, results = context.Event(), context.Queue()
    workers = [
        context.Process(target=_build, args=(tmp_path / "c", *files, start, results)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    start.set()
    seen = {results.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join(30)
    assert len(seen) == 1 and all(w.exitcode == 0 for w in workers)
    assert len(list((tmp_path / "c").rglob("image.npy"))) == 1 and not list(
        (tmp_path / "c").rglob("*sfr-tmp*")
    )


def test_a_cached_volume_can_be_sent_to_a_worker(tmp_path: Path, files: tuple[Path, Path]) -> None:
    volume = VolumeCache(tmp_path / "cache", PLAIN).volume("a", *files)
    sent = pickle.loads(pickle.dumps(volume))
    assert len(pickle.dumps(volume)) < 10_000 and np.array_equal(sent.image, volume.image)


def test_preprocessing_survives_json_and_its_digest_tells_changes() -> None:
    rich = Preprocessing(
        1, (0.75, 0.8, 3.0), Normalisation("ct_percentile", -50.0, 300.5, 90.1, 33.3), (1, 52)
    )
    assert Preprocessing.from_dict(json.loads(json.dumps(rich.to_dict()))) == rich
    assert Preprocessing.from_dict(PLAIN.to_dict()).digest() == PLAIN.digest() != rich.digest()
    for wrong in ((2, 1), (0, 1), (1, 1), (70000,), tuple(range(1, 300))):
        with pytest.raises(ValueError):
            Preprocessing(2, None, Normalisation(), wrong)


def test_spacing_is_part_of_the_cached_array(tmp_path: Path, files: tuple[Path, Path]) -> None:
    coarse = Preprocessing(2, (2.0, 2.0, 3.0), Normalisation(), (3, 7))
    volume = VolumeCache(tmp_path / "cache", coarse).volume("a", *files)
    assert volume.image.shape == volume.label.shape == volume.frame.shape == (8, 6, 8)
    assert volume.frame.native_shape == (16, 12, 8)


def test_normalisations() -> None:
    rng = np.random.default_rng(0)
    ct = rng.normal(50, 200, size=(10, 11, 12)).astype(np.float32)
    copy = ct.copy()
    zscored = Normalisation("zscore").apply(ct)
    assert zscored.dtype == np.float32 and zscored == pytest.approx((ct - ct.mean()) / ct.std(), abs=1e-4)
    clipped = np.clip(ct, -125, 275)
    windowed = Normalisation("ct_window", -125.0, 275.0).apply(ct)
    assert windowed == pytest.approx((clipped - clipped.mean()) / clipped.std(), abs=1e-4)
    assert np.array_equal(Normalisation("none").apply(ct), ct)

    fitted = Normalisation.fit_ct(ct[ct > 0])
    low, high = np.percentile(ct[ct > 0], [0.5, 99.5])
    assert (fitted.low, fitted.high) == pytest.approx((low, high))
    expected = (np.clip(ct, low, high) - ct[ct > 0].mean()) / ct[ct > 0].std()
    assert fitted.apply(ct) == pytest.approx(expected, abs=1e-3)

    brain = np.where(rng.random(ct.shape) < 0.5, 0, np.abs(ct)).astype(np.float32)
    cut = np.minimum(brain, np.percentile(brain, 99.9))
    inside = cut[cut > 0]
    normal = Normalisation("zscore_nonzero").apply(brain)
    assert normal == pytest.approx((cut - inside.mean()) / inside.std(), abs=1e-3)
    assert len(np.unique(normal[brain == 0])) == 1
    assert np.array_equal(ct, copy)


def test_normalisation_of_large_values_does_not_lose_precision() -> None:
    ct = (1e5 + np.random.default_rng(0).normal(size=(64, 64, 64))).astype(np.float32)
    result = Normalisation("zscore").apply(ct)
    assert abs(result.mean()) < 1e-2 and result.std() == pytest.approx(1, abs=1e-2)


def test_impossible_normalisations() -> None:
    for arguments in [
        ("ct_window",),
        ("ct_window", 5.0, 5.0),
        ("ct_percentile", 0.0, 1.0, 0.5, 0.0),
        ("median",),
    ]:
        with pytest.raises(ValueError):
            Normalisation(*arguments)
    for samples in (np.array([]), np.full(10, 3.0)):
        with pytest.raises(VolumeError, match="too little foreground"):
            Normalisation.fit_ct(samples)


@dataclass
class Arrays:
    image: np.ndarray
    label: np.ndarray | None
    foreground: np.ndarray | None


def arrays(shape: tuple[int, int, int]) -> Arrays:
    image = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    label = (image % 3).astype(np.uint8)
    return Arrays(image, label, sample_foreground(label))


sizes = st.tuples(*[st.integers(1, 8)] * 3)


@given(shape=sizes, patch=sizes, seed=st.integers(0, 100), foreground=st.booleans())
def test_a_crop_is_the_volume_at_its_start_and_zero_beyond(
    shape: tuple[int, int, int], patch: tuple[int, int, int], seed: int, foreground: bool
) -> None:
    volume = arrays(shape)
    extra = (volume.image % 5).astype(np.uint8)
    crop = random_crop(np.random.default_rng(seed), volume, patch, foreground=foreground, extra=extra)
    assert crop.image.shape == crop.label.shape == crop.extra.shape == crop.valid.shape == patch
    grid = np.stack(
        np.meshgrid(*[np.arange(p) + s for p, s in zip(patch, crop.start, strict=True)], indexing="ij")
    )
    inside = np.all([(g >= 0) & (g < n) for g, n in zip(grid, shape, strict=True)], axis=0)
    assert np.array_equal(crop.valid, inside)
    assert np.array_equal(crop.image[inside], volume.image[tuple(g[inside] for g in grid)])
    assert np.array_equal(crop.label[inside], crop.image[inside] % 3)
    assert np.array_equal(crop.extra[inside], crop.image[inside] % 5)
    for array in (crop.image, crop.label, crop.extra):
        assert not array[~inside].any()
    for start, n, p in zip(crop.start, shape, patch, strict=True):
        assert 0 <= start <= n - p if n >= p else start == -((p - n) // 2)
    assert crop.valid.sum() == np.prod(np.minimum(shape, patch))


def test_every_start_is_equally_likely_the_last_included() -> None:
    volume, rng = arrays((6, 4, 3)), np.random.default_rng(0)
    starts = np.array([random_crop(rng, volume, (4, 4, 2)).start for _ in range(3000)])
    assert np.bincount(starts[:, 0]) == pytest.approx(1000, abs=120)
    assert np.bincount(starts[:, 1]) == pytest.approx(3000)
    assert np.bincount(starts[:, 2]) == pytest.approx(1500, abs=150)


def test_foreground_crops_hold_foreground_and_favour_no_structure() -> None:
    label = np.zeros((40, 40, 40), dtype=np.uint8)
    label[2:22, 2:22, 2:22] = 1
    label[35, 36, 37] = 2
    volume = Arrays(label.astype(np.float32), label, sample_foreground(label))
    rng = np.random.default_rng(0)
    crops = [random_crop(rng, volume, (8, 8, 8), foreground=True) for _ in range(400)]
    assert all(c.label.any() for c in crops)
    assert sum(bool((c.label == 2).any()) for c in crops) == pytest.approx(200, abs=50)
    uniform = [random_crop(rng, volume, (8, 8, 8)) for _ in range(200)]
    assert any(not c.label.any() for c in uniform)
    centred = next(c for c in crops if (c.label == 1).all() or c.start[0] > 4)
    assert centred.valid.all()
    empty = Arrays(volume.image, label * 0, sample_foreground(label * 0))
    assert random_crop(rng, empty, (8, 8, 8), foreground=True).image.shape == (8, 8, 8)
    unlabeled = Arrays(volume.image, None, None)
    assert random_crop(rng, unlabeled, (8, 8, 8), foreground=True).label is None


def test_sampled_foreground_is_bounded_balanced_and_repeatable() -> None:
    label = np.zeros((60, 60, 30), dtype=np.uint8)
    label[:40] = 1
    label[50:55, :20, :10] = 4
    voxels = sample_foreground(label)
    assert len(voxels) == 20_000 and voxels.dtype == np.int32
    classes = label[tuple(voxels.T)]
    assert {int(c): int((classes == c).sum()) for c in np.unique(classes)} == {1: 10_000, 4: 10_000}
    assert len(np.unique(voxels[classes == 4], axis=0)) == 1000
    assert len(np.unique(voxels[classes == 1], axis=0)) == 10_000
    assert np.array_equal(voxels, sample_foreground(label))


def test_crops_beyond_and_at_chosen_places() -> None:
    volume = arrays((5, 5, 5))
    crop = crop_at(volume, (3, -2, 1), (4, 4, 2))
    assert np.array_equal(crop.image[:2, 2:, :], volume.image[3:5, 0:2, 1:3])
    assert crop.valid.sum() == 8 and crop.extra is None
    assert not crop_at(volume, (9, 0, 0), (2, 2, 2)).valid.any()
    with pytest.raises(ValueError, match="extra"):
        random_crop(np.random.default_rng(0), volume, (2, 2, 2), extra=np.zeros((4, 5, 5), np.uint8))


def test_a_crop_does_not_share_memory_with_its_volume() -> None:
    volume = arrays((5, 5, 5))
    crop = crop_at(volume, (0, 0, 0), (5, 5, 5))
    crop.image[:] = 0
    assert volume.image.all()
