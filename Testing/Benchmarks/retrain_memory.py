"""Peak anonymous memory of re-training with 10 and with 60 cases: volumes are read by memory map.

    python Testing/Benchmarks/retrain_memory.py --data DIR [--steps 40] [--patch 64,64,64]

DIR holds ``images``, ``labels`` and ``train.list`` (left atrium). Each count runs in a process of its own,
Mean Teacher without a foundation, 4 cases labeled; in 40 steps of 2 + 2 crops every case is read. Anonymous
memory is RssAnon of /proc/PID/status, sampled every 20 ms.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
LABELED = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--patch", default="64,64,64")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 60])
    arguments = parser.parse_args()
    peaks = {count: measure(arguments, count) for count in arguments.counts}
    for count, peak in peaks.items():
        print(f"{count} cases: peak anonymous memory {peak / 1e6:.0f} MB")
    first, last = peaks[arguments.counts[0]], peaks[arguments.counts[-1]]
    print(f"difference {100 * (last - first) / first:+.1f} %")


def measure(arguments: argparse.Namespace, count: int) -> int:
    from SFRCore import Study

    names = (arguments.data / "train.list").read_text(encoding="utf-8").split()[:count]
    with tempfile.TemporaryDirectory() as folder:
        study = Study.create(Path(folder) / "study", structures={1: "Left atrium"}, preset="left_atrium")
        for index, name in enumerate(names):
            label = {"label": _file(arguments.data / "labels", name)} if index < LABELED else {}
            study.add(_file(arguments.data / "images", name), **label)
        command = [sys.executable, "-m", "SFRCore", "retrain", str(study.root)]
        command += ["--recipe", "baseline", "--device", "cpu", "--patch", arguments.patch]
        command += ["--iterations-retrain", str(arguments.steps)]
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
        )
        peak = 0
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.02)
        if process.returncode:
            sys.exit(f"re-training on {count} cases failed ({process.returncode})")
        return peak


def _file(folder: Path, name: str) -> Path:
    found = sorted(folder.glob(f"{name}*"))
    if not found:
        sys.exit(f"{name} is not in {folder}")
    return found[0]


def _anonymous(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main()
