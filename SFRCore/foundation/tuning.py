"""Which weights of the foundation model are trained, and adapters in its image encoder.

Sources: for ``lora`` the SFR reference implementation (``sam_lora_image_encoder.py``, after SAMed), rank-4
updates of q and v in every block, added without scaling, beside which the prompt encoder's "no mask"
embedding and the whole decoder are trained; the Medical SAM Adapter for ``adapter``; MedSAM's two versions
for ``decoder`` and ``encoder_decoder``.
"""

from __future__ import annotations

import copy
from typing import Any, Literal, get_args

from torch import nn

from SFRCore.errors import InputError
from SFRCore.foundation.adapters import RATIO, attach_bottlenecks, has_bottlenecks
from SFRCore.foundation.checkpoints import seeded
from SFRCore.foundation.sam import ClasswiseSAM

TuningMethod = Literal["lora", "adapter", "decoder", "encoder_decoder", "full"]
WHOLE_ENCODER = ("full", "encoder_decoder")
"""Tunings that train every weight of the image encoder."""
WITHOUT_PROMPTS = ("decoder", "encoder_decoder")
"""Tunings that leave the "no mask" embedding, and with it the whole prompt encoder, as it is."""

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
    model: ClasswiseSAM,
    method: TuningMethod | str,
    *,
    rank: int = 4,
    width: int | None = None,
    seed: int = 0,
) -> ClasswiseSAM:
    """Set, in place, which parameters are trained; returns the model.

    - ``lora``: low-rank adapters of ``rank`` on q and v of every block (A drawn from ``seed``, B zero, so
      that nothing changes at first), the "no mask" embedding and the decoder;
    - ``adapter``: bottleneck adapters of ``width`` channels (a quarter of the encoder's by default) in every
      block, the "no mask" embedding and the decoder;
    - ``decoder``: the decoder alone. The embeddings of a canvas then never change and can be computed once;
    - ``encoder_decoder``: image encoder and decoder, the prompt encoder stays frozen;
    - ``full``: everything.

    Raises InputError for another method, rank or width, ValueError where other adapters are attached already.
    """
    if method not in get_args(TuningMethod):
        raise InputError(
            f"There is no way of tuning called {method}.",
            hint=f"Choose one of {', '.join(get_args(TuningMethod))}.",
        )
    width = max(1, round(model.spec.dim * RATIO)) if width is None else width
    tuning: dict[str, Any] = {"method": method}
    tuning |= {"lora": {"rank": rank}, "adapter": {"width": width}}.get(method, {})
    for name in ("rank", "width"):
        if name in tuning and not 1 <= tuning[name] <= model.spec.dim:
            raise InputError(
                f"A {name} of {tuning[name]} does not suit adapters of {model.spec.dim} channels."
            )
    if has_adapters(model):
        if tuning != model.tuning:
            raise ValueError("other adapters are attached; merge them first")
    elif method == "lora":
        _attach_low_rank(model, rank, seed)
    elif method == "adapter":
        with seeded(seed):
            attach_bottlenecks(model, width)
    model.tuning = tuning
    for name, parameter in model.named_parameters():
        if name.startswith("image_encoder."):
            trained = method in WHOLE_ENCODER or ".lora_" in name or ".adapter." in name
        else:
            frozen = method in WITHOUT_PROMPTS and name.startswith("prompt_encoder.")
            trained = not frozen and not name.startswith(UNUSED)
        parameter.requires_grad_(trained)
    return model


def merge(model: ClasswiseSAM) -> ClasswiseSAM:
    """A copy for inference: low-rank adapters added into the weights, nothing trainable, in eval mode.

    Bottleneck adapters are no linear change of a weight: they stay, and so does ``tuning``.
    """
    plain = copy.deepcopy(model)
    if has_low_rank(plain):
        for block in plain.image_encoder.blocks:
            for part in "qv":
                adapted = getattr(block.attn, part)
                adapted.merge()
                setattr(block.attn, part, adapted.get_base_layer())
        if hasattr(plain.image_encoder, "peft_config"):
            del plain.image_encoder.peft_config
    if not has_bottlenecks(plain):
        plain.tuning = {}
    return plain.requires_grad_(False).eval()


def has_adapters(model: ClasswiseSAM) -> bool:
    """Whether adapters of either kind are attached."""
    return has_low_rank(model) or has_bottlenecks(model)


def has_low_rank(model: ClasswiseSAM) -> bool:
    """Whether low-rank adapters are attached."""
    return not isinstance(model.image_encoder.blocks[0].attn.q, nn.Linear)


def _attach_low_rank(model: ClasswiseSAM, rank: int, seed: int) -> None:
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
