"""Fine-tuning: SAM learns the study's structures from stitched crops of the labeled volumes.

Source: SFR (IEEE TMI 2025), sections III-B1 and III-B2; see :mod:`SFRCore.stages.finetuner`.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..foundation.checkpoints import RANDOM, build_foundation
from ..foundation.store import load_tuned, save_tuned
from ..foundation.tuning import WHOLE_ENCODER, apply_tuning
from ..volumes import CachedVolume
from .context import StageContext
from .finetuner import FineTuner
from .lineage import Lineage, foundation_lineage, shortened
from .survey import keep_plan
from .training import train_stage
from .training_set import labeled_volumes

STAGE = "finetune"


def finetune(context: StageContext) -> dict[str, Any]:
    """Fine-tune the foundation on the labeled cases, unless that is done; leaves ``models/foundation``.

    Raises InputError where no labeled case can be used.
    """
    context.begin(STAGE)
    lineage = foundation_lineage(context)
    volumes: dict[str, CachedVolume] = {}
    if not lineage.is_done():
        volumes = labeled_volumes(context)
        lineage = lineage.made_of(volumes)
    keep_plan(context.study, context.settings)
    if lineage.is_done():
        context.emit("skipped", message="The foundation is already tuned on these labels.")
        return {"skipped": True}
    _say_what_to_expect(context, lineage)
    kept = embeddings_folder(context)
    tuner = prepare(context, lineage, volumes, embeddings=kept / lineage.training_identity())

    def save() -> None:
        made_by = lineage.made_by(iterations=tuner.total) | {"cases": sorted(tuner.source.volumes)}
        save_tuned(tuner.model, lineage.folder, made_by)
        shutil.rmtree(kept, ignore_errors=True)

    doing, cases = "fine-tuning the foundation", len(tuner.source.volumes)
    return train_stage(context, lineage, tuner, name=STAGE, doing=doing, save=save, cases=cases)


def _say_what_to_expect(context: StageContext, lineage: Lineage) -> None:
    foundation = context.settings.foundation
    if foundation in RANDOM:
        context.warn(
            f"The foundation '{foundation}' starts from random numbers: it is for trying things out.",
            code="random_foundation",
            hint="For real work choose vit_b ('sfr download vit_b') or a checkpoint file of your own.",
        )
        if lineage.tuning not in WHOLE_ENCODER:
            context.warn(
                "Most of its random weights stay as they are with this tuning, so it will learn little.",
                code="frozen_random",
                hint="Leave the tuning open, and every weight is trained.",
            )
    elif lineage.tuning == "decoder" and context.settings.tuning is None:
        why = "As before in this study" if context.device.is_gpu else "Without a GPU"
        context.warn(
            f"{why} only the decoder of the foundation is tuned; the paper tunes it with LoRA.",
            code="decoder_only",
            hint="Ask for --tuning lora, which begins anew."
            if context.device.is_gpu
            else "Use a computer with a GPU, or ask for --tuning lora.",
        )


def embeddings_folder(context: StageContext) -> Path:
    """Where unfinished fine-tunings keep embeddings; it may be deleted at any time."""
    return context.study.cache_dir / "embeddings"


def prepare(
    context: StageContext,
    lineage: Lineage,
    volumes: Mapping[str, CachedVolume],
    *,
    embeddings: Path | None = None,
) -> FineTuner:
    """The fine-tuning of this run, before its first step; see :class:`FineTuner` for ``embeddings``."""
    settings, plan = context.settings, context.plan
    tuning = lineage.tuning
    total = plan.iterations_finetune
    if lineage.parent is not None:
        model = load_tuned(lineage.folder)
        total = shortened(total)
    else:
        model = build_foundation(
            settings.foundation,
            classes=len(plan.preprocessing.values) + 1,
            canvas=context.layout().canvas_size,
            seed=settings.seed,
        )
        model = apply_tuning(model, tuning, seed=settings.seed)
    return FineTuner(context, volumes, model, tuning=tuning, total=total, embeddings=embeddings)
