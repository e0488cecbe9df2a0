"""Which device computes, in which precision, and what happens when its memory runs out."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError, OutOfMemory, says_no_memory


@dataclass(frozen=True)
class Device:
    """Where a stage computes. ``accelerator`` is accelerate's, with every option given explicitly."""

    accelerator: Any
    torch_device: torch.device
    precision: str

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def processes(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        return int(self.accelerator.process_index)

    @property
    def is_gpu(self) -> bool:
        return self.torch_device.type != "cpu"

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Mixed precision for forward passes; losses are computed in float32 outside of it."""
        if self.precision == "fp32":
            return contextlib.nullcontext()
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.torch_device.type, dtype=kind)

    def name(self) -> str:
        if self.torch_device.type == "cuda":
            return torch.cuda.get_device_name(self.torch_device)
        return "Apple GPU" if self.torch_device.type == "mps" else cpu_name()

    def peak_memory(self) -> int:
        """The most memory used so far, in bytes: of the GPU where there is one, else of this process."""
        if self.torch_device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.torch_device))
        return peak_process_memory()


def choose_device(device: str = "auto", precision: str = "auto") -> Device:
    """The device and precision to compute with.

    ``auto`` takes CUDA, then Apple's GPU, then the CPU. bf16 or fp16 is used where the hardware multiplies
    in it; Apple's GPU always computes in float32. Raises InputError where the wished device is not there.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs

    kind = device.split(":")[0]
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "No CUDA GPU is to be found.", hint="Choose the device 'cpu', or check the GPU's driver."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("No Apple GPU is to be found.", hint="Choose the device 'cpu'.")
    chosen = _precision(kind, precision)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        PartialState._reset_state()
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        device_placement=True,
        split_batches=False,
        mixed_precision={"fp32": "no"}.get(chosen, chosen),
        gradient_accumulation_steps=1,
        cpu=kind == "cpu",
        log_with=None,
        project_dir=None,
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    where = accelerator.device if world > 1 else torch.device(device if ":" in device else kind)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    return Device(accelerator, where, chosen)


def _precision(kind: str, wished: str) -> str:
    if kind == "mps":
        return "fp32"
    if wished == "fp16" and kind == "cpu":
        raise InputError("Half precision (fp16) does not pay on a CPU.", hint="Choose the precision 'auto'.")
    if wished != "auto":
        return wished
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 instructions: without them bf16 is many times slower than float32."""
    cpu = torch.cpu
    return any(
        bool(getattr(cpu, name, lambda: False)())
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "CPU"


def peak_process_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def available_memory(device: torch.device) -> int:
    """Bytes that a job may count on: the GPU's memory, or what the computer has free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return 8 << 30


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on a GPU or on the computer."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | MemoryError) and says_no_memory(error)


@contextlib.contextmanager
def explained_memory(device: Device, doing: str, *, trains: bool = False) -> Iterator[None]:
    """Turn a memory failure inside the block into OutOfMemory (exit code 4) with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        batch = "a smaller batch (--batch 1), " if trains else ""
        place = f"The memory of {device.name()}" if device.is_gpu else "The computer's memory"
        raise OutOfMemory(
            f"{place} ran out while {doing}.",
            hint=f"Close other programs, or choose a smaller patch, {batch}a smaller foundation or another "
            "device.",
        ) from error
