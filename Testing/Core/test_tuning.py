"""What is trained, low-rank adapters, and tuned models on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from SFRCore.errors import InputError
from SFRCore.foundation.adapters import Adapter
from SFRCore.foundation.checkpoints import build_foundation, save_foundation_checkpoint
from SFRCore.foundation.sam import ClasswiseSAM
from SFRCore.foundation.spec import SPECS
from SFRCore.foundation.store import load_tuned, read_description, save_tuned
from SFRCore.foundation.tuning import apply_tuning, has_adapters, merge
from SFRCore.settings import Settings

CANVAS = 64


def tiny(seed: int = 0) -> ClasswiseSAM:
    return build_foundation("tiny", classes=2, canvas=CANVAS, seed=seed)


def canvases() -> torch.Tensor:
    return torch.randn(2, 1, CANVAS, CANVAS, generator=torch.Generator().manual_seed(2))


def train(model: ClasswiseSAM, steps: int = 2) -> None:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        (model(canvases()) - 1).square().mean().backward()
        optimiser.step()


def test_adapters_change_nothing_at_first() -> None:
    model = tiny()
    expected = model(canvases())
    before = torch.get_rng_state()
    apply_tuning(model, "lora")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model(canvases()), expected)
    adapter = model.image_encoder.blocks[3].attn.v
    assert adapter.scaling["default"] == 1
    drawn = adapter.lora_A["default"].weight.detach()
    assert float(drawn.abs().max()) <= 192**-0.5
    assert float(drawn.std()) == pytest.approx((3 * 192) ** -0.5, rel=0.1)
    assert not adapter.lora_B["default"].weight.any()


@pytest.mark.parametrize("rank", [4, 2])
def test_adapters_add_low_rank_products_to_the_first_and_last_third_of_qkv(rank: int) -> None:
    """The reference's _LoRA_qkv written out: qkv(x), its q part + B_q A_q x, its v part + B_v A_v x."""
    drawn = torch.Generator().manual_seed(5)
    plain, model = tiny(), apply_tuning(tiny(), "lora", rank=rank)
    for number in (0, 5):
        before, attention = plain.image_encoder.blocks[number].attn, model.image_encoder.blocks[number].attn
        dim = before.q.in_features
        x = torch.randn(2, 3, 3, dim, generator=drawn)
        expected = torch.cat([before.q(x), before.k(x), before.v(x)], -1)
        for part, first in (("q", 0), ("v", 2 * dim)):
            adapter = getattr(attention, part)
            up, down = adapter.lora_B["default"].weight, adapter.lora_A["default"].weight
            assert up.shape == (dim, rank) and down.shape == (rank, dim)
            with torch.no_grad():
                up.copy_(torch.randn(up.shape, generator=drawn))
            added = adapter.scaling["default"] * (x @ down.T) @ up.T
            assert added.abs().max() > 0.5, "far above rounding"
            expected[..., first : first + dim] += added
        found = torch.cat([attention.q(x), attention.k(x), attention.v(x)], -1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_adapters_of_vit_b_have_the_size_of_the_reference() -> None:
    with torch.device("meta"):
        model = ClasswiseSAM(SPECS["vit_b"], classes=2)
        apply_tuning(model, "lora")
    adapters = [(n, p) for n, p in model.named_parameters() if ".lora_" in n]
    assert len(adapters) == 48
    assert sum(p.numel() for _, p in adapters) == 147_456
    decoder = sum(p.numel() for p in model.mask_decoder.parameters())
    assert decoder == pytest.approx(3.78e6, rel=0.002)


def trainable_names(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_lora_trains_adapters_no_mask_embedding_and_decoder_only() -> None:
    model = apply_tuning(tiny(), "lora", rank=3)
    names = trainable_names(model)
    inside = [name for name in names if name.startswith("image_encoder.")]
    assert len(inside) == 6 * 2 * 2 and all(".lora_" in name for name in inside)
    assert [name for name in names if name.startswith("prompt_encoder.")] == [
        "prompt_encoder.no_mask_embed.weight"
    ]
    decoder = {name for name, _ in model.named_parameters() if name.startswith("mask_decoder.")}
    assert {name for name in decoder if "iou_prediction_head" not in name} <= set(names)
    assert model.tuning == {"method": "lora", "rank": 3}


METHODS = ["lora", "adapter", "decoder", "encoder_decoder", "full"]


@pytest.mark.parametrize("method", METHODS)
def test_every_trained_parameter_and_no_other_gets_a_gradient(method: str) -> None:
    model = apply_tuning(tiny(), method)
    train(model, steps=2)
    names = set(trainable_names(model))
    assert names == {name for name, p in model.named_parameters() if p.grad is not None}
    encoder = {name for name in names if name.startswith("image_encoder.")}
    assert bool(encoder) == (method != "decoder")


def test_decoder_tuning_leaves_embeddings_as_they_are() -> None:
    model = apply_tuning(tiny(), "decoder")
    embedding = model.encode(canvases())
    assert not embedding.requires_grad
    train(model)
    assert torch.equal(model.encode(canvases()), embedding)


def test_merged_model_is_plain_and_equal_and_leaves_the_other_alone() -> None:
    model = apply_tuning(tiny(), "lora")
    untuned = model(canvases())
    train(model, steps=5)
    tuned = model(canvases())
    assert not torch.allclose(tuned, untuned, atol=0.1)
    plain = merge(model)
    assert not has_adapters(plain) and not plain.training and not trainable_names(plain)
    assert not any("lora" in name or "base_layer" in name for name in plain.state_dict())
    assert plain.state_dict().keys() == tiny().state_dict().keys()
    torch.testing.assert_close(plain(canvases()), tuned, rtol=1e-4, atol=1e-4)
    assert has_adapters(model) and trainable_names(model)
    assert torch.equal(model(canvases()), tuned)


def test_a_merged_model_becomes_a_foundation_file(tmp_path: Path) -> None:
    model = apply_tuning(tiny(), "lora")
    train(model)
    with pytest.raises(ValueError, match="merge"):
        save_foundation_checkpoint(model, tmp_path / "base.pth")
    save_foundation_checkpoint(merge(model), tmp_path / "base.pth")
    again = build_foundation(tmp_path / "base.pth", classes=2)
    torch.testing.assert_close(again(canvases()), model(canvases()), rtol=1e-4, atol=1e-4)


def test_bottlenecks_change_nothing_at_first_and_learn() -> None:
    model = tiny()
    expected = model(canvases())
    before = torch.get_rng_state()
    apply_tuning(model, "adapter")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model(canvases()), expected)
    assert model.tuning == {"method": "adapter", "width": 48}
    assert sum(isinstance(part, Adapter) for part in model.modules()) == 2 * 6
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    train(model, steps=3)
    assert not torch.allclose(model(canvases()), expected, atol=0.1)
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    again = apply_tuning(apply_tuning(tiny(), "adapter", seed=1), "adapter")
    drawn = [m.image_encoder.blocks[0].attn.adapter.down.weight for m in (model, again)]
    assert not torch.equal(*drawn), "drawn from the seed"


def test_bottlenecks_of_vit_b_have_a_quarter_of_its_channels() -> None:
    with torch.device("meta"):
        model = apply_tuning(ClasswiseSAM(SPECS["vit_b"], classes=2), "adapter")
    sizes = [p.numel() for name, p in model.named_parameters() if ".adapter." in name]
    assert sum(sizes) == 2 * 12 * (2 * 768 * 192 + 768 + 192)


def test_the_two_versions_of_medsam_leave_the_prompt_encoder_alone() -> None:
    for method in ("decoder", "encoder_decoder"):
        names = trainable_names(apply_tuning(tiny(), method))
        assert not any(name.startswith("prompt_encoder.") for name in names)
        decoder = {name for name in names if name.startswith("mask_decoder.")}
        assert {
            name for name, _ in tiny().named_parameters() if name.startswith("mask_decoder.")
        } - decoder == {name for name, _ in tiny().named_parameters() if "iou_prediction_head" in name}
    everything = set(trainable_names(apply_tuning(tiny(), "full")))
    names = set(trainable_names(apply_tuning(tiny(), "encoder_decoder")))
    assert everything - names == {"prompt_encoder.no_mask_embed.weight"}


def test_bottlenecks_stay_in_a_merged_model(tmp_path: Path) -> None:
    model = apply_tuning(tiny(), "adapter", width=8)
    train(model, steps=3)
    plain = merge(model)
    assert has_adapters(plain) and not trainable_names(plain) and not plain.training
    torch.testing.assert_close(plain(canvases()), model(canvases()), rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="bottleneck adapters") as caught:
        save_foundation_checkpoint(plain, tmp_path / "base.pth")
    assert "lora" in caught.value.hint


def test_unknown_methods_and_ranks_are_refused() -> None:
    with pytest.raises(InputError, match="called bottleneck"):
        apply_tuning(tiny(), "bottleneck")
    with pytest.raises(InputError, match="rank of 0"):
        apply_tuning(tiny(), "lora", rank=0)
    with pytest.raises(InputError, match="width of 193"):
        apply_tuning(tiny(), "adapter", width=193)
    with pytest.raises(InputError, match="'bottleneck' is not a value of tuning"):
        Settings.of(tuning="bottleneck")
    model = apply_tuning(tiny(), "lora", rank=2)
    with pytest.raises(ValueError, match="merge them first"):
        apply_tuning(model, "lora", rank=4)
    with pytest.raises(ValueError, match="merge them first"):
        apply_tuning(model, "adapter")
    assert apply_tuning(model, "lora", rank=2) is model


@pytest.fixture
def base_file(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoints" / "base.pth"
    save_foundation_checkpoint(tiny(seed=9), path)
    return path


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("from_file", [True, False])
def test_a_tuned_model_comes_back_equal_and_can_be_tuned_on(
    tmp_path: Path, base_file: Path, method: str, from_file: bool
) -> None:
    source = base_file if from_file else "tiny"
    model = apply_tuning(build_foundation(source, classes=3, canvas=96), method, rank=2)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    image = torch.randn(1, 1, 96, 96)
    (model(image) - 1).square().mean().backward()
    optimiser.step()
    folder = save_tuned(model, tmp_path / "models" / "foundation", {"stage": "finetune", "iterations": 1})
    again = load_tuned(folder)
    assert torch.equal(again(image), model(image))
    assert trainable_names(again) == trainable_names(model)
    assert (again.canvas, again.classes, again.tuning, again.origin) == (96, 3, model.tuning, model.origin)
    assert not again.training
    description = read_description(folder)
    assert description["made_by"] == {"stage": "finetune", "iterations": 1}
    weights = load_file(folder / "foundation.safetensors")
    if from_file and method in ("lora", "adapter", "decoder"):
        encoder = {name for name in weights if name.startswith("image_encoder.")}
        assert all(".lora_" in name or ".adapter." in name for name in encoder)
        assert description["origin"]["file"] == str(base_file)
    assert sorted(entry.name for entry in folder.iterdir()) == ["foundation.json", "foundation.safetensors"]


def saved(folder: Path, base_file: Path) -> Path:
    return save_tuned(apply_tuning(build_foundation(base_file, classes=2), "lora"), folder, {})


def test_a_moved_checkpoint_is_found_in_the_checkpoint_folder(tmp_path: Path, base_file: Path) -> None:
    folder = saved(tmp_path / "model", base_file)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = base_file.rename(elsewhere / base_file.name)
    with pytest.raises(InputError, match=r"base\.pth that this model was tuned from is missing"):
        load_tuned(folder, checkpoint_folder=tmp_path)
    assert has_adapters(load_tuned(folder, checkpoint_folder=elsewhere))
    save_foundation_checkpoint(tiny(seed=10), moved)
    with pytest.raises(InputError, match="is not the checkpoint that this model was tuned from"):
        load_tuned(folder, checkpoint_folder=elsewhere)


def test_damaged_newer_or_missing_files_are_refused(tmp_path: Path, base_file: Path) -> None:
    folder = saved(tmp_path / "model", base_file)
    weights, description = folder / "foundation.safetensors", folder / "foundation.json"
    whole, text = weights.read_bytes(), description.read_text()
    weights.write_bytes(whole[:-10])
    with pytest.raises(InputError, match="damaged"):
        load_tuned(folder)
    weights.unlink()
    with pytest.raises(InputError, match="missing"):
        load_tuned(folder)
    weights.write_bytes(whole)
    description.write_text(json.dumps({**json.loads(text), "format_version": 99}))
    with pytest.raises(InputError, match="newer version"):
        load_tuned(folder)
    description.write_text(json.dumps({**json.loads(text), "tuning": {"method": "decoder"}}))
    with pytest.raises(InputError, match="does not fit"):
        load_tuned(folder)
    description.write_text(json.dumps({**json.loads(text), "classes": 5}))
    with pytest.raises(InputError, match="does not fit"):
        load_tuned(folder)
    description.write_text("{}")
    with pytest.raises(InputError, match="does not describe"):
        load_tuned(folder)
    description.write_text(text)
    assert load_tuned(folder).classes == 2
