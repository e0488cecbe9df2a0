"""Which weights of the foundation model are trained, and low-rank adapters on its attention.

Source: the SFR reference implementation (``sam_lora_image_encoder.py``, after SAMed): rank-4 updates of q and
v in every block, added without scaling; the prompt encoder's "no mask" embedding and the whole decoder are
trained too.
"""

from __future__ import annotations

import copy
from typing import Literal, get_args

from torch import nn

from SFRCore.errors import InputError
from SFRCore.foundation.checkpoints import seeded
from SFRCore.foundation.sam import ClasswiseSAM

TuningMethod = Literal["lora", "full", "decoder"]

# Never reached by a gradient: there are no point, box or mask prompts, and no one asks how good a mask is.
# (The reference leaves them trainable, where its optimiser skips them; several GPUs would wait for their
# gradients.)
UNUSED = (
    "prompt_encoder.point_embeddings.",
    "prompt_encoder.not_a_point_embed.",
    "prompt_encoder.mask_downscaling.",
    "mask_decoder.iou_prediction_head.",
)


def apply_tuning(
    model: ClasswiseSAM, method: TuningMethod | str, *, rank: int = 4, seed: int = 0
) -> ClasswiseSAM:
    """Set, in place, which parameters are trained; returns the model.

    - ``lora``: adapters of ``rank`` on q and v of every block (A drawn from ``seed``, B zero, so that nothing
      changes at first), the "no mask" embedding and the decoder;
    - ``full``: everything;
    - ``decoder``: the "no mask" embedding and the decoder. The embeddings of a canvas then never change and
      can be computed once.

    Raises InputError for another method or rank, ValueError where other adapters are attached already.
    """
    if method not in get_args(TuningMethod):
        raise InputError(
            f"There is no way of tuning called {method}.",
            hint=f"Choose one of {', '.join(get_args(TuningMethod))}.",
        )
    if method == "lora" and not 1 <= rank <= model.spec.dim:
        raise InputError(f"A rank of {rank} does not suit adapters of {model.spec.dim} channels.")
    tuning = {"method": method, "rank": rank} if method == "lora" else {"method": method}
    if has_adapters(model):
        if tuning != model.tuning:
            raise ValueError("other adapters are attached; merge them first")
    elif method == "lora":
        _attach_adapters(model, rank, seed)
    model.tuning = tuning
    for name, parameter in model.named_parameters():
        inside = name.startswith("image_encoder.")
        trained = not inside or method == "full" or (method == "lora" and ".lora_" in name)
        parameter.requires_grad_(trained and not name.startswith(UNUSED))
    return model


def merge(model: ClasswiseSAM) -> ClasswiseSAM:
    """A copy for inference: adapters added into the weights, nothing trainable, in eval mode."""
    plain = copy.deepcopy(model)
    if has_adapters(plain):
        for block in plain.image_encoder.blocks:
            for part in "qv":
                adapted = getattr(block.attn, part)
                adapted.merge()
                setattr(block.attn, part, adapted.get_base_layer())
        if hasattr(plain.image_encoder, "peft_config"):
            del plain.image_encoder.peft_config
    plain.tuning = {}
    return plain.requires_grad_(False).eval()


def trainable_names(model: nn.Module) -> list[str]:
    """Names of the parameters that are trained."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def has_adapters(model: ClasswiseSAM) -> bool:
    """Whether low-rank adapters are attached."""
    return not isinstance(model.image_encoder.blocks[0].attn.q, nn.Linear)


def _attach_adapters(model: ClasswiseSAM, rank: int, seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        init_lora_weights=True,
        target_modules=r"blocks\.\d+\.attn\.(q|v)",
    )
    training = model.training
    with seeded(seed):
        inject_adapter_in_model(config, model.image_encoder)
    model.train(training)
