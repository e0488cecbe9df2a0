"""V-Net against its definition, and the files of a trained student."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from SFRCore.errors import InputError
from SFRCore.students import load_student, make_student, save_student
from SFRCore.students.vnet import VNet

PATCH = (32, 16, 16)


def crops(batch: int = 2, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *PATCH, generator=torch.Generator().manual_seed(seed))


def by_definition(model: VNet, images: Tensor, *, norm: str, training: bool) -> Tensor:
    """V-Net written out with functions, from the table of the paper's networks; no dropout."""
    weights = dict(model.state_dict())

    def unit(x: Tensor, name: str, layer: int, kind: str) -> Tensor:
        weight, bias = weights[f"{name}.{layer}.weight"], weights[f"{name}.{layer}.bias"]
        if kind == "same":
            x = functional.conv3d(x, weight, bias, padding=1)
        elif kind == "down":
            x = functional.conv3d(x, weight, bias, stride=2)
        else:
            x = functional.conv_transpose3d(x, weight, bias, stride=2)
        if norm == "instance":
            x = functional.instance_norm(x)
        else:
            scale, shift = weights[f"{name}.{layer + 1}.weight"], weights[f"{name}.{layer + 1}.bias"]
            mean = weights[f"{name}.{layer + 1}.running_mean"].clone()
            variance = weights[f"{name}.{layer + 1}.running_var"].clone()
            x = functional.batch_norm(x, mean, variance, scale, shift, training)
        return x.relu()

    skips = []
    x = images
    for stage, units in enumerate((1, 2, 3, 3, 3)):
        if stage:
            x = unit(x, f"down.{stage - 1}", 0, "down")
        for index in range(units):
            x = unit(x, f"encoder.{stage}", 3 * index, "same")
        skips.append(x)
    for stage, units in enumerate((3, 3, 2, 1)):
        x = unit(x, f"up.{stage}", 0, "up") + skips[3 - stage]
        for index in range(units):
            x = unit(x, f"decoder.{stage}", 3 * index, "same")
    return functional.conv3d(x, weights["head.weight"], weights["head.bias"])


def test_number_of_parameters() -> None:
    assert sum(p.numel() for p in make_student("vnet", in_channels=1, classes=2).parameters()) == 9_448_866


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("training", [True, False])
def test_logits_follow_the_definition(norm: str, training: bool) -> None:
    torch.manual_seed(3)
    model = VNet(2, 5, norm=norm, dropout=False).train(training)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5) if name.endswith("var") else buffer.normal_()
        expected = by_definition(copy.deepcopy(model), crops(channels=2), norm=norm, training=training)
        found = model(crops(channels=2))
    assert found.shape == (2, 5, *PATCH)
    assert expected.abs().max() > 0.1
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_parts_make_the_whole() -> None:
    torch.manual_seed(0)
    model = make_student("vnet", in_channels=1, classes=3).eval()
    with torch.no_grad():
        features = model.encode(crops())
        decoded = model.decode(features)
        assert [tuple(f.shape[1:]) for f in features] == [
            (16, 32, 16, 16), (32, 16, 8, 8), (64, 8, 4, 4), (128, 4, 2, 2), (256, 2, 1, 1),
        ]  # fmt: skip
        assert [tuple(f.shape[1:]) for f in decoded] == [
            (128, 4, 2, 2), (64, 8, 4, 4), (32, 16, 8, 8), (16, 32, 16, 16),
        ]  # fmt: skip
        assert torch.equal(model.head(decoded[-1]), model(crops()))


def test_dropout_drops_whole_channels_in_training_only() -> None:
    torch.manual_seed(0)
    model = make_student("vnet", in_channels=1, classes=2)
    bottleneck = model.encode(crops())[-1].flatten(2)
    last = model.decode(model.encode(crops()))[-1].flatten(2)
    for features, expected in ((bottleneck, 256), (last, 16)):
        dropped = (features == 0).all(2)
        assert 0.2 < dropped.float().mean() < 0.8 and dropped.shape[1] == expected
    plain = make_student("vnet", in_channels=1, classes=2, dropout=False)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.eval()(crops()), model.eval()(crops()))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_checkpointing_changes_neither_gradient_nor_statistics(norm: str) -> None:
    torch.manual_seed(1)
    kept = make_student("vnet", in_channels=1, classes=2, norm=norm)
    again = copy.deepcopy(kept)
    again.set_checkpointing(True)
    outputs = []
    for model in (kept, again):
        torch.manual_seed(2)
        logits = model(crops())
        logits.square().mean().backward()
        outputs.append(logits.detach())
    assert torch.equal(*outputs)
    for (name, first), second in zip(kept.named_parameters(), again.parameters(), strict=True):
        assert first.grad is not None and second.grad is not None
        assert torch.equal(first.grad, second.grad), name
    for (name, old), new in zip(kept.named_buffers(), again.buffers(), strict=True):
        assert torch.equal(old, new), name
    if norm == "batch":
        assert int(again.state_dict()["encoder.0.1.num_batches_tracked"]) == 1


