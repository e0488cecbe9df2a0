"""Exports against the network they were made of, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from SFRCore.errors import InputError, SFRError
from SFRCore.stages import export as export_module
from SFRCore.stages.export import check_patch, export_student
from SFRCore.students import Student, load_student, make_student, registry, save_student

PATCH = [16, 12, 8]


class SmallStudent(Student):
    """Two convolutions with a skip: the operations of a V-Net at a hundredth of its cost."""

    name: ClassVar[str] = "small"
    divisor: ClassVar[int] = 2

    def __init__(self, in_channels: int = 1, classes: int = 2) -> None:
        super().__init__(in_channels, classes)
        self.first = nn.Sequential(nn.Conv3d(in_channels, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU())
        self.down = nn.Conv3d(4, 8, 2, stride=2)
        self.up = nn.ConvTranspose3d(8, 4, 2, stride=2)
        self.drop = nn.Dropout3d(0.5)
        self.head = nn.Conv3d(4, classes, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        fine = self.first(images)
        return [fine, self.down(fine)]

    def decode(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [self.drop(self.up(features[1]) + features[0])]

    def check_patch(self, patch: Sequence[int]) -> None:
        assert all(size % 2 == 0 for size in patch)


def info(classes: int = 3) -> dict[str, Any]:
    values = [3, 7][: classes - 1]
    return {
        "structures": [{"value": v, "name": f"S{v}", "color": [255, 0, 0]} for v in values],
        "preprocessing": {"stack_axis": 2, "normalisation": {"kind": "zscore"}},
        "patch": PATCH,
        "stride": [8, 6, 4],
        "made_by": {"recipe": "sfr"},
    }


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = SmallStudent(1, 3)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(2, 1, *PATCH) * 2 + 1)
    save_student(model, folder, info())
    return folder


@pytest.fixture(autouse=True)
def known_student(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "student_types", lambda: {SmallStudent.name: SmallStudent})


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(30, 9, 8)).astype(np.float32)


def test_both_formats_agree_with_the_student_at_any_batch(
    model_folder: Path, volume: np.ndarray, tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = export_student(model_folder, tmp_path / "out", check_volume=volume)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "export.json",
        "student.onnx",
        "student.pt2",
    ]
    model, _ = load_student(model_folder)
    loaded = torch.export.load(tmp_path / "out/student.pt2").module()
    session = onnxruntime.InferenceSession(
        str(tmp_path / "out/student.onnx"), providers=["CPUExecutionProvider"]
    )
    assert [i.name for i in session.get_inputs()] == ["volume"]
    assert [o.name for o in session.get_outputs()] == ["logits"]
    assert session.get_inputs()[0].shape[1:] == [1, *PATCH]
    for batch in (1, 2, 5):
        patch = torch.randn(batch, 1, *PATCH, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = model(patch)
            torch.testing.assert_close(loaded(patch), expected)
        logits = session.run(["logits"], {"volume": patch.numpy()})[0]
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    for entry in found["files"].values():
        assert 0.0 <= entry["largest_difference"]["probabilities"] < 1e-4
        assert entry["bytes"] == (tmp_path / "out" / entry["file"]).stat().st_size


def test_the_description_says_what_the_export_expects(model_folder: Path, tmp_path: Path) -> None:
    returned = export_student(model_folder, tmp_path, formats=["torch"])
    written = json.loads((tmp_path / "export.json").read_text())
    assert returned["folder"] == str(tmp_path)
    assert written["input"]["shape"] == ["batch", 1, *PATCH]
    assert written["input"]["preprocessing"] == info()["preprocessing"]
    assert [(c["index"], c["value"]) for c in written["output"]["classes"]] == [(0, 0), (1, 3), (2, 7)]
    assert written["sliding_window"]["stride"] == [8, 6, 4]
    assert list(written["files"]) == ["torch"]
    assert "noise" in written["compared_on"]


def test_an_export_that_differs_is_not_written(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = export_module._write_torch

    def wrong(program: Any, path: Path) -> Any:
        network = honest(program, path)
        return lambda patch: network(patch) + np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1, 1)

    monkeypatch.setattr(export_module, "_write_torch", wrong)
    with pytest.raises(SFRError, match="does not give the same result") as caught:
        export_student(model_folder, tmp_path, formats=["torch"])
    assert caught.value.code == "export_differs"
    assert list(tmp_path.iterdir()) == []


def test_not_a_number_counts_as_a_difference(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(program: Any, path: Path) -> Any:
        path.write_bytes(b"x")
        return lambda patch: np.full((2, 3, *PATCH), np.nan, np.float32)

    monkeypatch.setattr(export_module, "_write_torch", broken)
    with pytest.raises(SFRError, match="does not give the same result"):
        export_student(model_folder, tmp_path, formats=["torch"])


@pytest.mark.parametrize(
    ("formats", "words"), [(["tensorrt"], "'tensorrt' is not a format"), ([], "No format")]
)
def test_unknown_formats_are_refused(
    model_folder: Path, tmp_path: Path, formats: list[str], words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        export_student(model_folder, tmp_path, formats=formats)
    assert "onnx" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="onnxscript") as caught:
        export_student(model_folder, tmp_path, formats=["onnx"])
    assert "pip install" in caught.value.hint


def test_a_damaged_model_is_refused(model_folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in model_folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    weights = damaged / "student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    with pytest.raises(InputError, match="damaged"):
        export_student(damaged, tmp_path / "out", formats=["torch"])
    assert not (tmp_path / "out").exists()


def test_the_check_patch_is_the_padded_centre() -> None:
    volume = np.arange(20 * 4 * 8, dtype=np.float32).reshape(20, 4, 8)
    patch = check_patch(volume, [10, 6, 8], 1)
    assert patch.shape == (2, 1, 10, 6, 8) and patch.dtype == np.float32
    np.testing.assert_array_equal(patch[0, 0, :, 1:5], volume[5:15])
    assert not patch[:, :, :, 0].any() and not patch[:, :, :, 5].any()
    np.testing.assert_array_equal(patch[1, 0], patch[0, 0, ::-1])
    noise = check_patch(None, [8, 8, 8], 2)
    assert noise.shape == (2, 2, 8, 8, 8) and 0.8 < noise.std() < 1.2


@pytest.mark.long
def test_a_vnet_is_exported_to_both_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.undo()
    torch.manual_seed(0)
    save_student(
        make_student("vnet", in_channels=1, classes=3), tmp_path / "m", info() | {"patch": [16, 16, 16]}
    )
    found = export_student(tmp_path / "m", tmp_path / "out")
    assert {entry["largest_difference"]["probabilities"] < 1e-4 for entry in found["files"].values()} == {
        True
    }
