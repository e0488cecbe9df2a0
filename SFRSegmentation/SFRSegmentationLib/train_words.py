"""What the Train step says, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from slicer.i18n import tr as _

from SFRCore.settings import CHOICES

from .job_progress import JobProgress


def stage_words(name: str) -> str:
    """A stage as a user reads it."""
    known = {
        "estimate": _("Measuring the time"),
        "finetune": _("Tuning the foundation"),
        "pseudolabel": _("Labeling the cohort"),
        "retrain": _("Training the student"),
        "predict": _("Segmenting the cases"),
    }
    return known.get(name, name.replace("_", " ").capitalize())


def command_words(command: str) -> str:
    """A job as a user reads it."""
    return _("The whole run") if command == "run" else stage_words(command)


def foundation_words() -> dict[str, str]:
    """The foundations by name, each in a few words."""
    return {
        "vit_b": _("SAM ViT-B: the usual choice"),
        "vit_l": _("SAM ViT-L: larger and slower"),
        "vit_h": _("SAM ViT-H: the largest"),
        "tiny": _("Tiny: only for trying things out"),
        "tiny16": _("Tiny and coarse: the quickest to try"),
    }


def recipe_words() -> dict[str, str]:
    """The recipes by name, each in a few words; a recipe that is not here goes by its name."""
    return {
        "sfr": _("Label the cohort, then train on it (SFR)"),
        "sfr_plus": _("Both models learn in turn (SFR+)"),
        "aslseg": _("Both models label in rounds (ASLseg)"),
        "baseline": _("The student alone, without a foundation"),
    }


def student_words() -> dict[str, str]:
    """The student networks by name, as they are known; "" leaves it to the preset."""
    return {"": _("As suits the kind of data"), "vnet": _("V-Net"), "unet3d": _("3D U-Net")}


def tuning_words() -> dict[str, str]:
    """What of a foundation can be tuned, by name; "" leaves it to the foundation and the device."""
    known = {
        "lora": _("Small additions to its attention (LoRA)"),
        "adapter": _("Small layers put between its own (adapters)"),
        "decoder": _("Its last part only: bearable without a GPU"),
        "encoder_decoder": _("Its image encoder and its last part"),
        "full": _("Every weight"),
    }
    return {
        "": _("As suits the foundation"),
        **{name: known.get(name, name) for name in CHOICES["tuning"]},
    }


def duration(seconds: float) -> str:
    """Seconds in words: "40 s", "14 min", "2 h 5 min", "3 days"."""
    if not math.isfinite(seconds):
        return _("unknown time")
    if seconds < 90:
        return _("{count} s").format(count=max(0, round(seconds)))
    minutes = round(seconds / 60)
    if minutes < 90:
        return _("{count} min").format(count=minutes)
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return _("{hours} h {minutes} min").format(hours=hours, minutes=minutes)
    return _("{count} days").format(count=round(hours / 24))


def memory(count: float) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def device_choices(doctor: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The devices to choose from as (text, name); the first is the automatic choice."""
    devices = list((doctor or {}).get("devices") or [])
    words = [
        (
            _("{name}, {free} free").format(name=device["name"], free=memory(device.get("free_bytes") or 0)),
            str(device["device"]),
            bool(device.get("chosen")),
        )
        for device in devices
    ]
    chosen = next((text for text, _name, picked in words if picked), "")
    automatic = _("Automatic ({device})").format(device=chosen) if chosen else _("Automatic")
    return [(automatic, "auto"), *((f"{name}: {text}", name) for text, name, _picked in words)]


def estimate_words(progress: JobProgress) -> str:
    """How long the job will take by its own measurement, "" before it measured."""
    found = progress.estimate
    if not found:
        return ""
    words = _("Measured at the start: about {time}").format(time=duration(float(found.get("seconds") or 0)))
    if found.get("memory_bytes"):
        words += ", " + _("{memory} of memory").format(memory=memory(float(found["memory_bytes"])))
    stages = found.get("per_stage")
    if isinstance(stages, Mapping) and len(stages) > 1:
        parts = [f"{stage_words(str(name))} {duration(float(value))}" for name, value in stages.items()]
        words += f" ({', '.join(parts)})"
    return words + "."


def plan_words(progress: JobProgress) -> str:
    """What the job computes on and with, "" before it said so."""
    plan = progress.plan
    if not plan:
        return ""
    patch = " x ".join(str(side) for side in plan.get("patch") or ())
    return _("On {device}, preset {preset}, crops of {patch} voxels.").format(
        device=plan.get("device"), preset=plan.get("preset"), patch=patch
    )


def end_words(command: str, state: str, error: Mapping[str, Any] | None) -> str:
    """How a job ended."""
    what = command_words(command)
    if state == "finished":
        return _("{what}: finished.").format(what=what)
    if state == "cancelled":
        return _("{what}: stopped. What was done is kept; Continue goes on from there.").format(what=what)
    told = error or {}
    return " ".join(part for part in (str(told.get("message", "")), str(told.get("hint", ""))) if part)
