"""Four ways to learn from 4 labeled hippocampi: supervised, Mean Teacher, SFR with a random and with a tuned
tiny.

    python Testing/Benchmarks/hippocampus.py --data DIR [--iterations 500] [--seeds 3] [--jobs 2] [--output
    results/hippocampus]

DIR holds ``images``, ``labels`` and ``train.list`` of the Decathlon's Task04. In the order of the list:
the first 4 cases are labeled, the next 60 unlabeled, the last 40 are for testing; 100 others, with
anterior and posterior taken as one, tune the ``tiny`` that stands in for a pretrained foundation. Settings
are chosen with ``--validate``, which scores the unlabeled cases instead of the test cases. Every finished
run is kept and skipped when started again; the table is printed, and kept with every run's numbers in
``--measured``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

LABELED, UNLABELED, TEST, OTHERS = 4, 60, 40, 100
STRUCTURES = {1: "Anterior", 2: "Posterior"}


@dataclass(frozen=True)
class Arm:
    key: str
    title: str
    recipe: str
    ssl: str
    foundation: str = ""
    options: tuple[str, ...] = ()


ARMS = (
    Arm("supervised", "(a) supervised, 4 labels", "baseline", "supervised"),
    Arm("mean_teacher", "(b) Mean Teacher", "baseline", "mean_teacher"),
    Arm("sfr_random", "(c) SFR, random tiny", "sfr", "mean_teacher", "tiny"),
    # As with a pretrained SAM: chosen on the unlabeled cases, where every weight tuned gave poorer labels.
    Arm("sfr_tuned", "(d) SFR, tuned tiny, LoRA", "sfr", "mean_teacher", "TUNED", ("--tuning=lora",)),
)


def main() -> None:
    arguments = _arguments()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    arguments.measured.mkdir(parents=True, exist_ok=True)
    split = make_split(arguments.data)
    wanted = [arm for key in arguments.arms for arm in ARMS if arm.key == key]
    checkpoint = output / "tiny-hippocampus.pth"
    if any(arm.foundation == "TUNED" for arm in wanted) and not checkpoint.is_file():
        tune_foundation(arguments, split["others"], checkpoint)
    jobs = [
        (arm, seed)
        for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        for arm in wanted
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = [pool.submit(run_arm, arguments, split, checkpoint, *job) for job in jobs]
        for arm in waiting:
            arm.result()
    print_table(arguments, wanted)


def make_split(data: Path) -> dict[str, list[str]]:
    """Case names by part; parts never overlap."""
    names = (data / "train.list").read_text(encoding="utf-8").split()
    missing = [name for name in names if not image_of(data, name).is_file()]
    if missing:
        sys.exit(f"{missing[0]} of train.list is not in {data / 'images'}.")
    rest = names[LABELED + UNLABELED : -TEST]
    return {
        "labeled": names[:LABELED],
        "unlabeled": names[LABELED : LABELED + UNLABELED],
        "others": rest[:OTHERS],
        "test": names[-TEST:],
    }


def image_of(data: Path, name: str) -> Path:
    return data / "images" / f"{name}.nii.gz"


def label_of(data: Path, name: str) -> Path:
    return data / "labels" / f"{name}.nii.gz"


def tune_foundation(arguments: argparse.Namespace, names: list[str], checkpoint: Path) -> None:
    """A tiny that knows hippocampus from background, saved in segment-anything's own format."""
    from SFRCore import Study
    from SFRCore.foundation.checkpoints import save_foundation_checkpoint
    from SFRCore.foundation.store import load_tuned

    folder = arguments.output / "foundation"
    if not (folder / "study.json").is_file():
        study = Study.create(folder, structures={1: "Hippocampus"}, preset="hippocampus")
        for name in names:
            label = sitk.ReadImage(str(label_of(arguments.data, name)))
            study.add(image_of(arguments.data, name), label=sitk.Cast(label > 0, sitk.sitkUInt8))
    print(f"tuning the stand-in foundation on {len(names)} other cases", flush=True)
    measured = sfr("finetune", folder, f"--iterations-finetune={arguments.foundation_iterations}", "--seed=7")
    save_foundation_checkpoint(load_tuned(folder / "models" / "foundation"), checkpoint)
    (arguments.measured / "foundation.json").write_text(json.dumps(measured), encoding="utf-8")


