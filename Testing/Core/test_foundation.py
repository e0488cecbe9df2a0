"""The class-wise SAM equals segment-anything, loads its files, and is refused where a file is not whole."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from SFRCore.errors import InputError
from SFRCore.foundation.checkpoints import (
    build_foundation,
    build_from_state,
    join_qkv,
    load_checkpoint_file,
    resize_positions,
    save_foundation_checkpoint,
    split_qkv,
)
from SFRCore.foundation.download import CHECKPOINTS, Checkpoint, file_sha256
from SFRCore.foundation.sam import ClasswiseSAM, SplitAttention
from SFRCore.foundation.spec import SPECS, FoundationSpec, get_spec, spec_from_state

CANVAS = 64


@pytest.fixture(scope="module")
def tiny() -> ClasswiseSAM:
    """A small model whose relative positions are not zero."""
    model = build_foundation("tiny", classes=4, canvas=CANVAS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "rel_pos" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture
def state(tiny: ClasswiseSAM) -> dict[str, Tensor]:
    return join_qkv(tiny.state_dict())


def canvases(count: int = 2, side: int = CANVAS) -> Tensor:
    return torch.randn(count, 1, side, side, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("size", "heads", "dim"), [((8, 8), 6, 192), ((7, 7), 2, 24), ((14, 14), 3, 48)])
def test_attention_equals_segment_anything_in_value_and_gradient(
    size: tuple[int, int], heads: int, dim: int
) -> None:
    torch.manual_seed(0)
    theirs = Attention(dim, heads, use_rel_pos=True, input_size=size)
    nn.init.normal_(theirs.rel_pos_h)
    nn.init.normal_(theirs.rel_pos_w)
    ours = SplitAttention(dim, heads, size[0])
    ours.load_state_dict(
        {
            key.removeprefix("a.attn."): value
            for key, value in split_qkv({f"a.attn.{k}": v for k, v in theirs.state_dict().items()}).items()
        }
    )
    tokens = torch.randn(3, *size, dim)
    results = []
    for attention in (theirs, ours):
        inputs = tokens.clone().requires_grad_()
        out = attention(inputs)
        (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
        rel = attention.rel_pos_h.grad, attention.rel_pos_w.grad
        results.append((out, inputs.grad, attention.proj.weight.grad, *rel))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)
    qkv = torch.cat([ours.q.weight.grad, ours.k.weight.grad, ours.v.weight.grad])
    torch.testing.assert_close(qkv, theirs.qkv.weight.grad, rtol=1e-4, atol=2e-5)


def test_masks_equal_segment_anything_for_all_tokens(tiny: ClasswiseSAM) -> None:
    spec, side = tiny.spec, CANVAS // tiny.spec.patch
    parts = nn.ModuleDict(
        {
            "image_encoder": ImageEncoderViT(
                img_size=CANVAS,
                patch_size=spec.patch,
                embed_dim=spec.dim,
                depth=spec.depth,
                num_heads=spec.heads,
                out_chans=spec.out_chans,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                use_rel_pos=True,
                window_size=spec.window,
                global_attn_indexes=spec.global_blocks,
            ),
            "prompt_encoder": PromptEncoder(spec.out_chans, (side, side), (CANVAS, CANVAS), spec.mask_chans),
            "mask_decoder": MaskDecoder(
                transformer_dim=spec.out_chans,
                transformer=TwoWayTransformer(2, spec.out_chans, 8, spec.mlp_dim),
                iou_head_hidden_dim=spec.iou_hidden,
            ),
        }
    )
    parts.load_state_dict(join_qkv(tiny.state_dict()))
    images = canvases(2)
    embedding = parts["image_encoder"](images.repeat(1, 3, 1, 1))
    sparse, dense = parts["prompt_encoder"](None, None, None)
    for i in range(2):
        masks, _ = parts["mask_decoder"].predict_masks(
            embedding[i : i + 1], parts["prompt_encoder"].get_dense_pe(), sparse, dense
        )
        expected = F.interpolate(masks, (CANVAS, CANVAS), mode="bilinear", align_corners=False)
        torch.testing.assert_close(tiny(images)[i : i + 1], expected, rtol=1e-4, atol=1e-5)


def test_shapes_and_independence_of_the_batch(tiny: ClasswiseSAM) -> None:
    images = canvases(3)
    embedding = tiny.encode(images)
    assert embedding.shape == (3, 128, 8, 8)
    logits = tiny(images)
    assert logits.shape == (3, 4, CANVAS, CANVAS)
    torch.testing.assert_close(tiny.decode(embedding), logits)
    torch.testing.assert_close(tiny(embedding, embedded=True), logits)
    torch.testing.assert_close(tiny(images[1:2]), logits[1:2], rtol=1e-4, atol=1e-5)


def test_mixed_precision_stays_close(tiny: ClasswiseSAM) -> None:
    with torch.no_grad():
        expected = tiny(canvases(1)).softmax(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = tiny(canvases(1))
    torch.testing.assert_close(logits.float().softmax(1), expected, rtol=0, atol=0.1)


def test_tiny_is_small_seeded_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (build_foundation("tiny", classes=3, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(torch.get_rng_state(), before)
    assert 2e6 < sum(p.numel() for p in first.parameters()) < 5e6
    assert first.canvas == 256 and first.origin == {"name": "tiny", "seed": 7}
    a, b, c = first.state_dict(), again.state_dict(), other.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    weight = "image_encoder.blocks.0.attn.q.weight"
    assert not torch.equal(a[weight], c[weight])
    assert build_foundation("tiny16", classes=2, canvas=128).encode(canvases(1, 128)).shape[-1] == 8


def test_recomputed_blocks_give_the_same_gradient() -> None:
    model = build_foundation("tiny", classes=2, canvas=CANVAS)
    gradients = []
    for on in (False, True):
        model.set_checkpointing(on)
        model.zero_grad()
        model(canvases()).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 80
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_recomputed_blocks_keep_less_for_the_backward_pass() -> None:
    model = build_foundation("tiny", classes=2, canvas=CANVAS)
    kept = {}
    for on in (False, True):
        model.set_checkpointing(on)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.encode(canvases())
        kept[on] = sum(sizes)
    assert kept[True] < kept[False] / 3


def test_tiny_learns_a_simple_shape() -> None:
    torch.manual_seed(0)
    model = build_foundation("tiny16", classes=2, canvas=CANVAS)
    images = canvases(2) * 0.3
    labels = torch.zeros(2, CANVAS, CANVAS, dtype=torch.long)
    for i, (row, column) in enumerate([(8, 30), (32, 12)]):
        images[i, 0, row : row + 24, column : column + 20] += 1.5
        labels[i, row : row + 24, column : column + 20] = 1
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(16):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
    found = model(images).argmax(1)
    dice = (
        2 * int(((found == 1) & (labels == 1)).sum()) / (int((found == 1).sum()) + int((labels == 1).sum()))
    )
    assert dice > 0.8


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_known_sizes_are_read_off_the_shapes_and_positions_resized(name: str) -> None:
    with torch.device("meta"):
        state = sam_model_registry[name]().state_dict()
    spec = spec_from_state(state)
    assert spec == SPECS[name]
    resized = resize_positions(state, spec, 512)
    assert resized["image_encoder.pos_embed"].shape == (1, 32, 32, spec.dim)
    for block in range(spec.depth):
        length = 63 if block in spec.global_blocks else 27
        for axis in "hw":
            table = resized[f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"]
            assert table.shape == (length, spec.dim // spec.heads)
    assert spec_from_state(resized) == FoundationSpec(**{**spec.__dict__, "canvas": 512})
    with torch.device("meta"):
        model = ClasswiseSAM(spec, classes=4, canvas=512)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in split_qkv(resized).items()
    }


def test_resized_positions_are_those_of_the_reference(state: dict[str, Tensor]) -> None:
    spec = spec_from_state(state)
    assert spec.canvas == CANVAS and spec.name == "tiny"
    resized = resize_positions(state, spec, 96)
    last = "image_encoder.blocks.5.attn.rel_pos_h"
    expected = F.interpolate(state[last][None, None], (23, 32), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(resized[last], expected)
    assert resized["image_encoder.blocks.4.attn.rel_pos_h"] is state["image_encoder.blocks.4.attn.rel_pos_h"]
    flat = F.interpolate(
        state["image_encoder.pos_embed"].permute(0, 3, 1, 2), (12, 12), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(resized["image_encoder.pos_embed"].permute(0, 3, 1, 2), flat)
    assert build_from_state(state, classes=4, canvas=96)(canvases(1, 96)).shape == (1, 4, 96, 96)


def test_another_design_of_vit_is_recognised_by_its_shapes() -> None:
    spec = FoundationSpec(
        "custom",
        dim=32,
        depth=3,
        heads=2,
        global_blocks=(1,),
        patch=4,
        window=3,
        canvas=32,
        out_chans=32,
        mlp_dim=16,
    )
    model = ClasswiseSAM(spec, classes=2)
    assert spec_from_state(join_qkv(model.state_dict())) == spec


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_saved_checkpoint_is_the_same_model(tiny: ClasswiseSAM, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"mein Modell é{ending}"
    save_foundation_checkpoint(tiny, path)
    assert "image_encoder.blocks.0.attn.qkv.weight" in load_checkpoint_file(path)
    again = build_foundation(path, classes=4)
    assert again.canvas == CANVAS and again.spec == FoundationSpec(**{**tiny.spec.__dict__, "canvas": CANVAS})
    assert again.origin == {"name": "tiny", "seed": 0, "sha256": file_sha256(path), "file": str(path)}
    assert torch.equal(again(canvases()), tiny(canvases()))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in again.parameters())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_parts_by_class_that_do_not_fit_are_drawn_anew_and_the_rest_is_kept(
    state: dict[str, Tensor],
) -> None:
    kept = build_from_state(state, classes=4, seed=3)
    assert torch.equal(kept.mask_decoder.mask_tokens.weight, state["mask_decoder.mask_tokens.weight"])
    old = split_qkv(state)
    for classes in (2, 6):
        fresh, again = (build_from_state(state, classes=classes, seed=3).state_dict() for _ in range(2))
        drawn = set()
        for key, value in fresh.items():
            assert torch.equal(value, again[key])
            if key not in old or not torch.equal(value, old[key]):
                drawn.add(key.removeprefix("mask_decoder.").rpartition(".layers.")[0] or key)
        several = {f"output_hypernetworks_mlps.{n}" for n in range(4, classes)}
        assert drawn == {"mask_decoder.mask_tokens.weight", "iou_prediction_head"} | several


def test_wrapped_prefixed_and_half_precision_checkpoints_load(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "wrapped.pt"
    torch.save({"epoch": 3, "model": {f"module.{key}": value.half() for key, value in state.items()}}, path)
    model = build_foundation(path, classes=4)
    weight = model.image_encoder.patch_embed.proj.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["image_encoder.patch_embed.proj.weight"].half().float())


class Payload:
    """Something that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return eval, ("open('/tmp/sfr-was-here', 'w')",)


