"""Segment Anything that labels every pixel of a canvas: one mask a class, no prompt.

The parts are segment-anything's own. The decoder returns the masks of all its tokens as the logits of the
classes, token 0 being the background, as the SFR reference implementation and SAMed do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from SFRCore.errors import InputError
from SFRCore.foundation.spec import FoundationSpec

DECODER_HEADS = 8


class SplitAttention(nn.Module):
    """The attention of a SAM block with separate q, k and v, in memory linear in the number of tokens.

    Takes and returns (B, H, W, dim), and equals ``segment_anything.modeling.image_encoder.Attention`` up to
    rounding. There, the score of query token a and key token b is q_a.k_b/sqrt(d) + q_a.Rh[row] +
    q_a.Rw[column]. The last two terms are an inner product as well: of q_a's scores for every row and column
    with two one-hot vectors that tell where b is. So they are appended to q and k, and fused attention does
    without the (tokens x tokens) matrices of scores and positions. What an ``adapter`` makes of the result,
    if there is one, is added to it.
    """

    def __init__(self, dim: int, heads: int, size: int) -> None:
        """``size``: tokens along a side of the window, or of the canvas for a global block."""
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads) ** -0.5
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * size - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * size - 1, dim // heads))
        self.adapter: nn.Module | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        batch, height, width, dim = tokens.shape
        head_dim = dim // self.heads
        flat = tokens.reshape(batch, height * width, dim)
        q, k, v = (
            linear(flat).unflatten(2, (self.heads, head_dim)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        grid = q.unflatten(2, (height, width))
        by_row = torch.einsum("bnhwc,hkc->bnhwk", grid, _relative(self.rel_pos_h, height))
        by_column = torch.einsum("bnhwc,wkc->bnhwk", grid, _relative(self.rel_pos_w, width))
        # Fused kernels want one head size for q, k and v, a multiple of 8.
        padding = -(head_dim + height + width) % 8
        q = torch.cat(
            [q * self.scale, by_row.flatten(2, 3).to(q.dtype), by_column.flatten(2, 3).to(q.dtype)], -1
        )
        k = torch.cat([k, _where(height, width, k).expand(batch, self.heads, -1, -1)], -1)
        mixed = F.scaled_dot_product_attention(
            F.pad(q, (0, padding)), F.pad(k, (0, padding)), F.pad(v, (0, height + width + padding)), scale=1.0
        )
        mixed = mixed[..., :head_dim].transpose(1, 2).reshape(batch, height, width, dim)
        result: Tensor = self.proj(mixed)
        return result if self.adapter is None else result + self.adapter(result)


def _relative(table: Tensor, size: int) -> Tensor:
    """(query position, key position, channel) out of a table over the differences of positions."""
    position = torch.arange(size, device=table.device)
    return table[position[:, None] - position + (table.shape[0] - 1) // 2]


def _where(height: int, width: int, like: Tensor) -> Tensor:
    """(H*W, H+W): the row and the column of each token, one-hot."""
    row = torch.eye(height, dtype=like.dtype, device=like.device)[:, None].expand(height, width, height)
    column = torch.eye(width, dtype=like.dtype, device=like.device)[None].expand(height, width, width)
    return torch.cat([row, column], -1).flatten(0, 1)


class ClasswiseDecoder(MaskDecoder):
    """SAM's mask decoder with a mask token a class; returns all masks and leaves the IoU head unused."""

    def forward(self, embedding: Tensor, position: Tensor, prompt: Tensor) -> Tensor:
        """Logits (B, C, 4s, 4s).

        embedding (B, D, s, s) of the image, position (1, D, s, s), prompt (1, D, s, s): the dense "no mask".
        """
        batch, channels, height, width = embedding.shape
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(batch, -1, -1)
        hidden, source = self.transformer(embedding + prompt, position.expand(batch, -1, -1, -1), tokens)
        upscaled = self.output_upscaling(source.transpose(1, 2).reshape(batch, channels, height, width))
        weights = torch.stack(
            [mlp(hidden[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        masks: Tensor = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        return masks


def build_decoder(spec: FoundationSpec, classes: int) -> ClasswiseDecoder:
    """A decoder for ``classes`` classes with random weights."""
    return ClasswiseDecoder(
        num_multimask_outputs=classes - 1,
        transformer=TwoWayTransformer(
            depth=spec.decoder_depth,
            embedding_dim=spec.out_chans,
            mlp_dim=spec.mlp_dim,
            num_heads=DECODER_HEADS,
        ),
        transformer_dim=spec.out_chans,
        iou_head_hidden_dim=spec.iou_hidden,
    )


class ClasswiseSAM(nn.Module):
    """A SAM for ``classes`` classes (background included) on square canvases of ``canvas`` pixels.

    Its modules are named as in segment-anything, except that ``attn.qkv`` is split into q, k and v.
    ``origin`` says where the weights come from and ``tuning`` how they are tuned; both are kept by the store.

    Raises InputError for fewer than two classes or a canvas that is no multiple of the patch.
    """

    def __init__(self, spec: FoundationSpec, classes: int, canvas: int | None = None) -> None:
        super().__init__()
        if classes < 2:
            raise InputError("A segmentation needs at least one structure besides the background.")
        self.spec, self.classes, self.canvas = spec, classes, canvas or spec.canvas
        self.origin: dict[str, Any] = {}
        self.tuning: dict[str, Any] = {}
        self.checkpointing = False
        side = spec.tokens(self.canvas)
        self.image_encoder = ImageEncoderViT(
            img_size=self.canvas,
            patch_size=spec.patch,
            embed_dim=spec.dim,
            depth=spec.depth,
            num_heads=spec.heads,
            out_chans=spec.out_chans,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
            use_rel_pos=True,
            window_size=spec.window,
            global_attn_indexes=spec.global_blocks,
        )
        for i, block in enumerate(self.image_encoder.blocks):
            size = side if i in spec.global_blocks else spec.window
            block.attn = SplitAttention(spec.dim, spec.heads, size)
        self.prompt_encoder = PromptEncoder(
            embed_dim=spec.out_chans,
            image_embedding_size=(side, side),
            input_image_size=(self.canvas, self.canvas),
            mask_in_chans=spec.mask_chans,
        )
        self.mask_decoder = build_decoder(spec, classes)

    def set_checkpointing(self, on: bool) -> None:
        """Recompute each encoder block in the backward pass: less memory, the same gradient."""
        self.checkpointing = bool(on)

    def encode(self, canvas: Tensor) -> Tensor:
        """Embeddings (B, D, s, s) of canvases (B, 1, S, S), whose grey values are taken as they are."""
        encoder = self.image_encoder
        tokens = encoder.patch_embed(canvas.expand(-1, 3, -1, -1)) + encoder.pos_embed
        recompute = (
            self.checkpointing
            and torch.is_grad_enabled()
            and any(parameter.requires_grad for parameter in encoder.parameters())
        )
        for block in encoder.blocks:
            if recompute:
                tokens = checkpoint(block, tokens, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens)
        embedding: Tensor = encoder.neck(tokens.permute(0, 3, 1, 2))
        return embedding

    def decode(self, embedding: Tensor) -> Tensor:
        """Logits (B, C, S, S) from embeddings (B, D, s, s)."""
        _, prompt = self.prompt_encoder(points=None, boxes=None, masks=None)
        masks = self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), prompt)
        return F.interpolate(masks, size=(self.canvas, self.canvas), mode="bilinear", align_corners=False)

    def forward(self, canvas: Tensor, *, embedded: bool = False) -> Tensor:
        """Logits (B, C, S, S) of canvases (B, 1, S, S), or of their embeddings where ``embedded``."""
        return self.decode(canvas if embedded else self.encode(canvas))