@pytest.mark.parametrize("patch", [(112, 112, 80), (96, 96, 96), (16, 32, 64)])
def test_patches_that_fit(patch: tuple[int, int, int]) -> None:
    VNet().check_patch(patch)


@pytest.mark.parametrize("patch", [(112, 112, 81), (8, 16, 16), (16, 16), (0, 16, 16)])
def test_patches_that_do_not_fit(patch: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="vnet") as caught:
        VNet().check_patch(patch)
    assert "16" in caught.value.hint


def test_instance_norm_needs_more_than_one_voxel_at_the_bottleneck() -> None:
    model = VNet(norm="instance")
    with pytest.raises(InputError, match="too small"):
        model.check_patch((16, 16, 16))
    model.check_patch((32, 16, 16))
    model(crops())


def test_unknown_names_and_options() -> None:
    with pytest.raises(InputError, match="'unet'") as caught:
        make_student("unet", in_channels=1, classes=2)
    assert "vnet" in caught.value.hint
    with pytest.raises(InputError, match="depth"):
        make_student("vnet", in_channels=1, classes=2, depth=3)
    with pytest.raises(InputError, match="layer"):
        make_student("vnet", in_channels=1, classes=2, norm="layer")


def description(**changes: Any) -> dict[str, Any]:
    return {
        "structures": [
            {"value": 1, "name": "Anterior", "color": [255, 0, 0]},
            {"value": 4, "name": "Posterior", "color": [0, 255, 0]},
        ],
        "preprocessing": {"stack_axis": 2},
        "patch": PATCH,
        "stride": (16, 8, 8),
        "made_by": {"method": "mean_teacher"},
        **changes,
    }


@pytest.fixture(scope="module")
def trained() -> VNet:
    torch.manual_seed(5)
    model = VNet(1, 3, norm="batch", dropout=True)
    with torch.no_grad():
        model(crops())
    return model


def test_student_is_stored_and_loaded(tmp_path: Path, trained: VNet) -> None:
    save_student(trained, tmp_path / "student", description())
    model, info = load_student(tmp_path / "student")
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(crops()), copy.deepcopy(trained).eval()(crops()))
    assert info["patch"] == list(PATCH) and info["stride"] == [16, 8, 8]
    assert info["structures"][1]["value"] == 4
    assert (info["student"], info["in_channels"], info["classes"]) == ("vnet", 1, 3)
    assert info["student_options"] == {"norm": "batch", "dropout": True}
    assert sorted(path.name for path in (tmp_path / "student").iterdir()) == [
        "student.json",
        "student.safetensors",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"patch": (32, 16)},
        {"structures": []},
        {"structures": [{"name": "A"}, {"name": "B"}]},
        {"stride": (33, 8, 8)},
        {"made_by": None},
        {"preprocessing": 3},
    ],
)
def test_incomplete_descriptions_are_not_stored(
    tmp_path: Path, trained: VNet, changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="cannot be saved"):
        save_student(trained, tmp_path, description(**changes))
    assert not list(tmp_path.iterdir())


def test_damaged_students_are_refused(tmp_path: Path, trained: VNet) -> None:
    save_student(trained, tmp_path, description())
    weights, text = tmp_path / "student.safetensors", tmp_path / "student.json"
    whole, words = weights.read_bytes(), json.loads(text.read_text())

    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="student.safetensors is damaged"):
        load_student(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match="student.safetensors is missing"):
        load_student(tmp_path)
    weights.write_bytes(whole)

    broken: list[tuple[dict[str, Any], str]] = [
        ({"format_version": 2}, "newer version"),
        ({"format_version": None}, "no format version"),
        ({"classes": 4}, "structures"),
        ({"student": "unet"}, "unet"),
        ({"student_options": {"norm": "instance"}}, "does not fit"),
        ({"patch": [8, 8, 8], "stride": [8, 8, 8]}, "patch of 8 x 8 x 8"),
        ({"patch": "large"}, "'patch'"),
    ]
    for changes, message in broken:
        text.write_text(json.dumps({**words, **changes}))
        with pytest.raises(InputError, match=message):
            load_student(tmp_path)
    for content in ("[]", "{"):
        text.write_text(content)
        with pytest.raises(InputError, match="damaged"):
            load_student(tmp_path)
    text.unlink()
    with pytest.raises(InputError, match="student.json is missing"):
        load_student(tmp_path)
    text.write_text(json.dumps(words))
    load_student(tmp_path)
