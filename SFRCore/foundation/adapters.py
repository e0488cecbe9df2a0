"""Bottleneck adapters in SAM's image encoder: small networks beside frozen blocks.

Source: Medical SAM Adapter (Wu et al., arXiv 2304.12620), its adapters for images; SFR, section III-B1.
"""

from __future__ import annotations

from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from SFRCore.foundation.sam import ClasswiseSAM

RATIO = 0.25
"""Channels of the bottleneck, as a share of the encoder's."""
MLP_SCALE = 0.5


class Adapter(nn.Module):
    """Down to ``width`` channels, ReLU, and up again; (..., dim) -> (..., dim).

    The way up starts at zero, so that a fresh adapter adds nothing.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, width)
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        added: Tensor = self.up(self.down(tokens).relu())
        return added


class AdaptedMLP(MLPBlock):
    """A block's MLP with an adapter in parallel, whose output counts half."""

    def __init__(self, mlp: MLPBlock, adapter: Adapter) -> None:
        nn.Module.__init__(self)
        self.lin1, self.lin2, self.act, self.adapter = mlp.lin1, mlp.lin2, mlp.act, adapter

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = super().forward(x)
        return mixed + MLP_SCALE * self.adapter(x)


def attach_bottlenecks(model: ClasswiseSAM, width: int) -> None:
    """Put two adapters into every block, drawn from torch's generator: one after the attention, before its
    residual connection, and one beside the MLP.
    """
    dim = model.spec.dim
    for block in model.image_encoder.blocks:
        block.attn.adapter = Adapter(dim, width)
        block.mlp = AdaptedMLP(block.mlp, Adapter(dim, width))


def has_bottlenecks(model: ClasswiseSAM) -> bool:
    """Whether bottleneck adapters are attached."""
    return isinstance(model.image_encoder.blocks[0].mlp, AdaptedMLP)
