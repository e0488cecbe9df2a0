"""What a user may choose for a run, with the defaults of the paper."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from .errors import InputError

PseudoSchedule = Literal["constant", "linear"]
CHOICES: dict[str, tuple[str, ...]] = {
    "tuning": ("lora", "adapter", "decoder", "encoder_decoder", "full"),
    "pseudo_labels": ("cached", "online"),
    "pseudo_schedule": ("constant", "linear"),
    "device": ("auto", "cpu", "cuda", "mps"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}
LEAST: dict[str, int] = {"seed": 0, "iterations_finetune": 1, "iterations_retrain": 1, "batch": 1}
BATCH = 2
"""Canvases of a step of fine-tuning in the paper; labeled, and unlabeled, crops of most methods' steps."""
LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Settings:
    """The settings of one run; ``None`` means "as the preset says".

    ``input`` is what SAM is shown of a patch, see :func:`SFRCore.inputs.make_layout`.
    ``device`` may name one GPU (``cuda:1``). ``method_options`` are handed to the semi-supervised method,
    ``recipe_options`` to the recipe.
    ``pseudo_weight`` is the weight of the pseudo-label loss (1 in the reference implementation of SFR; 0
    leaves the foundation's pseudo-labels out). With the ``pseudo_schedule`` "linear" it falls to 0 over the
    training, or over each phase of a method that has several.
    ``batch`` is the number of canvases in a step of fine-tuning; a method has ``batch`` / 2 times as many
    crops as its own in a step. None is the paper's 2: less needs less memory, and changes the method.
    ``faithful`` follows the reference implementation also where it departs from its paper
    (unmasked Dice, clamping Bezier transform, rotation always followed by a flip).
    ``fast`` predicts in few large windows that overlap by a quarter of the patch, instead of windows of the
    patch at the reference's dense stride.
    """

    recipe: str = "sfr"
    ssl: str = "mean_teacher"
    preset: str | None = None
    foundation: str = "tiny"
    tuning: str | None = None
    input: str = "stitched"
    student: str | None = None
    pseudo_labels: str = "cached"
    device: str = "auto"
    precision: str = "auto"
    seed: int = 1337
    iterations_finetune: int | None = None
    iterations_retrain: int | None = None
    pseudo_weight: float = 1.0
    pseudo_schedule: PseudoSchedule = "constant"
    faithful: bool = False
    fast: bool = True
    patch: tuple[int, int, int] | None = None
    batch: int | None = None
    method_options: Mapping[str, Any] = field(default_factory=dict)
    recipe_options: Mapping[str, Any] = field(default_factory=dict)
    yes: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = str(getattr(self, name) or allowed[0])
            if value not in allowed and not (name == "device" and re.fullmatch(r"cuda:\d+", value)):
                raise InputError(
                    f"'{value}' is not a value of {name.replace('_', ' ')}.",
                    hint=f"Choose one of: {', '.join(allowed)}.",
                )
        for name, least in LEAST.items():
            number = getattr(self, name)
            if number is not None and number < least:
                raise InputError(f"{name.replace('_', ' ')} must be at least {least}, not {number}.")
        if self.seed > LARGEST_SEED:
            raise InputError(f"seed must be at most {LARGEST_SEED}, not {self.seed}.")
        if not 0 <= self.pseudo_weight < math.inf:
            raise InputError("The weight of the pseudo-label loss must be a number that is not negative.")

    @classmethod
    def of(cls, **options: Any) -> Settings:
        """Settings from keyword arguments; ``None`` keeps a default, an unknown name is an InputError."""
        known = {item.name: item for item in fields(cls)}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise InputError(
                f"'{unknown[0]}' is not a setting of a run.",
                hint=f"Known settings: {', '.join(sorted(known))}.",
            )
        return cls(**{name: value for name, value in options.items() if value is not None})

    def with_(self, **changes: Any) -> Settings:
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