def run_arm(
    arguments: argparse.Namespace, split: dict[str, list[str]], checkpoint: Path, arm: Arm, seed: int
) -> None:
    """One row of the table for one seed, unless it is there already."""
    from SFRCore import Study

    folder = arguments.output / f"{arm.key}-{seed}"
    done = arguments.measured / f"{arm.key}-{seed}.json"
    if done.is_file():
        return
    if not (folder / "study.json").is_file():
        study = Study.create(folder, structures=STRUCTURES, preset="hippocampus")
        for part, role in (("labeled", "labeled"), ("unlabeled", "unlabeled"), ("test", "test")):
            for name in split[part]:
                use = "label" if role == "labeled" else "reference"
                study.add(image_of(arguments.data, name), role=role, **{use: label_of(arguments.data, name)})
    shared = [
        f"--recipe={arm.recipe}",
        f"--ssl={arm.ssl}",
        f"--seed={seed}",
        f"--iterations-finetune={arguments.iterations}",
        f"--iterations-retrain={arguments.iterations}",
        "--device=cpu" if arguments.cpu else "--device=auto",
        "--dense",
    ]
    if arm.foundation:
        shared.append(f"--foundation={checkpoint if arm.foundation == 'TUNED' else arm.foundation}")
        shared += [*arm.options, *arguments.sfr_option]
    stages = (
        ["retrain", "predict"]
        if arm.recipe == "baseline"
        else ["finetune", "pseudolabel", "retrain", "predict"]
    )
    chosen = [option for option in shared if option.startswith(("--recipe", "--ssl", "--device", "--dense"))]
    measured = {stage: sfr(stage, folder, *(chosen if stage == "predict" else shared)) for stage in stages}
    scored = "unlabeled" if arguments.validate else "test"
    scores = _json("evaluate", str(folder), "--json", f"--cases={scored}", "--mode=strict")
    result: dict[str, Any] = {
        "stages": measured,
        "mean_dice": scores["mean_dice"],
        "structures": {name: means["dice"] for name, means in scores["structures"].items()},
        "cases": len(scores["cases"]),
    }
    if arm.foundation:
        labels = _json("evaluate", str(folder), "--json", "--cases=unlabeled", "--kind=pseudo_label")
        result["pseudo_label_dice"] = labels["mean_dice"]
    done.write_text(json.dumps(result), encoding="utf-8")
    print(f"{arm.title}, seed {seed}: mean Dice {result['mean_dice']:.4f} ({scored})", flush=True)


def sfr(stage: str, folder: Path, *options: str) -> dict[str, float]:
    """Run one stage in a process of its own; seconds and peak memory (bytes) of that process."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "SFRCore", stage, str(folder), "--yes", *options],
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{stage} of {folder.name} failed:\n{said[-3000:]}")
    return {"seconds": time.perf_counter() - begin, "peak_bytes": usage.ru_maxrss * 1024}


def _json(*words: str) -> Any:
    out = subprocess.run(
        [sys.executable, "-m", "SFRCore", *words], env=_environment(), capture_output=True, check=True
    )
    return json.loads(out.stdout)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def print_table(arguments: argparse.Namespace, arms: list[Arm]) -> None:
    lines = [
        f"Hippocampus, {LABELED} labeled, {UNLABELED} unlabeled, "
        + (f"scored on the {UNLABELED} unlabeled (validation)" if arguments.validate else f"{TEST} test")
        + f", K = {arguments.iterations} each, mean Dice in %",
        "",
        "| | " + " | ".join(STRUCTURES.values()) + " | mean ± deviation over seeds | seeds | pseudo-labels | "
        "minutes: finetune, pseudolabel, retrain, predict | peak GB of each |",
        "|---|" + "---|" * (len(STRUCTURES) + 5),
    ]
    for arm in arms:
        results = [
            json.loads(path.read_text()) for path in sorted(arguments.measured.glob(f"{arm.key}-*.json"))
        ]
        if not results:
            continue
        means = 100 * np.array([result["mean_dice"] for result in results])
        parts = [
            100 * np.mean([result["structures"][name] for result in results]) for name in STRUCTURES.values()
        ]
        labels = [result["pseudo_label_dice"] for result in results if "pseudo_label_dice" in result]
        minutes, peaks = [], []
        for stage in ("finetune", "pseudolabel", "retrain", "predict"):
            stages = [result["stages"][stage] for result in results if stage in result["stages"]]
            minutes.append(f"{np.mean([one['seconds'] for one in stages]) / 60:.1f}" if stages else "–")
            peaks.append(f"{max(one['peak_bytes'] for one in stages) / 1e9:.1f}" if stages else "–")
        spread = f" ± {means.std(ddof=1):.2f}" if len(means) > 1 else ""
        lines.append(
            f"| {arm.title} | "
            + " | ".join(f"{part:.2f}" for part in parts)
            + f" | {means.mean():.2f}{spread} | {len(means)} | "
            + (f"{100 * np.mean(labels):.2f}" if labels else "–")
            + f" | {', '.join(minutes)} | {', '.join(peaks)} |"
        )
    text = "\n".join(lines) + "\n"
    (arguments.measured / "table.md").write_text(text, encoding="utf-8")
    print(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "hippocampus")
    parser.add_argument("--measured", type=Path, help="where results go; apart for --validate")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--foundation-iterations", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at once; set OMP_NUM_THREADS=1 for more than one"
    )
    parser.add_argument(
        "--arms", nargs="+", default=[arm.key for arm in ARMS], choices=[arm.key for arm in ARMS]
    )
    parser.add_argument(
        "--sfr-option", action="append", default=[], help="option added to the runs of (c) and (d)"
    )
    parser.add_argument(
        "--validate", action="store_true", help="score the unlabeled cases, never the test cases"
    )
    parser.add_argument("--cpu", action="store_true")
    arguments = parser.parse_args()
    if arguments.measured is None:
        name = "hippocampus-validation" if arguments.validate else "hippocampus"
        arguments.measured = ROOT / "Testing" / "Benchmarks" / "measured" / name
    return arguments


if __name__ == "__main__":
    main()
