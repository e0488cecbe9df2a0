"""A tuned foundation model on disk: foundation.safetensors, and foundation.json that says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from SFRCore.errors import InputError
from SFRCore.foundation.checkpoints import build_foundation, seeded
from SFRCore.foundation.download import CHECKPOINTS, checkpoint_folder, file_sha256
from SFRCore.foundation.sam import ClasswiseSAM
from SFRCore.foundation.spec import FoundationSpec
from SFRCore.foundation.tuning import WHOLE_ENCODER, apply_tuning
from SFRCore.runtime.files import atomic_path, read_json, write_json

WEIGHTS = "foundation.safetensors"
DESCRIPTION = "foundation.json"
FORMAT_VERSION = 1


def save_tuned(model: ClasswiseSAM, folder: Path | str, made_by: dict[str, Any]) -> Path:
    """Write a tuned model; returns ``folder``.

    Saved are the adapters, prompt encoder and decoder; everything where everything was tuned or where no file
    holds the rest (random ``tiny``). Raises DiskFull or InputError where the folder cannot be written.
    """
    folder = Path(folder)
    whole = _is_whole(model.tuning, model.origin)
    state = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if whole or _is_tuned_part(name)
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(state, temporary)
        checksum = file_sha256(temporary)
    write_json(
        folder / DESCRIPTION,
        {
            "format_version": FORMAT_VERSION,
            "spec": model.spec.to_dict(),
            "classes": model.classes,
            "canvas": model.canvas,
            "tuning": model.tuning,
            "origin": model.origin,
            "weights_sha256": checksum,
            "made_by": made_by,
        },
    )
    return folder


def read_description(folder: Path | str) -> dict[str, Any]:
    """The content of foundation.json. Raises InputError where it is missing, damaged or too new."""
    path = Path(folder) / DESCRIPTION
    description = read_json(path)
    keys = {"spec", "classes", "canvas", "tuning", "origin", "weights_sha256"}
    if not isinstance(description, dict) or not keys <= description.keys():
        raise InputError(f"{path} does not describe a foundation model.", hint="Fine-tune again.")
    if description.get("format_version", 0) > FORMAT_VERSION:
        raise InputError(f"{path} was written by a newer version of SFR.", hint="Update SFR.")
    return description


def load_tuned(folder: Path | str, *, checkpoint_folder: Path | str | None = None) -> ClasswiseSAM:
    """The model that ``save_tuned`` wrote, on the CPU, adapters attached, trainable as it was, in eval mode.

    ``checkpoint_folder``: where the checkpoint that it was tuned from lies. Raises InputError where a file is
    missing, damaged or not the one that was tuned.
    """
    folder = Path(folder)
    description = read_description(folder)
    weights = _read_weights(folder / WEIGHTS, description["weights_sha256"])
    origin, tuning = dict(description["origin"]), dict(description["tuning"])
    classes, canvas = int(description["classes"]), int(description["canvas"])
    whole = _is_whole(tuning, origin)
    if whole:
        with seeded(0):
            model = ClasswiseSAM(FoundationSpec.from_dict(description["spec"]), classes, canvas)
    else:
        model = _rebuild(origin, classes, canvas, checkpoint_folder)
    model.origin = origin
    if tuning:
        apply_tuning(model, **tuning)
    expected = {name for name in model.state_dict() if whole or _is_tuned_part(name)}
    if expected != weights.keys():
        raise InputError(f"{folder / WEIGHTS} does not fit {folder / DESCRIPTION}.", hint="Fine-tune again.")
    try:
        model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise InputError(
            f"{folder / WEIGHTS} does not fit {folder / DESCRIPTION}.", hint="Fine-tune again."
        ) from error
    return model.eval()


def _is_whole(tuning: dict[str, Any], origin: dict[str, Any]) -> bool:
    return tuning.get("method", "full") in WHOLE_ENCODER or "sha256" not in origin


def _is_tuned_part(name: str) -> bool:
    return not name.startswith("image_encoder.") or ".lora_" in name or ".adapter." in name


def _read_weights(path: Path, checksum: str) -> dict[str, Tensor]:
    try:
        if file_sha256(path) != checksum:
            raise InputError(f"{path} is damaged or from another run.", hint="Fine-tune again.")
        return load_file(path, device="cpu")
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing.", hint="Fine-tune again, or restore it from a copy.") from error
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read.", hint="Fine-tune again, or restore it from a copy."
        ) from error


def _rebuild(origin: dict[str, Any], classes: int, canvas: int, folder: Path | str | None) -> ClasswiseSAM:
    source = origin["name"]
    if source not in CHECKPOINTS or "file" in origin:
        source = Path(origin["file"])
        if not source.is_file():
            source = Path(folder or checkpoint_folder()) / source.name
        if not source.is_file():
            raise InputError(
                f"The checkpoint {origin['file']} that this model was tuned from is missing.",
                hint=f"Put it back, or into {source.parent}.",
            )
        if file_sha256(source) != origin["sha256"]:
            raise InputError(
                f"{source} is not the checkpoint that this model was tuned from.",
                hint="Put the original back.",
            )
    return build_foundation(source, classes=classes, canvas=canvas, seed=int(origin["seed"]), folder=folder)