def corrupt_code(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"model": state, "hook": Payload()}, path)


def corrupt_plain_pickle(path: Path, state: dict[str, Tensor]) -> None:
    path.write_bytes(pickle.dumps({"model": Payload()}, protocol=2))


def corrupt_truncated(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-5000])


def corrupt_garbage(path: Path, state: dict[str, Tensor]) -> None:
    path.write_bytes(bytes(range(256)) * 20)


def corrupt_empty(path: Path, state: dict[str, Tensor]) -> None:
    path.write_bytes(b"")


def corrupt_other_network(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, path)


def corrupt_list(path: Path, state: dict[str, Tensor]) -> None:
    torch.save([1, 2, 3], path)


def corrupt_extra_parts(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "mask_decoder.hf_token.weight": torch.zeros(1, 128)}, path)


def corrupt_missing_part(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({key: value for key, value in state.items() if "blocks.3.mlp" not in key}, path)


def corrupt_positions(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "image_encoder.blocks.2.attn.rel_pos_h": torch.zeros(19, 32)}, path)


def corrupt_not_a_number(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(
        {**state, "image_encoder.pos_embed": torch.full_like(state["image_encoder.pos_embed"], torch.nan)},
        path,
    )


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (corrupt_code, "program code"),
        (corrupt_plain_pickle, "program code"),
        (corrupt_truncated, "not a whole checkpoint"),
        (corrupt_garbage, "not a whole checkpoint"),
        (corrupt_empty, "not a whole checkpoint"),
        (corrupt_other_network, "Segment Anything"),
        (corrupt_list, "Segment Anything"),
        (corrupt_extra_parts, "original design"),
        (corrupt_missing_part, "original design"),
        (corrupt_positions, "original design"),
        (corrupt_not_a_number, "not numbers"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_a_sentence_with_its_name(
    tmp_path: Path, state: dict[str, Tensor], corrupt: Callable[[Path, dict[str, Tensor]], None], message: str
) -> None:
    path = tmp_path / "given.pth"
    corrupt(path, state)
    with pytest.raises(InputError, match=message) as caught:
        build_foundation(path, classes=2)
    assert "given.pth" in caught.value.message and caught.value.hint
    assert not Path("/tmp/sfr-was-here").exists()


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "given.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a whole checkpoint"):
        build_foundation(path, classes=2)


def test_known_names_need_their_file_with_the_known_checksum(
    tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFR_CHECKPOINTS", str(tmp_path))
    with pytest.raises(InputError, match="not downloaded yet") as caught:
        build_foundation("vit_b", classes=2)
    assert caught.value.hint == "Run: sfr download vit_b"
    path = tmp_path / CHECKPOINTS["vit_b"].filename
    torch.save(state, path)
    with pytest.raises(InputError, match="checksum is not the known one"):
        build_foundation("vit_b", classes=2)
    known = Checkpoint(path.name, file_sha256(path), path.stat().st_size)
    monkeypatch.setitem(CHECKPOINTS, "vit_b", known)
    model = build_foundation("vit_b", classes=2, folder=tmp_path)
    assert model.origin == {"name": "vit_b", "seed": 0, "sha256": known.sha256}


def test_impossible_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one structure"):
        build_foundation("tiny", classes=1)
    with pytest.raises(InputError, match="A canvas of 100 pixels"):
        build_foundation("tiny", classes=2, canvas=100)
    with pytest.raises(InputError, match="no file called") as caught:
        build_foundation(tmp_path / "nothing.pth", classes=2)
    assert "vit_b" in caught.value.hint
    with pytest.raises(InputError, match="called vit_x"):
        get_spec("vit_x")
    with pytest.raises(InputError, match="incomplete"):
        FoundationSpec.from_dict({"name": "vit_b"})
    assert FoundationSpec.from_dict(SPECS["vit_l"].to_dict()) == SPECS["vit_l"]
