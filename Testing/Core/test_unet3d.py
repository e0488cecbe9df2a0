"""The 3D U-Net against its definition."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from SFRCore.errors import InputError
from SFRCore.students import load_student, make_student, save_student
from SFRCore.students.unet3d import UNet3D

PATCH = (32, 16, 16)


def crops(batch: int = 2, channels: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(batch, channels, *PATCH, generator=torch.Generator().manual_seed(seed))


def by_definition(model: UNet3D, images: Tensor) -> Tensor:
    """The network written out with functions; instance norm, no dropout."""
    weights = dict(model.state_dict())

    def block(x: Tensor, name: str) -> Tensor:
        for layer in (0, 3):
            x = functional.conv3d(
                x, weights[f"{name}.{layer}.weight"], weights[f"{name}.{layer}.bias"], padding=1
            )
            x = functional.instance_norm(x).relu()
        return x

    skips = [block(images, "encoder.0")]
    for stage in range(1, 5):
        skips.append(block(functional.max_pool3d(skips[-1], 2), f"encoder.{stage}"))
    x = skips[-1]
    for stage in range(4):
        risen = functional.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        x = block(torch.cat([skips[3 - stage], risen], 1), f"decoder.{stage}")
    return functional.conv3d(x, weights["head.weight"], weights["head.bias"])


@pytest.mark.parametrize("training", [True, False])
def test_logits_follow_the_definition(training: bool) -> None:
    torch.manual_seed(3)
    model = UNet3D(2, 5, dropout=False).train(training)
    with torch.no_grad():
        expected = by_definition(copy.deepcopy(model), crops(channels=2))
        found = model(crops(channels=2))
    assert found.shape == (2, 5, *PATCH)
    assert expected.abs().max() > 0.1
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_parts_make_the_whole() -> None:
    torch.manual_seed(0)
    model = make_student("unet3d", in_channels=1, classes=3).eval()
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


def test_dropout_drops_single_elements_in_training_only() -> None:
    torch.manual_seed(0)
    model = make_student("unet3d", in_channels=1, classes=2, norm="batch")
    plain = make_student("unet3d", in_channels=1, classes=2, norm="batch", dropout=False)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        bottleneck = model.encode(crops())[-1]
        kept = plain.encode(crops())[-1]
        dropped = (bottleneck == 0) & (kept > 0)
        assert 0.2 < float(dropped.sum() / (kept > 0).sum()) < 0.4
        whole = dropped.flatten(2).all(2) & (kept > 0).flatten(2).all(2)
        assert not whole.all()
        assert torch.equal(plain.eval()(crops()), model.eval()(crops()))


def test_weights_start_after_kaiming() -> None:
    torch.manual_seed(0)
    weight = UNet3D(1, 2).encoder[3][3].weight
    assert float(weight.detach().std()) == pytest.approx((2 / (128 * 27)) ** 0.5, rel=0.02)


def test_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(1)
    kept = make_student("unet3d", in_channels=1, classes=2)
    again = copy.deepcopy(kept)
    again.set_checkpointing(True)
    for model in (kept, again):
        torch.manual_seed(2)
        model(crops()).square().mean().backward()
    for first, second in zip(kept.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad)


def test_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = make_student("unet3d", in_channels=1, classes=3).eval()
    info = {
        "student": "unet3d",
        "student_options": dict(model.options),
        "in_channels": 1,
        "classes": 3,
        "patch": list(PATCH),
        "stride": [16, 8, 8],
        "made_by": {},
        "preprocessing": {"stack_axis": 2},
        "structures": [
            {"value": 1, "name": "A", "color": [255, 0, 0]},
            {"value": 4, "name": "B", "color": [0, 255, 0]},
        ],
    }
    save_student(model, tmp_path / "model", info)
    loaded, _ = load_student(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(crops()), model(crops()))
    assert not loaded.takes_any_size, "instance norm sees the whole window"


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(InputError, match="multiples|cannot be used"):
        make_student("unet3d", in_channels=1, classes=2).check_patch((24, 16, 16))
    with pytest.raises(InputError, match="too small"):
        make_student("unet3d", in_channels=1, classes=2).check_patch((16, 16, 16))
    with pytest.raises(InputError, match="no normalisation"):
        make_student("unet3d", in_channels=1, classes=2, norm="group")
