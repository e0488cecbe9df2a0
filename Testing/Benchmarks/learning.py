"""Every semi-supervised method on 4 labeled hippocampi: does it learn, and more than from the labels alone?

    python Testing/Benchmarks/learning.py --data DIR [--iterations 300] [--output results/learning]

DIR holds ``images``, ``labels`` and ``train.list`` of the Decathlon's Task04; the split is that of
``hippocampus.py``. Each method is trained once without pseudo-labels of a foundation model. Those that end
below the supervised student are trained with two more seeds, and the supervised student with them, and the
table says why, from ``explanations.json`` in ``--measured``. What is done is kept and skipped when started
again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from Testing.Benchmarks.hippocampus import STRUCTURES, image_of, label_of, make_split  # noqa: E402

BASE = "supervised"
FURTHER_SEEDS = 2


def main() -> None:
    arguments = _arguments()
    from SFRCore import api
    from SFRCore.ssl import available_methods

    study = make_study(arguments.data, arguments.output / "study")
    methods = arguments.methods or [BASE, *(name for name in available_methods() if name != BASE)]
    shared: dict[str, Any] = {
        "recipe": "baseline",
        "name": "learning",
        "iterations_retrain": arguments.iterations,
        "device": arguments.device,
        "on_event": _say,
    }
    done = api.compare(study, methods, seeds=1, base=BASE, **shared)
    failed, lines = done["failed"], {line["ssl"]: line for line in done["rows"]}
    first = {name: _of_first_seed(lines[name]) for name in methods}
    below = [name for name, dice in first.items() if dice is not None and dice < first[BASE]]
    if below:
        done = api.compare(study, [BASE, *below], first_seed=2, seeds=FURTHER_SEEDS, base=BASE, **shared)

    folder = Path(done["folder"])
    arguments.measured.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "table.csv", arguments.measured / "table.csv")
    table = (folder / "table.md").read_text(encoding="utf-8")
    text = table + explained(done["rows"], arguments.measured / "explanations.json")
    (arguments.measured / "table.md").write_text(text, encoding="utf-8")
    print(text)
    for name, reason in failed.items():
        print(f"{name} was not trained: {reason}")


def _of_first_seed(line: dict[str, Any]) -> float | None:
    return line["dice_by_seed"][line["seeds"].index(1)] if 1 in line["seeds"] else None


def explained(lines: Sequence[dict[str, Any]], path: Path) -> str:
    """A line for each method that is below the supervised student with the same seeds, or with the first."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    base = next(_of_first_seed(line) for line in lines if line["ssl"] == BASE) or 0.0
    below = [
        line
        for line in lines
        if line["ssl"] != BASE
        and line["seeds"]
        and ((line["difference"] or 0.0) < 0.0 or (_of_first_seed(line) or 1.0) < base)
    ]
    if not below:
        return ""
    head = f"Below the supervised student, with the Dice of each seed. {known.get('all', '')}".rstrip()
    words = ["", head, ""]
    for line in below:
        seeds = ", ".join(f"{100 * dice:.1f}" for dice in line["dice_by_seed"])
        words.append(f"- `{line['ssl']}` ({seeds}): {known.get(line['ssl'], 'not explained yet')}")
    return "\n".join([*words, ""])


def make_study(data: Path, folder: Path) -> Any:
    """The study of the split: labeled, unlabeled and test cases, references where labels are not used."""
    from SFRCore import Study

    if (folder / "study.json").is_file():
        return Study.open(folder)
    study = Study.create(folder, structures=STRUCTURES, preset="hippocampus")
    for role, names in make_split(data).items():
        for name in names if role != "others" else []:
            use = "label" if role == "labeled" else "reference"
            study.add(image_of(data, name), role=role, **{use: label_of(data, name)})
    return study


def _say(event: dict[str, Any]) -> None:
    if event.get("event") == "warning":
        print(event["message"], flush=True)
    elif event.get("stage") == "compare" and event.get("event") == "progress":
        print(f"{event['step']}/{event['total']} {event['doing']}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "learning")
    parser.add_argument(
        "--measured", type=Path, default=ROOT / "Testing" / "Benchmarks" / "measured" / "learning"
    )
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument(
        "--methods", nargs="+", help="all of them if not given; supervised must be among them"
    )
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    main()
