"""Reading volumes: whole ones come in unchanged, every other is refused in a sentence that names the file."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from SFRCore.errors import InputError
from SFRCore.volumes import (
    Geometry,
    VolumeError,
    check_label,
    image_info,
    list_series,
    read_image,
    read_label,
    read_series,
    same_geometry,
    write_volume,
)

DATA = Path(__file__).parents[3] / "shared/data"
SUFFIXES = [".nrrd", ".nii", ".nii.gz", ".mha"]


def volume(size: tuple[int, int, int] = (14, 12, 10), pixel: type = np.float32, seed: int = 0) -> sitk.Image:
    array = (np.random.default_rng(seed).normal(size=size[::-1]) * 100).astype(pixel)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 3.0))
    image.SetOrigin((-12.5, 40.0, 7.25))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, -1, 0))
    return image


def refused(path: Path | str, match: str) -> VolumeError:
    with pytest.raises(VolumeError, match=match) as caught:
        read_image(path)
    assert str(path) in caught.value.message
    assert caught.value.message.endswith(".") and "\n" not in caught.value.message and caught.value.hint
    assert isinstance(caught.value, InputError) and caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("pixel", [np.uint8, np.int16, np.float32])
def test_written_volumes_come_back_unchanged(tmp_path: Path, suffix: str, pixel: type) -> None:
    image = volume(pixel=pixel)
    path = write_volume(image, tmp_path / "new folder" / f"Fall 3 左心房 é{suffix}")
    back = read_image(path)
    assert np.array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))
    assert same_geometry(back, image) and back.GetPixelID() == image.GetPixelID()
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    info = image_info(path)
    assert info.geometry == Geometry.of(back) and info.size == (14, 12, 10)
    assert info.pixel == back.GetPixelIDTypeAsString()
    if suffix == ".nrrd":
        assert Geometry.of(back) == Geometry.of(image)


def test_meta_data_of_a_file_stays_out(tmp_path: Path) -> None:
    image = volume()
    image.SetMetaData("patient", "Doe")
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    assert read_image(tmp_path / "a.nrrd").GetMetaDataKeys() == ()


def test_unknown_suffix_and_failed_writes_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match=r"a\.txt"):
        write_volume(volume(), tmp_path / "a.txt")
    write_volume(volume(), tmp_path / "a.nrrd")
    before = (tmp_path / "a.nrrd").read_bytes()
    with pytest.raises(RuntimeError):
        write_volume(sitk.Image((2, 2, 2), sitk.sitkLabelUInt8), tmp_path / "a.nrrd")
    assert (tmp_path / "a.nrrd").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.nrrd"]


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.nrrd", "does not exist")
    for suffix in SUFFIXES:
        (tmp_path / f"empty{suffix}").touch()
        refused(tmp_path / f"empty{suffix}", "is empty")
    (tmp_path / "letter.docx").write_bytes(b"not an image" * 50)
    refused(tmp_path / "letter.docx", "not an image")
    (tmp_path / "letter.nii").write_bytes(b"not an image" * 50)
    refused(tmp_path / "letter.nii", "damaged")
    refused(tmp_path, "no DICOM images")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("kept", [20, 0.5, -1])
def test_truncated_files(
    tmp_path: Path, suffix: str, compressed: bool, kept: float, capfd: pytest.CaptureFixture
) -> None:
    whole, torn = tmp_path / f"whole{suffix}", tmp_path / f"torn{suffix}"
    sitk.WriteImage(volume(), str(whole), useCompression=compressed)
    data = whole.read_bytes()
    torn.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    refused(torn, "damaged|not an image")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz", ".mha"])
def test_corrupt_compressed_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(volume((40, 40, 40)), str(path), useCompression=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    refused(path, "damaged")


def test_a_gzip_file_without_the_suffix_and_the_other_way_round(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "a.nii"))
    plain = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(plain)
    (tmp_path / "several.nii.gz").write_bytes(gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]))
    for name in ("plain.nii.gz", "several.nii.gz"):
        assert np.array_equal(
            sitk.GetArrayFromImage(read_image(tmp_path / name)),
            sitk.GetArrayFromImage(read_image(tmp_path / "a.nii")),
        )


def test_nifti_pairs(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "a.img"))
    for name in ("a.img", "a.hdr"):
        assert same_geometry(read_image(tmp_path / name), volume())
    data = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").write_bytes(data[:-100])
    with pytest.raises(VolumeError, match="damaged"):
        read_image(tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    refused(tmp_path / "a.hdr", r"no \.img file beside it")


def test_nrrd_with_its_data_in_another_file(tmp_path: Path) -> None:
    sitk.WriteImage(volume(), str(tmp_path / "a.nhdr"), useCompression=True)
    (tmp_path / "b.nrrd").write_bytes((tmp_path / "a.nhdr").read_bytes())
    for name in ("a.nhdr", "b.nrrd"):
        assert np.array_equal(
            sitk.GetArrayFromImage(read_image(tmp_path / name)), sitk.GetArrayFromImage(volume())
        )


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0 x"), (-2.0, "-2 x"), (float("nan"), "nan x")])
def test_impossible_spacing_in_nifti(tmp_path: Path, value: float, shown: str) -> None:
    path = tmp_path / "a.nii"
    sitk.WriteImage(volume(), str(path))
    data = bytearray(path.read_bytes())
    data[80:84] = struct.pack("<f", value)
    path.write_bytes(data)
    refused(path, f"spacing of {shown}")


@pytest.mark.parametrize("value", ["0", "-1"])
def test_impossible_spacing_in_mha_and_nrrd(tmp_path: Path, value: str) -> None:
    image = volume()
    image.SetSpacing((1, 2, 3))
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    path = tmp_path / "a.mha"
    sitk.WriteImage(image, str(path))
    data = path.read_bytes()
    changed = data.replace(b"ElementSpacing = 1 2 3", f"ElementSpacing = {value} 2 3".encode())
    assert changed != data
    path.write_bytes(changed)
    refused(path, "spacing")
    if value == "0":
        path = tmp_path / "a.nrrd"
        sitk.WriteImage(image, str(path))
        path.write_bytes(path.read_bytes().replace(b"(1,0,0)", b"(0,0,0)"))
        refused(path, "spacing")


def test_slanted_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    image = volume()
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    sitk.WriteImage(image, str(path))
    data = bytearray(path.read_bytes())
    data[252:256] = struct.pack("<hh", 0, 1)
    data[284:288] = struct.pack("<f", 0.5)
    path.write_bytes(data)
    refused(path, "right angles")


def test_other_dimensions_and_colours(tmp_path: Path) -> None:
    flat = tmp_path / "flat.png"
    sitk.WriteImage(sitk.Image((20, 20), sitk.sitkUInt8) + 5, str(flat))
    refused(flat, "2D")
    sitk.WriteImage(volume((9, 9, 1)), str(tmp_path / "slice.nii.gz"))
    refused(tmp_path / "slice.nii.gz", "2D")
    with pytest.raises(VolumeError, match="2D"):
        image_info(flat)

    moments = sitk.JoinSeries([volume(seed=s) for s in range(3)])
    sitk.WriteImage(moments, str(tmp_path / "4d.nrrd"))
    refused(tmp_path / "4d.nrrd", "3 volumes over time")
    with pytest.raises(VolumeError, match="over time"):
        image_info(tmp_path / "4d.nrrd")
    for name in ("one.nrrd", "one.nii.gz"):
        sitk.WriteImage(sitk.JoinSeries([volume()]), str(tmp_path / name))
        single = read_image(tmp_path / name)
        assert single.GetDimension() == 3 and same_geometry(single, volume())
        assert same_geometry(image_info(tmp_path / name).geometry, volume())

    sitk.WriteImage(sitk.Compose([volume(), volume(seed=1), volume(seed=2)]), str(tmp_path / "rgb.nrrd"))
    refused(tmp_path / "rgb.nrrd", "colour or vector")
    complex_image = sitk.RealAndImaginaryToComplex(volume(), volume(seed=1))
    sitk.WriteImage(complex_image, str(tmp_path / "complex.nrrd"))
    refused(tmp_path / "complex.nrrd", "colour or vector")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers(tmp_path: Path, value: float) -> None:
    array = sitk.GetArrayFromImage(volume())
    array[3, 4, 5] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nrrd"))
    refused(tmp_path / "a.nrrd", "not numbers")


def test_constant_images(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image((4, 4, 4), sitk.sitkInt16) + 7, str(tmp_path / "a.nrrd"))
    refused(tmp_path / "a.nrrd", "same value in every voxel")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_files(tmp_path: Path) -> None:
    path = write_volume(volume(), tmp_path / "a.nrrd")
    path.chmod(0)
    refused(path, "cannot be opened")


def label(values: dict[tuple[int, int, int], float], pixel: type = np.uint8) -> sitk.Image:
    image = volume()
    array = np.zeros(image.GetSize()[::-1], dtype=pixel)
    for (x, y, z), value in values.items():
        array[z, y, x] = value
    return Geometry.of(image).apply(sitk.GetImageFromArray(array))


@pytest.mark.parametrize("pixel", [np.uint8, np.int16, np.float32, np.float64, np.int64])
def test_labels_are_read_as_study_values_of_any_pixel_type(tmp_path: Path, pixel: type) -> None:
    sitk.WriteImage(label({(1, 2, 3): 5, (4, 4, 4): 52}, pixel), str(tmp_path / "a.nrrd"))
    read = read_label(tmp_path / "a.nrrd", [5, 7, 52], like=volume())
    assert read.GetPixelID() == sitk.sitkUInt16
    assert (read[1, 2, 3], read[4, 4, 4], read[0, 0, 0]) == (5, 52, 0)
    assert Geometry.of(read) == Geometry.of(volume())


def test_undeclared_values_are_listed_or_become_background() -> None:
    drawn = label({(1, 1, 1): 1, (2, 2, 2): 3, (3, 3, 3): 9})
    with pytest.raises(VolumeError, match=r"case7\.nrrd contains the values 3, 9, .* structures are 1, 2"):
        check_label(drawn, [1, 2], name="case7.nrrd")
    kept = check_label(drawn, [1, 2], other_as_background=True)
    assert (kept[1, 1, 1], kept[2, 2, 2], kept[3, 3, 3]) == (1, 0, 0)
    with pytest.raises(VolumeError, match="the value -1"):
        check_label(label({(1, 1, 1): -1}, np.int16), [1])
    with pytest.raises(VolumeError, match="the value 65537"):
        check_label(label({(1, 1, 1): 65537}, np.int32), [1])


def test_0_and_255_mean_the_only_structure() -> None:
    drawn = label({(1, 1, 1): 255})
    assert check_label(drawn, [1])[1, 1, 1] == 1
    for values in ([2], [1, 2]):
        with pytest.raises(VolumeError, match="255"):
            check_label(drawn, values)
    with pytest.raises(VolumeError, match="255"):
        check_label(label({(1, 1, 1): 255, (2, 2, 2): 1}), [1])


def test_what_is_no_label_map() -> None:
    with pytest.raises(VolumeError, match="not whole numbers"):
        check_label(label({(1, 1, 1): 0.5}, np.float32), [1])
    with pytest.raises(VolumeError, match="not whole numbers"):
        check_label(label({(1, 1, 1): np.nan}, np.float32), [1])
    with pytest.raises(VolumeError, match="one number a voxel"):
        check_label(sitk.Compose([label({}), label({})]), [1])
    assert check_label(label({}), [1])[1, 1, 1] == 0
    with pytest.raises(VolumeError, match="is empty"):
        check_label(label({}), [1], allow_empty=False)


def test_labels_on_another_grid_are_refused_or_resampled() -> None:
    image, drawn = volume(), label({(4, 5, 6): 1, (4, 5, 7): 1})
    shifted = sitk.Image(drawn)
    shifted.SetOrigin((-12.5, 40.0, 7.65))
    smaller = drawn[2:, :, :]
    turned = sitk.Image(drawn)
    turned.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    spread = sitk.Image(drawn)
    spread.SetSpacing((0.7, 0.8, 3.1))
    for wrong, why in [
        (shifted, "shifted"),
        (smaller, "12 x 12 x 10"),
        (turned, "directions"),
        (spread, "spacing"),
    ]:
        with pytest.raises(VolumeError, match=why):
            check_label(wrong, [1], like=image)
        with pytest.raises(VolumeError, match=why):
            check_label(wrong, [1], like=Geometry.of(image))
    moved = check_label(smaller, [1], like=image, resample=True)
    assert np.array_equal(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(drawn))
    assert Geometry.of(moved) == Geometry.of(image)
    flipped = sitk.Flip(drawn, (True, False, True))
    restored = check_label(flipped, [1], like=image, resample=True)
    assert np.array_equal(sitk.GetArrayFromImage(restored), sitk.GetArrayFromImage(drawn))


def test_rounding_in_a_header_is_not_another_grid() -> None:
    image, drawn = volume(), label({(4, 5, 6): 1})
    drawn.SetOrigin((-12.50001, 40.0, 7.25001))
    drawn.SetSpacing((0.70001, 0.8, 3.0))
    assert same_geometry(image, drawn)
    assert Geometry.of(check_label(drawn, [1], like=image)) == Geometry.of(image)


def write_slices(
    folder: Path, positions: list[float], *, series: int = 1, slant: float = 0.0, rows: int = 16
) -> list[Path]:
    """A small CT series; the value of each slice is its position in mm."""
    folder.mkdir(parents=True, exist_ok=True)
    uid, paths = generate_uid(), []
    for number, position in enumerate(positions):
        data = pydicom.Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.PatientName, data.PatientID = "Secret^Name", "4711"
        data.Modality, data.SeriesNumber, data.SeriesInstanceUID = "CT", series, uid
        data.InstanceNumber = len(positions) - number
        data.Rows, data.Columns, data.PixelSpacing = rows, 20, [0.5, 0.75]
        data.ImagePositionPatient = [-10.0, 20.0 + slant * position, position]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleIntercept, data.RescaleSlope = -1024, 1
        pixels = np.full((rows, 20), 1024 + round(position), dtype=np.int16)
        pixels[0, 0] = 0
        data.PixelData = pixels.tobytes()
        path = folder / f"IM{series}_{(number * 7) % len(positions):03d}_{number}"
        data.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def test_a_dicom_folder_is_read_in_the_order_of_positions(tmp_path: Path) -> None:
    write_slices(tmp_path / "Serie é 1" / "deeper", [5.0, -10.0, 0.0, -5.0, 10.0])
    (tmp_path / "Serie é 1" / "notes.txt").write_text("no image")
    image = read_image(tmp_path / "Serie é 1")
    assert image.GetSize() == (20, 16, 5) and image.GetSpacing() == (0.75, 0.5, 5.0)
    assert image.GetOrigin() == (-10.0, 20.0, -10.0)
    assert [image[3, 3, z] for z in range(5)] == [-10, -5, 0, 5, 10] and image[0, 0, 0] == -1024
    assert image.GetMetaDataKeys() == ()
    assert image_info(tmp_path / "Serie é 1").geometry == Geometry.of(image)


def test_a_multi_frame_dicom_file(tmp_path: Path) -> None:
    image = sitk.Cast(volume() + 1000, sitk.sitkUInt16)
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    (tmp_path / "a").mkdir()
    sitk.WriteImage(image, str(tmp_path / "a" / "all.dcm"))
    for path in (tmp_path / "a" / "all.dcm", tmp_path / "a"):
        read = read_image(path)
        assert np.array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(image))
    assert image_info(tmp_path / "a").geometry == Geometry.of(read)


def test_a_missing_slice_is_named(tmp_path: Path) -> None:
    write_slices(tmp_path / "a", [0.0, 2.0, 4.0, 8.0, 10.0])
    error = refused(tmp_path / "a", r"one slice is missing between slice 3 and 4 of 5 \(from 4.0 to 8.0 mm\)")
    assert "Secret" not in error.message + error.hint
    with pytest.raises(VolumeError, match="one slice is missing"):
        image_info(tmp_path / "a")
    write_slices(tmp_path / "b", [0.0, 2.0, 4.0, 10.0, 12.0])
    refused(tmp_path / "b", "2 slices are missing")
    write_slices(tmp_path / "c", [0.0, 2.0, 4.0, 7.0, 9.0])
    refused(tmp_path / "c", "between slice 3 and 4")


def test_series_that_are_no_single_volume(tmp_path: Path) -> None:
    write_slices(tmp_path / "double", [0.0, 2.0, 2.0, 4.0])
    refused(tmp_path / "double", "two slices at one position")
    write_slices(tmp_path / "tilt", [0.0, 2.0, 4.0, 6.0], slant=0.3)
    refused(tmp_path / "tilt", "gantry tilt")
    write_slices(tmp_path / "one", [0.0])
    refused(tmp_path / "one", "2D")
    torn = write_slices(tmp_path / "torn", [0.0, 2.0, 4.0])
    torn[1].write_bytes(torn[1].read_bytes()[:-300])
    refused(tmp_path / "torn", "cannot be read")


def test_two_series_are_listed_and_one_is_picked(tmp_path: Path) -> None:
    write_slices(tmp_path, [0.0, 2.0, 4.0], series=2)
    write_slices(tmp_path, [1.0, 4.0, 7.0, 10.0], series=5, rows=12)
    assert [s.description for s in list_series(tmp_path)] == [
        "1: 3 CT slices of 20 x 16",
        "2: 4 CT slices of 20 x 12",
    ]
    error = refused(tmp_path, "2 series.*1: 3 CT slices of 20 x 16; 2: 4 CT slices")
    assert "series=1" in error.hint and "Secret" not in error.message
    assert read_series(tmp_path, 1).GetSize() == (20, 16, 3)
    assert read_series(tmp_path, "2").GetSpacing()[2] == 3.0
    uid = list_series(tmp_path)[1].uid
    assert read_image(tmp_path, series=uid).GetSize() == (20, 12, 4)
    with pytest.raises(VolumeError, match="no series 3"):
        read_series(tmp_path, 3)


def test_looking_for_series_can_be_ended_at_every_file(tmp_path: Path) -> None:
    write_slices(tmp_path, [0.0, 2.0, 4.0])
    seen: list[Path] = []

    def stop(path: Path) -> None:
        seen.append(path)
        if len(seen) == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list_series(tmp_path, on_file=stop)
    assert seen == sorted(tmp_path.iterdir())[:2]


@pytest.mark.skipif(not DATA.is_dir(), reason=f"real volumes are not at {DATA}")
def test_real_files_are_read() -> None:
    ct = read_image(DATA / "abdomen_ct/dicom")
    values = sitk.GetArrayViewFromImage(ct)
    assert ct.GetSize() == (512, 512, 20) and values.min() >= -2000 and -1100 < np.median(values) < 300
    image = DATA / "abdomen_ct/images/ct.nii.gz"
    organs = read_label(
        DATA / "abdomen_ct/labels/ct.nii.gz", [1, 5], like=read_image(image), other_as_background=True
    )
    assert set(np.unique(sitk.GetArrayViewFromImage(organs))) == {0, 1, 5}
    with pytest.raises(VolumeError, match="structures are 1, 5"):
        read_label(DATA / "abdomen_ct/labels/ct.nii.gz", [1, 5])
    for path in sorted((DATA / "hippocampus/images").iterdir())[:10]:
        name = DATA / "hippocampus/labels" / path.name
        read_label(name, [1, 2], like=read_image(path), allow_empty=False)
