"""A full-size SAM ViT-B at canvas 1024: three fine-tuning steps and one pseudo-labeled volume, timed.

    python Testing/Benchmarks/vit_b.py --data DIR [--tuning lora] [--precision auto] [--steps 3]

DIR holds ``images``, ``labels`` and ``train.list`` (left atrium). A checkpoint file with random weights of
the real shapes stands in for the download, so the time and the memory are real and the result is not. The
pseudo-labels of a whole volume take as many windows as it has; without a GPU that is minutes for each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tuning", default="lora")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()

    from SFRCore import Study, api
    from SFRCore.foundation.checkpoints import save_foundation_checkpoint
    from SFRCore.foundation.sam import ClasswiseSAM
    from SFRCore.foundation.spec import SPECS
    from SFRCore.runtime import loop

    loop.EVENT_SECONDS = 0.0
    names = (arguments.data / "train.list").read_text(encoding="utf-8").split()[:3]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "vit_b_random.pth"
        save_foundation_checkpoint(ClasswiseSAM(SPECS["vit_b"], 4), checkpoint)
        study = Study.create(Path(folder) / "study", structures={1: "Left atrium"}, preset="left_atrium")
        for index, name in enumerate(names):
            label = {"label": _file(arguments.data / "labels", name)} if index < 2 else {}
            study.add(_file(arguments.data / "images", name), **label)
        common: dict[str, Any] = {
            "foundation": str(checkpoint),
            "tuning": arguments.tuning,
            "precision": arguments.precision,
            "device": arguments.device,
            "iterations_finetune": arguments.steps,
            "yes": True,
        }
        times: list[float] = []
        peak: dict[str, int] = {}

        def heard(event: dict[str, Any]) -> None:
            peak.update({"bytes": event["peak_memory_bytes"]} if "peak_memory_bytes" in event else {})
            if event["event"] == "plan":
                print(f"device {event['device']}, {event['precision']}, canvas {event['canvas']}", flush=True)
            if (event["event"] == "started" and event["stage"] == "finetune") or "loss" in event:
                times.append(time.perf_counter())

        api.run_stage(study, "finetune", on_event=heard, **common)
        steps = [after - before for before, after in zip(times, times[1:], strict=False)]
        print(
            f"fine-tuning ({arguments.tuning}), 2 canvases a step: "
            + ", ".join(f"{one:.1f} s" for one in steps)
        )
        print(f"peak memory so far {peak['bytes'] / 1e9:.2f} GB (of the GPU, where there is one)", flush=True)
        begin = time.perf_counter()
        api.run_stage(study, "pseudolabel", on_event=heard, **common)
        print(f"one pseudo-labeled volume: {time.perf_counter() - begin:.0f} s")
        print(f"peak memory {peak['bytes'] / 1e9:.2f} GB")


def _file(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"{name}*"))
    if not found:
        sys.exit(f"{name} is not in {folder}")
    return found[0]


if __name__ == "__main__":
    main()
