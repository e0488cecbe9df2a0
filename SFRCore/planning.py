"""From a preset and the study's own volumes to every number of a run, each with the reason it was chosen."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from .errors import InputError
from .presets import Preset, Triple, get_preset
from .settings import BATCH, Settings
from .volumes import Normalisation, Preprocessing

DIVISOR = 16
LARGEST_CPU_PATCH = 64**3
"""Voxels; a training step on a larger patch takes tens of seconds on a CPU."""
BYTES_PER_TRAINED_VOXEL = 2400
"""Memory of a V-Net training step for one voxel of one crop, in float32."""
FEW_ITERATIONS = "Planned without a GPU: 1000 iterations each instead of the paper's 6000."
TRAININGS = ("fine-tuning", "re-training")
STITCHED = "are stitched into"
RATE = 0.01
LARGEST_RATE = 0.05
SIDES = {
    "left",
    "right",
    "l",
    "r",
    "lh",
    "rh",
    "lt",
    "rt",
    "lv",
    "rv",
    "la",
    "ra",
    "links",
    "rechts",
    "sin",
    "dex",
}
"""What names a side of the body, as a word of its own."""


@dataclass(frozen=True)
class CaseShape:
    """What planning needs to know of a volume: internal shape (voxels) and spacing (mm) before resampling,
    modality hint.

    ``least`` is the smallest voxel value, or None where unknown: Hounsfield units begin near -1000.
    """

    shape: Triple
    spacing: tuple[float, float, float]
    least: float | None = None
    zero_fraction: float | None = None


@dataclass(frozen=True)
class Plan:
    """Everything that shapes the models of a study, recorded with them.

    ``patch`` is in voxels (X, Y, Z), ``canvas`` in pixels, ``zoom`` the whole number by which tiles are
    enlarged. ``reasons`` says in sentences what was chosen and why.
    """

    preset: str
    patch: Triple
    canvas: int
    zoom: int
    preprocessing: Preprocessing
    flip_axes: tuple[int, ...]
    canvas_rotation: bool
    iterations_finetune: int
    iterations_retrain: int
    schedule: str
    step_every: float
    ramp: tuple[float, int, int]
    reference_iterations: int
    reference_stride: Triple
    finetune_batch: int = BATCH
    short_rate: bool = False
    reasons: tuple[str, ...] = field(default=())

    @property
    def base_rate(self) -> float:
        """The student's first learning rate: 0.01 as in the reference. With ``short_rate``, a training of K
        iterations that is shorter than the reference's takes 0.01 * reference / K, at most 0.05: at 0.01 a
        few hundred iterations end before structures that only their place tells apart are told apart.
        """
        if not self.short_rate:
            return RATE
        return min(LARGEST_RATE, RATE * max(1.0, self.reference_iterations / self.iterations_retrain))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"preprocessing": self.preprocessing.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Plan:
        known = {name: _tuples(value) for name, value in values.items() if name in cls.__dataclass_fields__}
        known["preprocessing"] = Preprocessing.from_dict(values["preprocessing"])
        return cls(**known)


def digest(values: object) -> str:
    """A short stable fingerprint of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def make_plan(
    settings: Settings,
    preset_name: str,
    cases: Sequence[CaseShape],
    *,
    stack_axis: int,
    values: Sequence[int],
    names: Sequence[str],
    canvas_limit: int,
    canvas_multiple: int,
    memory: int,
    gpu: bool,
    ct: Normalisation | None = None,
) -> Plan:
    """Resolve a preset.

    ``cases`` describes the readable volumes in internal axis order; ``values`` and ``names`` are the study's
    structures; ``canvas_limit`` is the foundation's own canvas in pixels; ``memory`` is in bytes; ``ct`` the
    normalisation fitted to the foreground of the labeled CT volumes, where a preset asks for one.
    Raises InputError where no volume is readable or the patch cannot be cut.
    """
    from .stitching import StitchLayout, choose_canvas

    if not cases:
        raise InputError("No volume of the study can be read, so there is nothing to plan with.")
    preset = get_preset(preset_name)
    reasons: list[str] = []
    normalisation = _normalisation(preset, cases, ct, reasons)
    spacing = preset.spacing and _spacing(preset, stack_axis)
    if preset.median_spacing:
        usual = np.median([case.spacing for case in cases], axis=0)
        spacing = (float(usual[0]), float(usual[1]), float(usual[2]))
        shown = " x ".join(f"{side:.2f}" for side in spacing)
        reasons.append(f"Volumes are resampled to the study's median spacing, {shown} mm.")
    extents = np.array([_extent(case, spacing) for case in cases])
    if preset.depth_to_patch and preset.patch:
        median = np.median(extents, axis=0)
        if median[2] < preset.patch[2]:
            usual = np.median([case.spacing for case in cases], axis=0)
            depth = float(usual[2] * median[2] / preset.patch[2])
            spacing = (float(usual[0]), float(usual[1]), depth)
            reasons.append(
                f"Volumes have about {median[2]:.0f} slices, fewer than {preset.patch[2]}: "
                f"they are interpolated to a slice distance of {depth:.2f} mm."
            )
    patch = settings.patch or preset.patch or _auto_patch(extents, memory, gpu, reasons)
    if any(side % DIVISOR or side < DIVISOR for side in patch):
        raise InputError(
            f"A patch of {'x'.join(map(str, patch))} voxels does not fit the student network.",
            hint=f"Every side must be a multiple of {DIVISOR}.",
        )
    canvas, zoom = choose_canvas(patch, canvas_limit, multiple=canvas_multiple)
    if preset.name in ("left_atrium", "brats", "btcv", "mact", "abdomenct1k") and canvas_limit == 1024:
        canvas, zoom = 1024, 1
    several = StitchLayout(patch, canvas, zoom).canvases
    images = f"{several} images of {canvas} x {canvas}" if several > 1 else f"{canvas} x {canvas}"
    reasons.append(
        f"{patch[2]} slices of {patch[0]} x {patch[1]} voxels {STITCHED} {images} pixels"
        + (f", each voxel enlarged to {zoom} x {zoom} pixels." if zoom > 1 else ".")
    )
    iterations = _iterations(preset, gpu, reasons)
    return Plan(
        preset=preset.name,
        patch=patch,
        canvas=canvas,
        zoom=zoom,
        preprocessing=Preprocessing(
            stack_axis=stack_axis, spacing=spacing or None, normalisation=normalisation, values=tuple(values)
        ),
        flip_axes=_flip_axes(preset, stack_axis, names, reasons),
        canvas_rotation=preset.canvas_rotation,
        iterations_finetune=settings.iterations_finetune or iterations[0],
        iterations_retrain=settings.iterations_retrain or iterations[1],
        schedule=preset.schedule,
        step_every=preset.step_every,
        ramp=preset.ramp,
        reference_iterations=preset.reference_iterations,
        reference_stride=_reference_stride(preset, patch),
        short_rate=preset.short_rate,
        reasons=tuple(reasons),
    )


