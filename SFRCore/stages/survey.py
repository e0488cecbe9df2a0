"""A look at the study's volumes before anything is planned."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError, SFRError
from ..planning import CaseShape, Plan, digest, make_plan, with_settings
from ..presets import get_preset
from ..runtime.devices import Device, available_memory
from ..runtime.files import read_json, write_json
from ..settings import Settings
from ..study import Case, Study
from ..volumes import Frame, Normalisation, choose_stack_axis, image_info, read_image, read_label

logger = logging.getLogger(__name__)
LOOKED_INTO = 12
"""Volumes whose voxels are read to tell CT from MR; the headers of all are read."""
SAMPLES = 20000
MEASURED_ON = "measured_on"
"""In a plan's file: the cases whose labels told where the Hounsfield range was measured."""


_new: dict[Path, tuple[Plan, list[str]]] = {}
"""Plans made in this process that no training began with yet, and what they were measured on."""


def plan_for(study: Study, settings: Settings, device: Device) -> Plan:
    """The study's plan: the one its models were made by, while preset, patch, foundation and structures stay
    the same; it is kept when the first training with it begins (:func:`keep_plan`). A new one is made where
    it was measured on the label of what is a test case now.

    Raises InputError where no volume can be read or the preset is unknown.
    """
    if device.processes > 1:
        from accelerate.utils import broadcast_object_list

        made = [_plan_or_survey(study, settings, device).to_dict() if device.is_main else None]
        plan = Plan.from_dict(broadcast_object_list(made)[0])  # type: ignore[arg-type]
    else:
        plan = _plan_or_survey(study, settings, device)
    return with_settings(plan, settings)


def saved_plan(study: Study, settings: Settings) -> Plan | None:
    """The plan that a training of this study has kept, with this run's iterations; None before the first."""
    plan = _kept(study, _plan_path(study, settings))
    return None if plan is None else with_settings(plan, settings)


def keep_plan(study: Study, settings: Settings) -> None:
    """Write a plan that was made in this process: from now on models depend on it, on any computer."""
    path = _plan_path(study, settings)
    made = _new.pop(path, None)
    if made is not None:
        plan, measured_on = made
        write_json(path, plan.to_dict() | {MEASURED_ON: measured_on})


def _plan_or_survey(study: Study, settings: Settings, device: Device) -> Plan:
    """The saved plan, or a new one; without this run's iterations."""
    path = _plan_path(study, settings)
    plan = _kept(study, path)
    if plan is not None:
        _new.pop(path, None)
        return plan
    _new[path] = _survey(study, settings.with_(iterations_finetune=None, iterations_retrain=None), device)
    return _new[path][0]


def _kept(study: Study, path: Path) -> Plan | None:
    """The plan in a file; None without one, or where it tells of the label of what is a test case now."""
    if not path.is_file():
        return None
    values = read_json(path)
    tests = {case.id for case in study.test_cases()}
    return Plan.from_dict(values) if tests.isdisjoint(values.get(MEASURED_ON, ())) else None


def _plan_path(study: Study, settings: Settings) -> Path:
    from ..foundation.choice import foundation_spec

    spec = foundation_spec(settings.foundation)
    key = digest([settings.preset or study.preset, settings.patch, spec.canvas, spec.patch, study.values])
    return study.models_dir / f"plan-{key}.json"


def _survey(study: Study, settings: Settings, device: Device) -> tuple[Plan, list[str]]:
    """A new plan, and the cases on whose labels it was measured."""
    from ..foundation.choice import foundation_spec

    preset = get_preset(settings.preset or study.preset)
    values = study.values
    infos = {}
    for case in study.cases.values():
        if case.role == "ignored":
            continue
        try:
            infos[case.id] = image_info(study.image_path(case.id))
        except (SFRError, OSError) as error:
            logger.info("case %s cannot be read: %s", case.id, error)
    if not infos:
        raise InputError(
            "No volume of the study can be read.", hint="Add volumes, or find moved files with 'sfr relink'."
        )
    stack_axis = choose_stack_axis(list(infos.values()))
    frames = {case_id: Frame.of(info, stack_axis=stack_axis) for case_id, info in infos.items()}
    shapes = [CaseShape(frame.native_shape, frame.native_spacing) for frame in frames.values()]
    if preset.name == "auto":
        shapes += _looked_into(study, frames)
    ct, measured_on = None, list[str]()
    if preset.normalisation == "ct_percentile" or (
        preset.name == "auto" and _looks_like_ct([shape for shape in shapes if shape.least is not None])
    ):
        ct, measured_on = _fit_ct(study, values)
    spec = foundation_spec(settings.foundation)
    names = [structure.name for structure in study.structures]
    plan = make_plan(
        settings,
        preset.name,
        shapes,
        stack_axis=stack_axis,
        values=values,
        names=names,
        canvas_limit=spec.canvas,
        canvas_multiple=max(16, spec.patch),
        memory=available_memory(device.torch_device),
        gpu=device.is_gpu,
        ct=ct,
    )
    return plan, measured_on


def _looked_into(study: Study, frames: dict[str, Frame]) -> list[CaseShape]:
    shapes = []
    ids = sorted(frames)
    for case_id in ids[:: max(1, len(ids) // LOOKED_INTO)][:LOOKED_INTO]:
        try:
            array = frames[case_id].to_internal(read_image(study.image_path(case_id)))
        except (SFRError, OSError):
            continue
        zero = float(np.mean(array == 0))
        frame = frames[case_id]
        shapes.append(CaseShape(frame.native_shape, frame.native_spacing, float(array.min()), zero))
    return shapes


def _looks_like_ct(shapes: Sequence[CaseShape]) -> bool:
    return bool(shapes) and float(np.median([shape.least for shape in shapes])) <= -500  # type: ignore[arg-type]


def _fit_ct(study: Study, values: Sequence[int]) -> tuple[Normalisation | None, list[str]]:
    """Hounsfield range of the labeled structures, and the cases it is of; None where none can be read."""
    rng = np.random.default_rng(0)
    samples: dict[str, np.ndarray] = {}
    for case in study.labeled_cases():
        try:
            samples[case.id] = _foreground(study, case, values, rng)
        except (SFRError, OSError, RuntimeError) as error:
            logger.info("case %s cannot be sampled: %s", case.id, error)
    found = np.concatenate(list(samples.values())) if samples else np.empty(0)
    if not found.size or found.min() == found.max():
        return None, []
    return Normalisation.fit_ct(found), list(samples)


def _foreground(study: Study, case: Case, values: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    image = read_image(study.image_path(case.id))
    frame = Frame.of(image, stack_axis=2)
    path = study.label_path(case.id)
    assert path is not None
    label = read_label(path, values, like=image)
    inside = frame.to_internal(image)[frame.to_internal(label, label=True) > 0]
    return rng.choice(inside, min(SAMPLES, inside.size), replace=False) if inside.size else inside
