"""The invented cohort: readable, reproducible, learnable, and not to be had by a threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from SFRCore.errors import InputError
from SFRCore.synthetic import SPACING, STRUCTURES, make_synthetic_cohort, synthetic_case
from SFRCore.volumes import read_image, read_label, same_geometry


def test_files_are_what_a_study_accepts(cohort: tuple[Path, Path]) -> None:
    images, labels = cohort
    names = sorted(path.name for path in images.iterdir())
    assert names == [f"case_{n:02d}.nrrd" for n in range(1, 7)]
    assert names == sorted(path.name for path in labels.iterdir())
    for name in names:
        image = read_image(images / name)
        label = read_label(labels / name, [1, 2], like=image)
        assert image.GetSize() == (24, 20, 12) and image.GetSpacing() == pytest.approx(SPACING)
        assert same_geometry(image, label)
        assert set(np.unique(sitk.GetArrayViewFromImage(label))) == {0, 1, 2}


def test_directions_are_proper_and_some_are_oblique(cohort: tuple[Path, Path]) -> None:
    oblique = 0
    for path in cohort[0].iterdir():
        direction = np.array(read_image(path).GetDirection()).reshape(3, 3)
        assert not np.allclose(direction, np.eye(3))
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(direction) == pytest.approx(1)
        oblique += not np.allclose(np.abs(direction), np.eye(3))
    assert oblique == 2


def test_same_seed_same_voxels(tmp_path: Path) -> None:
    def voxels(folder: str, seed: int) -> np.ndarray:
        images, _ = make_synthetic_cohort(tmp_path / folder, cases=1, size=(16, 16, 10), seed=seed)
        return sitk.GetArrayFromImage(read_image(images / "case_01.nrrd"))

    first = voxels("a", 1)
    np.testing.assert_array_equal(first, voxels("b", 1))
    assert (first != voxels("c", 2)).mean() > 0.5


def test_a_case_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few, _ = make_synthetic_cohort(tmp_path / "few", cases=1, size=(16, 16, 10))
    more, _ = make_synthetic_cohort(tmp_path / "more", cases=3, size=(16, 16, 10))
    first, second = (sitk.GetArrayFromImage(read_image(folder / "case_01.nrrd")) for folder in (few, more))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("structures", [1, 2, 3, 4])
def test_every_structure_is_one_piece_of_some_size(structures: int) -> None:
    for number in range(3):
        _, label = synthetic_case(np.random.default_rng([3, number]), (48, 48, 24), structures)
        assert set(np.unique(label)) == set(range(structures + 1))
        for value in range(1, structures + 1):
            pieces, count = ndimage.label(label == value)
            sizes = np.sort(np.bincount(pieces.ravel())[1:])
            assert sizes[-1] > 60, (number, value)
            assert sizes[-1] >= 0.95 * sizes.sum(), (number, value, count)


def test_no_threshold_finds_the_organ() -> None:
    for number in range(4):
        image, label = synthetic_case(np.random.default_rng([0, number]), (64, 64, 32), 2)
        smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.8)
        organ = label > 0
        best = max(
            2 * ((smooth > level) & organ).sum() / ((smooth > level).sum() + organ.sum())
            for level in range(90, 240, 5)
        )
        assert 0.4 < best < 0.8, number


def test_brightness_tells_the_organ_from_its_surroundings() -> None:
    image, label = synthetic_case(np.random.default_rng(5), (64, 64, 32), 2)
    shell = ndimage.binary_dilation(label > 0, iterations=3) & (label == 0)
    assert image[label > 0].mean() > image[shell].mean() + 20


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 to 4 structures"):
        make_synthetic_cohort(tmp_path, structures=5)
    with pytest.raises(InputError, match="at least one case"):
        make_synthetic_cohort(tmp_path, cases=0)
    assert not list(tmp_path.iterdir())


def test_structures_lie_where_their_names_say(tmp_path: Path) -> None:
    """In millimetres to the patient's left, back and head (LPS): the anterior lobe before the posterior."""
    _, labels = make_synthetic_cohort(tmp_path, cases=3, size=(32, 32, 16), seed=5)
    for path in sorted(labels.iterdir()):
        label = sitk.ReadImage(str(path))
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(label)
        anterior, posterior = (np.array(shape.GetCentroid(value)) for value in (1, 2))
        assert STRUCTURES[1].startswith("Anterior") and anterior[1] < posterior[1] - 3
        middle = label.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in label.GetSize()])
        assert anterior[0] > middle[0] and posterior[0] > middle[0], "both on the left, as the demo says"
