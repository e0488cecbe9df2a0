"""What is installed, what would compute, and whether checkpoints and a study are whole."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from . import __version__
from .errors import SFRError
from .study import Study

PACKAGES = (
    "torch", "torchvision", "segment-anything", "peft", "accelerate", "SimpleITK", "numpy", "scipy",
    "safetensors", "typer", "rich", "requests", "pydicom", "matplotlib", "onnx", "onnxruntime",
)  # fmt: skip
OPTIONAL = ("onnx", "onnxruntime")


def examine(study: Study | None = None) -> dict[str, Any]:
    """Packages, devices with memory in bytes, checkpoints, and (for a study) its cases and files.

    Works also where packages are missing, torch among them: then there are no devices to tell of.
    """
    found: dict[str, Any] = {
        "sfr": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "packages": {name: _version(name) for name in PACKAGES},
        "checkpoints": _checkpoints(),
    }
    found["missing"] = [
        name for name, version in found["packages"].items() if version is None and name not in OPTIONAL
    ]
    try:
        found["devices"] = _devices()
    except (ImportError, OSError) as error:  # torch is missing, or one of its libraries
        found["devices"] = []
        if found["packages"]["torch"] is not None:
            found["torch_problem"] = str(error)
    if study is not None:
        found["study"] = _study(study)
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _checkpoints() -> dict[str, str]:
    from .foundation.download import CHECKPOINTS, checkpoint_folder, is_downloaded, is_whole

    folder = checkpoint_folder()
    found = {}
    for name in CHECKPOINTS:
        there = is_downloaded(name)
        found[name] = (
            "not downloaded" if not there else f"{'whole' if is_whole(name) else 'damaged'}, in {folder}"
        )
    return found


def _devices() -> list[dict[str, Any]]:
    import torch

    from .runtime.devices import available_memory, choose_device, cpu_name

    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        devices.append({"device": f"cuda:{index}", "name": name, "free_bytes": free, "total_bytes": total})
    if torch.backends.mps.is_available():
        devices.append(
            {"device": "mps", "name": "Apple GPU", "free_bytes": available_memory(torch.device("cpu"))}
        )
    cpu = torch.device("cpu")
    devices.append(
        {
            "device": "cpu",
            "name": cpu_name(),
            "threads": torch.get_num_threads(),
            "free_bytes": available_memory(cpu),
        }
    )
    try:
        chosen = choose_device()
    except ImportError:  # without accelerate nothing can be chosen
        return devices
    for device in devices:
        device["chosen"] = str(device["device"]).split(":")[0] == chosen.torch_device.type
        if device["chosen"]:
            device["precision"] = chosen.precision
    return devices


def _study(study: Study) -> dict[str, Any]:
    from .volumes import read_image

    roles: dict[str, int] = {}
    problems: dict[str, str] = {}
    for case in study.cases.values():
        roles[case.role] = roles.get(case.role, 0) + 1
        try:
            read_image(study.image_path(case.id))
        except (SFRError, OSError) as error:
            problems[case.id] = error.message if isinstance(error, SFRError) else str(error)
    root = Path(study.root)
    return {
        "folder": str(root),
        "roles": roles,
        "unreadable": problems,
        "labels_of_no_case": [str(path) for path in study.stray_labels()],
        "free_bytes": shutil.disk_usage(root).free,
        "readonly": study.readonly,
    }
