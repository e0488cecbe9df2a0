"""A trained student for other programs: torch.export and ONNX, each compared with the original network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from SFRCore import __version__
from SFRCore.errors import InputError, SFRError
from SFRCore.runtime.files import atomic_path, sweep_temporary, write_json
from SFRCore.students import load_student

FORMAT_VERSION = 1
DESCRIPTION = "export.json"
FILES = {"torch": "student.pt2", "onnx": "student.onnx"}
INPUT, OUTPUT = "volume", "logits"
TOLERANCE = 1e-3

Array = NDArray[np.float32]
Network = Callable[[Array], Array]


def export_student(
    model_folder: Path | str,
    out: Path | str,
    *,
    formats: Sequence[str] = ("torch", "onnx"),
    check_volume: NDArray[np.floating] | None = None,
) -> dict[str, Any]:
    """Export the student of ``model_folder`` into the folder ``out`` and return what was written as
    ``export.json``.

    The exported network maps ``volume`` (batch, 1, X, Y, Z), float32, preprocessed, of the model's patch
    size and any batch, to ``logits`` (batch, classes, X, Y, Z). ``check_volume`` is a preprocessed volume
    (X, Y, Z): its central patch is put through the original and each export, and the largest difference of
    logits and of probabilities is recorded; without it a patch of noise is taken. A file is written only
    when it agrees with the original within 1e-3 of probability.

    Raises InputError for an unknown format, a damaged model or missing ONNX packages, SFRError where an
    export gives another result, DiskFull.
    """
    wanted = list(dict.fromkeys(formats))
    unknown = [name for name in wanted if name not in FILES]
    if unknown or not wanted:
        raise InputError(
            f"'{unknown[0]}' is not a format to export to."
            if unknown
            else "No format to export to was named.",
            hint=f"Choose among: {', '.join(FILES)}.",
        )
    if "onnx" in wanted:
        _need_onnx()
    model, info = load_student(model_folder)
    out = Path(out)
    patch = check_patch(check_volume, info["patch"], info["in_channels"])
    with torch.no_grad():
        expected = model(torch.from_numpy(patch)).numpy()
    program = _program(model, patch.shape)
    written: dict[str, Any] = {}
    sweep_temporary(out)
    for name in wanted:
        target = out / FILES[name]
        with atomic_path(target) as temporary:
            network = _write_torch(program, temporary) if name == "torch" else _write_onnx(program, temporary)
            difference = _difference(network(patch), expected)
            if not difference["probabilities"] <= TOLERANCE:
                raise SFRError(
                    f"The {name} export does not give the same result as the student "
                    f"(probabilities differ by {difference['probabilities']:.2g}), so it was not written.",
                    hint="Export to another format, or update PyTorch and ONNX.",
                    code="export_differs",
                )
        written[name] = {
            "file": target.name,
            "bytes": target.stat().st_size,
            "largest_difference": difference,
        }
    description = _description(info, written, on_volume=check_volume is not None)
    write_json(out / DESCRIPTION, description)
    return description | {"folder": str(out)}


def check_patch(volume: NDArray[np.floating] | None, size: Sequence[int], channels: int) -> Array:
    """(2, channels, *size) float32: the centre of ``volume`` (X, Y, Z), zero-padded, and its mirror image.

    Without a volume it is noise of mean 0 and standard deviation 1, as a preprocessed volume has.
    """
    if volume is None:
        return np.random.default_rng(0).normal(size=(2, channels, *size)).astype(np.float32)
    centre = np.zeros(tuple(size), np.float32)
    source, goal = [], []
    for have, want in zip(volume.shape, size, strict=True):
        length = min(have, want)
        source.append(slice((have - length) // 2, (have - length) // 2 + length))
        goal.append(slice((want - length) // 2, (want - length) // 2 + length))
    centre[tuple(goal)] = volume[tuple(source)]
    both = np.stack([centre, centre[::-1]])[:, None]
    return np.ascontiguousarray(np.repeat(both, channels, axis=1))


def _program(model: nn.Module, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    example = torch.zeros(shape)
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.export.export(model, (example,), dynamic_shapes=({0: batch},))


def _write_torch(program: torch.export.ExportedProgram, path: Path) -> Network:
    torch.export.save(program, path)
    network = torch.export.load(path).module()

    def run(volume: Array) -> Array:
        with torch.no_grad():
            logits: Tensor = network(torch.from_numpy(volume))
        return logits.numpy()

    return run


def _write_onnx(program: torch.export.ExportedProgram, path: Path) -> Network:
    import onnxruntime

    exported = torch.onnx.export(
        program, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False, optimize=True
    )
    if exported is None:
        raise SFRError("PyTorch made no ONNX model of this student.", code="export_differs")
    exported.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])

    def run(volume: Array) -> Array:
        logits: Array = session.run([OUTPUT], {INPUT: volume})[0]
        return logits

    return run


def _difference(logits: Array, expected: Array) -> dict[str, float]:
    def softmax(values: Array) -> Array:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        ratio: Array = powers / powers.sum(axis=1, keepdims=True)
        return ratio

    return {
        "logits": float(np.abs(logits - expected).max()),
        "probabilities": float(np.abs(softmax(logits) - softmax(expected)).max()),
    }


def _description(info: Mapping[str, Any], files: Mapping[str, Any], *, on_volume: bool) -> dict[str, Any]:
    background = [{"index": 0, "value": 0, "name": "background"}]
    structures = [{**item, "index": index} for index, item in enumerate(info["structures"], start=1)]
    return {
        "format_version": FORMAT_VERSION,
        "made_with": {"sfr": __version__, "torch": torch.__version__},
        "files": dict(files),
        "compared_on": "the central patch of a volume of the study" if on_volume else "a patch of noise",
        "input": {
            "name": INPUT,
            "shape": ["batch", info["in_channels"], *info["patch"]],
            "dtype": "float32",
            "axes": "batch, channel, then the axes nearest to LPS with the stacking axis last",
            "preprocessing": info["preprocessing"],
        },
        "output": {
            "name": OUTPUT,
            "shape": ["batch", info["classes"], *info["patch"]],
            "dtype": "float32",
            "meaning": "logits; softmax over axis 1 gives probabilities, argmax the class index",
            "classes": background + structures,
        },
        "sliding_window": {
            "stride": info["stride"],
            "padding": "zeros on both sides where a volume is smaller than the patch",
            "merging": "mean of the overlapping probabilities",
        },
        "student": info["student"],
        "made_by": info["made_by"],
    }


def _need_onnx() -> None:
    missing = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise InputError(
            f"Exporting to ONNX needs packages that are not installed: {', '.join(missing)}.",
            hint="Install them with: pip install 'SFRCore[export]', or export with --format torch only.",
        )
