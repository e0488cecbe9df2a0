"""Which build of PyTorch suits this computer, where it is fetched from, and how large all of it is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PYTORCH_INDEX = "https://download.pytorch.org/whl"
_SMI_ON_WINDOWS = Path(r"C:\Windows\System32\nvidia-smi.exe")
_CUDA_INDEXES = (((13, 0), "cu130"), ((12, 8), "cu128"), ((12, 0), "cu126"))
"""PyTorch's CUDA indexes, newest first, with the CUDA version that the driver must support at least.

A driver runs every build of its own major version; cu126 is the last with support for Pascal and Volta."""


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver tells of it: name, memory in bytes, newest CUDA that it supports."""

    name: str
    memory: int
    cuda: tuple[int, int]


@dataclass(frozen=True)
class TorchBuild:
    """A build to install: where from (``indexes``, in the order to try; none: the usual index), and about how
    many bytes all packages take on the way and on the disk."""

    name: str
    indexes: tuple[str, ...]
    download: int
    disk: int


def find_gpu() -> Gpu | None:
    """The first NVIDIA GPU, asked of nvidia-smi; None where there is no GPU or no driver. Takes a second."""
    program = shutil.which("nvidia-smi") or (str(_SMI_ON_WINDOWS) if _SMI_ON_WINDOWS.is_file() else None)
    if program is None:
        return None
    listing = _ask(program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    version = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)", _ask(program))
    name, _, megabytes = listing.partition("\n")[0].rpartition(",")
    if not name or version is None:
        return None
    memory = int(megabytes) << 20 if megabytes.strip().isdigit() else 0
    return Gpu(name.strip(), memory, (int(version[1]), int(version[2])))


def _ask(program: str, *arguments: str) -> str:
    hidden: dict[str, Any] = {}
    if sys.platform == "win32":
        hidden = {"creationflags": subprocess.CREATE_NO_WINDOW}
    try:
        done = subprocess.run(
            [program, *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            stdin=subprocess.DEVNULL,
            check=False,
            **hidden,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def choose_build(gpu: Gpu | None, platform: str = sys.platform) -> TorchBuild:
    """The build for a computer with this GPU. Sizes are of the packages of November 2026, rounded up.

    The usual index holds the build for CUDA 13 on Linux and the CPU's on Windows and macOS; for the rest
    PyTorch has an index each.
    """
    if platform == "darwin":
        return TorchBuild("Apple", (), 400_000_000, 1_500_000_000)
    names = tuple(name for least, name in _CUDA_INDEXES if gpu is not None and gpu.cuda >= least)
    if not names:
        at_cpu = () if platform == "win32" else (f"{PYTORCH_INDEX}/cpu",)
        return TorchBuild("CPU", at_cpu, 600_000_000, 2_000_000_000)
    indexes = tuple(f"{PYTORCH_INDEX}/{name}" for name in names)
    if platform == "win32":
        return TorchBuild("CUDA", indexes, 3_500_000_000, 7_000_000_000)
    newest = len(names) == len(_CUDA_INDEXES)
    return TorchBuild("CUDA", () if newest else indexes, 3_300_000_000, 6_500_000_000)
