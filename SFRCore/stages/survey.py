"""A look at the study's volumes before anything is planned."""

from __future__ import annotations

import logging
from collections.abc import Sequence

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


def plan_for(study: Study, settings: Settings, device: Device) -> Plan:
    """The study's plan: the one its models were made by, while preset, foundation and structures stay the
    same.

    Raises InputError where no volume can be read or the preset is unknown.
    """
    if device.processes > 1:
        from accelerate.utils import broadcast_object_list

        made = [_plan_on_disk(study, settings, device).to_dict() if device.is_main else None]
        plan = Plan.from_dict(broadcast_object_list(made)[0])  # type: ignore[arg-type]
    else:
        plan = _plan_on_disk(study, settings, device)
    return with_settings(plan, settings)


def _plan_on_disk(study: Study, settings: Settings, device: Device) -> Plan:
    """The saved plan, or a new one that is saved; without this run's iterations."""
    from ..foundation.choice import foundation_spec

    preset_name = settings.preset or study.preset
    spec = foundation_spec(settings.foundation)
    values = sorted(structure.value for structure in study.structures)
    key = digest([preset_name, settings.patch, spec.canvas, spec.patch, values, device.is_gpu])
    path = study.models_dir / "plan.json"
    if path.is_file():
        saved = read_json(path)
        if saved.get("key") == key:
            return Plan.from_dict(saved["plan"])
    plan = _survey(
        study, settings.with_(iterations_finetune=None, iterations_retrain=None), device, preset_name, values
    )
    write_json(path, {"key": key, "plan": plan.to_dict()})
    return plan


def _survey(study: Study, settings: Settings, device: Device, preset_name: str, values: list[int]) -> Plan:
    from ..foundation.choice import foundation_spec

    preset = get_preset(preset_name)
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
    ct = None
    if preset.normalisation == "ct_percentile" or (
        preset.name == "auto" and _looks_like_ct([shape for shape in shapes if shape.least is not None])
    ):
        ct = _fit_ct(study, values)
    spec = foundation_spec(settings.foundation)
    names = [structure.name for structure in study.structures]
    return make_plan(
        settings,
        preset_name,
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


def _fit_ct(study: Study, values: Sequence[int]) -> Normalisation | None:
    """Hounsfield range of the labeled structures; None where no labeled case can be read."""
    rng = np.random.default_rng(0)
    samples: list[np.ndarray] = []
    for case in study.labeled_cases():
        try:
            samples.append(_foreground(study, case, values, rng))
        except (SFRError, OSError, RuntimeError) as error:
            logger.info("case %s cannot be sampled: %s", case.id, error)
    found = np.concatenate(samples) if samples else np.empty(0)
    return Normalisation.fit_ct(found) if found.size and found.min() < found.max() else None


def _foreground(study: Study, case: Case, values: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    image = read_image(study.image_path(case.id))
    frame = Frame.of(image, stack_axis=2)
    path = study.label_path(case.id)
    assert path is not None
    label = read_label(path, values, like=image)
    inside = frame.to_internal(image)[frame.to_internal(label, label=True) > 0]
    return rng.choice(inside, min(SAMPLES, inside.size), replace=False) if inside.size else inside
