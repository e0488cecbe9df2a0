"""What a Segment Anything model is made of: the known sizes, and reading a size off a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from SFRCore.errors import InputError


@dataclass(frozen=True)
class FoundationSpec:
    """The architecture of one SAM (Kirillov et al. 2023, ``segment_anything.modeling``).

    ``dim``, ``depth``, ``heads``: width, number of blocks and attention heads of the image encoder (a ViT);
    ``global_blocks``: indices of the blocks that attend over the whole canvas, the others attend within
    windows of ``window`` x ``window`` tokens; ``patch``: canvas pixels a token; ``canvas``: pixels of the
    square image it was trained on; ``out_chans``: channels of the embedding, also the width of the decoder;
    ``mlp_dim``, ``decoder_depth``: of the decoder's two-way transformer, which always has 8 heads.
    """

    name: str
    dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    patch: int = 16
    window: int = 14
    canvas: int = 1024
    out_chans: int = 256
    mlp_dim: int = 2048
    decoder_depth: int = 2
    iou_hidden: int = 256
    mask_chans: int = 16

    def __post_init__(self) -> None:
        self.tokens(self.canvas)

    def tokens(self, canvas: int) -> int:
        """Tokens along a side of a canvas of ``canvas`` pixels; InputError where it is no whole number."""
        if canvas < self.patch or canvas % self.patch:
            raise InputError(
                f"A canvas of {canvas} pixels does not suit {self.name} with patches of {self.patch} pixels.",
                hint=f"Choose a multiple of {self.patch}.",
            )
        return canvas // self.patch

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {**asdict(self), "global_blocks": list(self.global_blocks)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FoundationSpec:
        """The inverse of ``to_dict``. Raises InputError where values are missing or unknown."""
        try:
            return cls(**{**values, "global_blocks": tuple(values["global_blocks"])})
        except (TypeError, KeyError, ValueError, ZeroDivisionError) as error:
            raise InputError("The description of the foundation model is incomplete or damaged.") from error


SPECS: dict[str, FoundationSpec] = {
    spec.name: spec
    for spec in (
        FoundationSpec("vit_b", dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
        FoundationSpec("vit_l", dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
        FoundationSpec("vit_h", dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
        *(
            FoundationSpec(
                name,
                dim=192,
                depth=6,
                heads=6,
                global_blocks=(5,),
                patch=patch,
                window=8,
                canvas=256,
                out_chans=128,
                mlp_dim=512,
                iou_hidden=128,
                mask_chans=8,
            )
            for name, patch in (("tiny", 8), ("tiny16", 16))
        ),
    )
}


def get_spec(name: str) -> FoundationSpec:
    """The known architecture of that name. Raises InputError that lists the names."""
    try:
        return SPECS[name]
    except KeyError:
        raise InputError(
            f"There is no foundation model called {name}.",
            hint=f"Choose one of {', '.join(SPECS)}, or a file.",
        ) from None


def spec_from_state(state: Mapping[str, Tensor], *, source: str = "the file") -> FoundationSpec:
    """Read the architecture off the shapes in a segment-anything state dict (of any canvas size).

    The result's ``canvas`` is the one that the position embeddings in ``state`` were made for.
    Raises InputError where this is not a SAM of the original design (SAM 2, MobileSAM and HQ-SAM are not).
    """
    try:
        return _read(state)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, InputError) as error:
        raise InputError(
            f"{source} does not hold the weights of a Segment Anything model of the original design.",
            hint="Use a vit_b, vit_l or vit_h checkpoint, or one fine-tuned from them, such as MedSAM.",
        ) from error


def _read(state: Mapping[str, Tensor]) -> FoundationSpec:
    encoder, decoder = "image_encoder.", "mask_decoder.transformer.layers."
    dim, channels, patch, patch_w = state[f"{encoder}patch_embed.proj.weight"].shape
    _, side, side_w, position_dim = state[f"{encoder}pos_embed"].shape
    depth = _count(state, f"{encoder}blocks.")
    lengths = []
    for i in range(depth):
        length, head_dim = state[f"{encoder}blocks.{i}.attn.rel_pos_h"].shape
        lengths.append(length)
    if channels != 3 or patch != patch_w or side != side_w or position_dim != dim or dim % head_dim:
        raise ValueError("not a square ViT over three channels")
    heads = dim // head_dim
    whole = 2 * side - 1
    known = [
        spec
        for spec in SPECS.values()
        if (spec.dim, spec.depth, spec.heads, spec.patch) == (dim, depth, heads, patch)
    ]
    if known:
        window, global_blocks = known[0].window, known[0].global_blocks
    else:
        windowed = {length for length in lengths if length != whole}
        if len(windowed) != 1:
            raise ValueError("windows of several sizes, or none")
        window = (windowed.pop() + 1) // 2
        global_blocks = tuple(i for i, length in enumerate(lengths) if length == whole)
    expected = [whole if i in global_blocks else 2 * window - 1 for i in range(depth)]
    if lengths != expected:
        raise ValueError("relative positions do not suit the canvas")
    return FoundationSpec(
        name=known[0].name if known else "custom",
        dim=dim,
        depth=depth,
        heads=heads,
        global_blocks=global_blocks,
        patch=patch,
        window=window,
        canvas=side * patch,
        out_chans=state[f"{encoder}neck.0.weight"].shape[0],
        mlp_dim=state[f"{decoder}0.mlp.lin1.weight"].shape[0],
        decoder_depth=_count(state, decoder),
        iou_hidden=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        mask_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of numbered modules directly under ``prefix``."""
    return 1 + max(int(key[len(prefix) :].split(".")[0]) for key in state if key.startswith(prefix))
