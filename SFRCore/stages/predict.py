"""Prediction: the student alone segments every volume without a label; the foundation is gone by now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..errors import InputError, command_line
from ..planning import digest
from ..runtime.devices import Device
from ..students import load_student
from ..volumes import Frame, Preprocessing, VolumeCache
from .context import DEFECTS, StageContext
from .inference import as_images, describe, predict_by_student, summary
from .lineage import STUDENT_INFO, image_hash, is_of, student_folder

STAGE = "predict"
KIND = "prediction"


def predict(context: StageContext, *, newest: bool = False) -> dict[str, Any]:
    """Write label map, confidence and numbers of every unlabeled and test case without a prediction by this
    student; see :func:`student_for`. Cases whose label the student has learned are marked ("seen"). A case
    that cannot be predicted is left out, and loses the prediction that another student made of it.

    Raises InputError where no student is trained yet, or no case can be read.
    """
    context.begin(STAGE)
    study, settings = context.study, context.settings
    folder = student_for(context, newest=newest)
    network, info = load_student(folder)
    identity = digest([info["made_by"]["model"], settings.fast])
    cases = study.unlabeled_cases() + study.test_cases()
    waiting, mine = context.share(
        [case for case in cases if not is_of(study.result(case.id, KIND), case, identity)]
    )
    if not waiting:
        context.emit("skipped", message="Every case has a prediction of this student.")
        return {"skipped": True, "cases": len(cases)}
    cache = VolumeCache(study.cache_dir, Preprocessing.from_dict(info["preprocessing"]))
    network = network.to(context.device.torch_device).eval()
    values = [item["value"] for item in info["structures"]]
    seen = set(info["made_by"].get("seen", ()))
    context.emit("started", total=len(waiting))
    done = 0
    for index, case in enumerate(mine):
        context.check_local()
        try:
            volume = context.volume(case, cache=cache)
            found = predict_by_student(
                network,
                volume.image,
                volume.frame,
                info["patch"],
                info["stride"],
                context.device,
                fast=settings.fast,
                check=context.check_local,
            )
            numbers = describe(found, values, volume.frame, volume.frame.native_spacing)
            numbers["made_by"] = {"model": identity, "stage": STAGE, "student": folder.name}
            numbers["made_by"] |= {"seen": case.id in seen, "image": image_hash(case)}
            label, confidence = as_images(found, values, volume.frame)
            study.write_result(case.id, KIND, label, confidence, numbers)
        except DEFECTS as error:
            context.leave_out(case, error)
            study.remove_result(case.id, KIND)
            continue
        done += 1
        context.emit("case", id=case.id, path=f"predictions/{case.id}.nrrd", **summary(numbers))
        context.emit("progress", step=index + 1, total=len(mine))
    done = context.total_of(done)
    if context.main:
        study.write_confidence_table(KIND)
    if done == 0 and len(waiting) == len(cases):
        raise InputError("No volume could be predicted.", hint="The warnings say why, case by case.")
    context.emit("finished_stage", cases=done)
    return {"skipped": False, "cases": done}


def predict_image(
    model_folder: Path, image: sitk.Image, device: Device, *, fast: bool = True
) -> tuple[sitk.Image, sitk.Image, dict[str, Any]]:
    """Label map, confidence and numbers of one image by a student, in the image's exact geometry."""
    network, info = load_student(model_folder)
    network = network.to(device.torch_device).eval()
    preprocessing = Preprocessing.from_dict(info["preprocessing"])
    frame = Frame.of(image, stack_axis=preprocessing.stack_axis, spacing=preprocessing.spacing)
    array = preprocessing.normalisation.apply(frame.to_internal(image))
    found = predict_by_student(network, array, frame, info["patch"], info["stride"], device, fast=fast)
    values = [item["value"] for item in info["structures"]]
    numbers = describe(found, values, frame, frame.native_spacing)
    label, confidence = as_images(found, values, frame)
    return label, confidence, numbers


def student_for(context: StageContext, *, newest: bool = False) -> Path:
    """The folder of the student of this recipe and method, with ``newest`` of the one that was trained last.

    Raises InputError where there is none.
    """
    own = student_folder(context)
    if not newest and (own / STUDENT_INFO).is_file():
        return own
    root, settings = context.study.root, context.settings
    found = sorted(context.study.models_dir.glob(f"*/{STUDENT_INFO}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise InputError(
            "No student is trained yet, so nothing can be predicted.",
            hint=f"Train one first:  {command_line('sfr', 'run', root)}",
        )
    if newest:
        return found[-1].parent
    there = ", ".join(path.parent.name for path in found)
    train = command_line("sfr", "run", root, "--recipe", settings.recipe, "--ssl", settings.ssl)
    raise InputError(
        f"No student is trained yet for the recipe {settings.recipe} and the method {settings.ssl}; "
        f"there is: {there}.",
        hint=f"Leave --recipe and --ssl out to predict with the newest, or train this one:  {train}",
    )
