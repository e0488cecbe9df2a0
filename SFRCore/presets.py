"""The numbers of the papers for each data set, and ``auto``, which chooses its own (see planning.py).

Sources: SFR (IEEE TMI 2025) and its reference scripts for left_atrium, brats, btcv, mact and abdomenct1k;
Table VI of the paper for ``uniform``. Iterations are those of the SFR scripts where they are released and of
the base method (MagicNet) for the multi-organ sets.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InputError
from .volumes.normalisation import Kind

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Preset:
    """One data set's numbers; ``None`` is chosen from the study's own volumes.

    ``patch`` and strides are voxels in internal (X, Y, Z) order; ``spacing`` is millimetres, internal
    order (``median_spacing``: the median of the study's volumes); ``normalisation`` is a kind known to
    :class:`SFRCore.volumes.Normalisation`, ``window`` its Hounsfield limits. ``flip`` says which internal
    axes are mirrored with probability one half ("in_plane", "left_right", "none", "auto"). With the
    schedule "step" the learning rate falls to a tenth after each fraction ``step_every`` of the training.
    ``short_rate`` raises the student's learning rate where the training is shorter than the reference's.
    ``ramp`` is (largest weight, T, q) of the consistency weight at ``reference_iterations``. ``student`` is
    the network that is trained where the user names none.
    """

    name: str
    summary: str
    patch: Triple | None = None
    normalisation: Kind = "zscore"
    window: tuple[float, float] | None = None
    spacing: tuple[float, float, float] | None = None
    median_spacing: bool = False
    flip: str = "auto"
    canvas_rotation: bool = False
    iterations_finetune: int = 6000
    iterations_retrain: int = 6000
    schedule: str = "step"
    step_every: float = 2500 / 6000
    short_rate: bool = False
    ramp: tuple[float, int, int] = (0.1, 40, 150)
    reference_iterations: int = 6000
    reference_stride: Triple | None = None
    depth_to_patch: bool = False
    student: str = "vnet"


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        # Short trainings: steps would leave the full learning rate after 40 % of few iterations.
        Preset(
            "auto",
            "Any volumes: patch, canvas and normalisation are chosen from them",
            schedule="poly",
            short_rate=True,
        ),
        Preset(
            "left_atrium",
            "Left atrium in late-enhancement MR (LA 2018)",
            patch=(112, 112, 80),
            flip="in_plane",
            canvas_rotation=True,
            reference_stride=(18, 18, 4),
        ),
        Preset(
            "brats",
            "Whole tumour in FLAIR MR (BraTS 2019)",
            patch=(96, 96, 96),
            normalisation="zscore_nonzero",
            flip="in_plane",
            reference_stride=(64, 64, 64),
            student="unet3d",
        ),
        Preset(
            "btcv",
            "13 abdominal organs in CT (BTCV)",
            patch=(96, 96, 96),
            spacing=(1.5, 1.5, 2.0),
            flip="none",
            iterations_retrain=70000,
            schedule="poly",
            ramp=(0.1, 200, 350),
            reference_iterations=70000,
            reference_stride=(12, 12, 12),
        ),
        Preset(
            "mact",
            "8 abdominal organs in CT (MACT)",
            patch=(96, 96, 96),
            normalisation="ct_window",
            window=(-125.0, 275.0),
            spacing=(1.0, 1.0, 1.0),
            flip="none",
            iterations_retrain=30000,
            step_every=0.4,
            ramp=(0.2, 40, 300),
            reference_iterations=30000,
            reference_stride=(12, 12, 12),
        ),
        Preset(
            "abdomenct1k",
            "Liver, kidneys, spleen and pancreas in CT (AbdomenCT-1K)",
            patch=(96, 96, 96),
            normalisation="ct_percentile",
            median_spacing=True,
            flip="none",
            iterations_retrain=30000,
            step_every=0.4,
            ramp=(0.2, 40, 300),
            reference_iterations=30000,
            reference_stride=(16, 16, 16),
        ),
        Preset(
            "uniform",
            "Any volumes in crops of 96 x 96 x 96; fewer than 96 slices are interpolated to 96 (Table VI)",
            patch=(96, 96, 96),
            depth_to_patch=True,
            reference_stride=(16, 16, 16),
        ),
        Preset(
            "hippocampus",
            "Front and back of the hippocampus in MR, cropped around it (Decathlon Task04)",
            patch=(32, 48, 32),
            flip="left_right",
            iterations_finetune=500,
            iterations_retrain=500,
            schedule="poly",
            short_rate=True,
            reference_stride=(8, 12, 8),
        ),
    )
}


def get_preset(name: str) -> Preset:
    """The preset of that name; InputError names the known ones."""
    try:
        return PRESETS[name]
    except KeyError:
        raise InputError(
            f"There is no preset '{name}'.", hint=f"Known presets: {', '.join(PRESETS)}."
        ) from None
