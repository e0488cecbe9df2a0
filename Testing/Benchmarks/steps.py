"""Time and memory of one training step of every semi-supervised method, relative to Mean Teacher.

    python Testing/Benchmarks/steps.py [--patch 64,64,32] [--steps 3] [--device cpu] [--methods NAME ...]

A V-Net, two classes, random crops, as many as the method's longest phase takes, no pseudo-labels of a
foundation model. A step is forward, backward, optimiser and what the method does after it. Each method
runs in a process of its own, where its steps alternate with steps of Mean Teacher: the ratio is that of
the medians. Memory is the peak of anonymous memory (on a GPU, of allocated memory) that the steps of the
method alone add.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
BASE = "mean_teacher"
WARM_UP = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patch", default="64,64,32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--measured", type=Path, default=ROOT / "Testing" / "Benchmarks" / "measured")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments, arguments.one)))
        return
    from SFRCore.ssl import available_methods

    base = _measured_apart(arguments, BASE)
    lines = [
        f"V-Net, crops of {arguments.patch.replace(',', ' x ')} voxels, {arguments.device}, relative to "
        f"{BASE} ({base['memory'] / 1e9:.2f} GB)",
        "",
        "| method | time of a step | memory | crops: labeled + unlabeled | parameters that learn |",
        "|---|---|---|---|---|",
    ]
    for name in arguments.methods or available_methods():
        own = base if name == BASE else _measured_apart(arguments, name)
        lines.append(
            f"| `{name}` | {own['time']:.2f} | {own['memory'] / base['memory']:.2f} | {own['crops']} | "
            f"{own['parameters'] / 1e6:.1f} M |"
        )
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    arguments.measured.mkdir(parents=True, exist_ok=True)
    (arguments.measured / f"steps-{arguments.device}.md").write_text(text, encoding="utf-8")
    print(text)


def measure(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Ratio of time, bytes and size of one method, in this process."""
    memory = _Memory(arguments.device)
    with memory:
        own = _Training(name, arguments)
        for _ in range(WARM_UP + 1):
            own.step()
    base = _Training(BASE, arguments) if name != BASE else None
    taken: dict[str, list[float]] = {"own": [], "base": []}
    for number in range(arguments.steps + WARM_UP if base else 0):
        for key, training in (("own", own), ("base", base)):
            begin = time.perf_counter()
            assert training is not None
            training.step()
            if number >= WARM_UP:
                taken[key].append(time.perf_counter() - begin)
    return {
        "time": statistics.median(taken["own"]) / statistics.median(taken["base"]) if base else 1.0,
        "memory": memory.added,
        "crops": f"{own.phase.labeled} + {own.phase.unlabeled}",
        "parameters": own.parameters,
    }


class _Training:
    """A method, its optimiser and a batch, in the middle of the longest phase."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        import torch

        from SFRCore.ssl import get_method
        from SFRCore.ssl.contract import Batch, MethodContext, Progress
        from SFRCore.students import make_student

        self.device = torch.device(arguments.device)
        x, y, z = map(int, arguments.patch.split(","))
        self.method = get_method(name)(
            MethodContext(
                classes=2,
                patch=(x, y, z),
                make_student=lambda **fields: make_student(
                    "vnet", **{"in_channels": 1, "classes": 2} | fields
                ),
            )
        )
        self.method.check()
        phases = self.method.plan(6000)
        self.phase = max(phases, key=lambda phase: (phase.fraction, phase.unlabeled))
        for phase in phases[: phases.index(self.phase) + 1]:
            self.method.begin(phase)
        self.method.to(self.device, memory_format=torch.channels_last_3d).train()  # type: ignore[call-overload]
        groups = self.method.parameter_groups(self.phase)
        self.parameters = sum(weights.numel() for group in groups for weights in group["params"])
        self.optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, weight_decay=1e-4)
        self.progress = Progress(3000, 6000, self.phase, 3000, 6000)

        random = torch.Generator().manual_seed(0)
        layout = torch.channels_last_3d

        def images(count: int) -> torch.Tensor:
            crops = torch.randn((count, 1, x, y, z), generator=random)
            return torch.nn.functional.avg_pool3d(crops, 5, 1, 2).contiguous(memory_format=layout)

        labeled, unlabeled = images(self.phase.labeled), images(self.phase.unlabeled)
        self.batch = Batch(
            labeled_images=labeled,
            labels=(labeled[:, 0] > 0).long(),
            labeled_valid=torch.ones((len(labeled), x, y, z), dtype=torch.bool),
            unlabeled_images=unlabeled,
            unlabeled_valid=torch.ones((len(unlabeled), x, y, z), dtype=torch.bool),
            pseudo_labels=(unlabeled[:, 0] > 0).long(),
        ).to(self.device)

    def step(self) -> None:
        done = self.method(self.batch, self.progress)
        self.optimizer.zero_grad(set_to_none=True)
        done.loss.backward()
        self.optimizer.step()
        self.method.after_step(self.progress)
        done.loss.item()  # waits for a GPU


class _Memory:
    """The peak of memory within, less what was there before: ``added`` bytes."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.added = 0

    def __enter__(self) -> _Memory:
        import torch

        import SFRCore.students  # noqa: F401 - its modules are not the method's memory

        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
            return self
        self.before = self.peak = _anonymous()
        self.ended = threading.Event()
        self.watch = threading.Thread(target=self._look, daemon=True)
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        import torch

        if self.on_gpu:
            self.added = torch.cuda.max_memory_allocated()
            return
        self.ended.set()
        self.watch.join()
        self.added = self.peak - self.before

    def _look(self) -> None:
        while not self.ended.wait(0.005):
            self.peak = max(self.peak, _anonymous())


def _anonymous() -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon:"))


def _measured_apart(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name, "--patch", arguments.patch]
    command += ["--steps", str(arguments.steps), "--device", arguments.device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