def with_settings(plan: Plan, settings: Settings) -> Plan:
    """An earlier plan with the iterations and the batch that this run asks for, and without the reason for
    other iterations.
    """
    asked = (settings.iterations_finetune, settings.iterations_retrain)
    open_still = [name for name, number in zip(TRAININGS, asked, strict=True) if not number]
    reasons = plan.reasons
    if len(open_still) < len(asked) and FEW_ITERATIONS in reasons:
        own = tuple(FEW_ITERATIONS.replace(" each", f" of {name}") for name in open_still)
        reasons = tuple(reason for reason in reasons if reason != FEW_ITERATIONS) + own
    return replace(
        plan,
        reasons=reasons,
        iterations_finetune=settings.iterations_finetune or plan.iterations_finetune,
        iterations_retrain=settings.iterations_retrain or plan.iterations_retrain,
        finetune_batch=settings.batch or plan.finetune_batch,
    )


def reasons_for(plan: Plan, stages: Collection[str], input: str) -> list[str]:
    """The plan's reasons that concern these stages, with slices shown to SAM as ``input`` says."""
    shows = not {"finetune", "pseudolabel", "selective"}.isdisjoint(stages)
    stitches = shows and input in ("stitched", "shuffled", "rotated")
    trained = (
        not {"finetune", "prompt", "selective"}.isdisjoint(stages),
        not {"retrain", "selective", "refine"}.isdisjoint(stages),
    )
    few = [FEW_ITERATIONS.replace(" each", f" of {name}") for name in TRAININGS]
    reasons = [reason for reason in plan.reasons if stitches or STITCHED not in reason]
    if FEW_ITERATIONS in reasons and not all(trained):
        reasons.remove(FEW_ITERATIONS)
        reasons += few
    return [reason for reason in reasons if reason not in few or trained[few.index(reason)]]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _reference_stride(preset: Preset, patch: Triple) -> Triple:
    """The reference's stride, at most the patch that the user may have made smaller; else a quarter of it."""
    stride = preset.reference_stride or (patch[0] // 4, patch[1] // 4, patch[2] // 4)
    return (min(stride[0], patch[0]), min(stride[1], patch[1]), min(stride[2], patch[2]))


def _extent(case: CaseShape, spacing: tuple[float, float, float] | None) -> list[float]:
    if spacing is None:
        return [float(side) for side in case.shape]
    return [side * own / wanted for side, own, wanted in zip(case.shape, case.spacing, spacing, strict=True)]


def _spacing(preset: Preset, stack_axis: int) -> tuple[float, float, float]:
    """The preset's spacing is given for axial stacks; other stacks take its smallest value on every axis."""
    assert preset.spacing is not None
    if stack_axis == 2:
        return preset.spacing
    least = min(preset.spacing)
    return (least, least, least)


def _normalisation(
    preset: Preset, cases: Sequence[CaseShape], ct: Normalisation | None, reasons: list[str]
) -> Normalisation:
    if preset.window:
        return Normalisation(preset.normalisation, low=preset.window[0], high=preset.window[1])
    if preset.normalisation == "ct_percentile" and ct is not None:
        reasons.append(
            f"Hounsfield units are cut to {ct.low:.0f} .. {ct.high:.0f}, as in the labeled structures."
        )
        return ct
    if preset.name != "auto":
        kind = "zscore" if preset.normalisation == "ct_percentile" else preset.normalisation
        return Normalisation(kind)  # type: ignore[arg-type]
    least = [case.least for case in cases if case.least is not None]
    if least and np.median(least) <= -500:
        if ct is not None:
            reasons.append(
                f"Values look like Hounsfield units (CT): they are cut to {ct.low:.0f} .. {ct.high:.0f}, "
                "the range of the labeled structures."
            )
            return ct
        reasons.append(
            "Values look like Hounsfield units (CT): they are cut to a soft-tissue window, -125 to 275."
        )
        return Normalisation("ct_window", low=-125.0, high=275.0)
    zeros = [case.zero_fraction for case in cases if case.zero_fraction is not None]
    if zeros and np.median(zeros) > 0.4:
        reasons.append(
            "Nearly half of every volume is exactly 0: brightness is normalised over the rest (z-score)."
        )
        return Normalisation("zscore_nonzero")
    reasons.append("Brightness is normalised volume by volume (z-score).")
    return Normalisation("zscore")


def _auto_patch(extents: np.ndarray, memory: int, gpu: bool, reasons: list[str]) -> Triple:
    """The 95th percentile of the cases' extent, rounded up to 16, the longest side shortened to fit."""
    wanted = [
        max(DIVISOR, DIVISOR * math.ceil(side / DIVISOR)) for side in np.percentile(extents, 95, axis=0)
    ]
    crops = 4
    largest = int(0.6 * memory / (BYTES_PER_TRAINED_VOXEL * crops))
    if not gpu:
        largest = min(largest, LARGEST_CPU_PATCH)
    patch = list(wanted)
    while math.prod(patch) > largest and max(patch) > DIVISOR:
        patch[patch.index(max(patch))] -= DIVISOR
    text = " x ".join(map(str, patch))
    if patch == wanted:
        reasons.append(f"Crops of {text} voxels hold 95 % of the volumes whole.")
    else:
        limit = "memory" if gpu else "what a computer without a GPU trains in bearable time"
        reasons.append(
            f"Crops of {text} voxels: {' x '.join(map(str, wanted))} hold a volume, {limit} allows these."
        )
    return (patch[0], patch[1], patch[2])


def _flip_axes(preset: Preset, stack_axis: int, names: Sequence[str], reasons: list[str]) -> tuple[int, ...]:
    if preset.flip == "none":
        return ()
    if preset.flip == "in_plane":
        return (0, 1)
    order = [axis for axis in range(3) if axis != stack_axis] + [stack_axis]
    left_right = (order.index(0),)
    if preset.flip == "left_right":
        return left_right
    sided = [name for name in names if _names_a_side(name)]
    if sided:
        reasons.append(f"Crops are not mirrored: '{sided[0]}' names a side of the body.")
        return ()
    if len(names) > 3:
        reasons.append("Crops are not mirrored: many organs tell left from right.")
        return ()
    reasons.append("Crops are mirrored left to right half of the time.")
    return left_right


def _names_a_side(name: str) -> bool:
    """Whether a word of a structure's name means left or right: "Femur_l", "LeftLung", "rh"; not "Bright
    lesion", nor "L5".
    """
    for word, number in re.findall(r"([A-Z]?[a-z]+|[A-Z]+(?![a-z]))(\d*)", name):
        lower = word.lower()
        if lower.startswith(("left", "right", "sinist", "dext")) or (lower in SIDES and not number):
            return True
    return False


def _iterations(preset: Preset, gpu: bool, reasons: list[str]) -> tuple[int, int]:
    if preset.name == "auto" and not gpu:
        reasons.append(FEW_ITERATIONS)
        return 1000, 1000
    return preset.iterations_finetune, preset.iterations_retrain
