"""The demonstration: an invented cohort, the whole recipe with a random ``tiny``, scores and report."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from . import api
from .errors import InputError
from .runtime.devices import peak_process_memory
from .runtime.files import read_json, write_json
from .stages.context import Listener
from .study import Study
from .synthetic import make_synthetic_cohort

CASES, LABELED, TEST = 12, 3, 3
SIZE = (32, 32, 16)
STRUCTURES = {1: "Left anterior lobe", 2: "Left posterior lobe"}
"""Named by their side, so that crops are not mirrored: on the right lie things as bright as these."""
ITERATIONS_FINETUNE = 110
ITERATIONS_RETRAIN = 360
BASE_RATE = 0.03
"""Three times the papers' learning rate of the student, for a training a sixteenth as long. With a third
fewer steps the posterior lobe is found or not as sums happen to be rounded.
"""
MARK = "demo.txt"
MARK_TEXT = "Made by 'sfr demo'; replaced when it runs again.\n"
COHORT, STUDY = "cohort", "study"
BEGUN = "demo.json"
"""In the study, once the cohort is whole."""


def demo(
    output: Path,
    *,
    seed: int = 1337,
    iterations_finetune: int = ITERATIONS_FINETUNE,
    iterations_retrain: int = ITERATIONS_RETRAIN,
    on_event: Listener | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Make the cohort, run the recipe, score and report; returns paths, scores, seconds and peak memory in
    bytes.

    An earlier demonstration in ``output`` goes on where it was cut off, or is replaced if it had come to its
    end or had another seed; any other folder that is not empty is refused (InputError).
    """
    begin = time.perf_counter()
    study, images = _make(output, seed)
    finished = api.run(
        study,
        foundation="tiny",
        seed=seed,
        iterations_finetune=iterations_finetune,
        iterations_retrain=iterations_retrain,
        method_options={"base_rate": BASE_RATE},
        on_event=on_event,
        **options,
    )
    scores = api.evaluate(study)
    foundation_scores = api.evaluate(study, kind="pseudo_label", cases="unlabeled")
    page = api.report(study)
    return {
        "study": str(study.root),
        "images": str(images),
        "report": str(page),
        "mean_dice": scores["mean_dice"],
        "mean_dice_pseudo_labels": foundation_scores["mean_dice"],
        "structures": {name: means["dice"] for name, means in scores["structures"].items()},
        "review_first": [item.id for item in study.review_queue()[:3]],
        "seconds": round(time.perf_counter() - begin, 1),
        "peak_memory_bytes": peak_process_memory(),
        "run": finished["run"],
    }


def _make(output: Path, seed: int) -> tuple[Study, Path]:
    output = output.expanduser()
    if output.is_dir() and any(output.iterdir()):
        earlier = _cut_off(output, seed)
        if earlier is not None:
            return earlier, output / COHORT / "images"
        _remove_earlier(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / MARK).write_bytes(MARK_TEXT.encode())
    images, labels = make_synthetic_cohort(output / COHORT, cases=CASES, size=SIZE, seed=seed)
    study = Study.create(output / STUDY, structures=STRUCTURES)
    pairs = list(zip(sorted(images.iterdir()), sorted(labels.iterdir()), strict=True))
    for index, (image, label) in enumerate(pairs):
        if index < LABELED:
            study.add(image, label=label)
        else:
            role = "test" if index >= len(pairs) - TEST else "unlabeled"
            study.add(image, reference=label, role=role)
    write_json(study.root / BEGUN, {"seed": seed})
    return study, images


def _cut_off(output: Path, seed: int) -> Study | None:
    """The study of an earlier demonstration with this seed that has no report yet."""
    begun, root = output / STUDY / BEGUN, output / STUDY
    if not (output / MARK).is_file() or not begun.is_file() or read_json(begun) != {"seed": seed}:
        return None
    study = Study.open(root)
    return None if (study.reports_dir / "report.html").exists() else study


def _remove_earlier(output: Path) -> None:
    """Make room where an earlier demonstration, and nothing else, lies; InputError for any other folder."""
    mark = output / MARK
    if not mark.is_file() or mark.read_bytes() != MARK_TEXT.encode():
        raise InputError(f"{output} is not empty.", hint="Choose a new folder for the demonstration.")
    own = [path for path in (output / COHORT, output / STUDY) if path.is_dir() and not path.is_symlink()]
    foreign = sorted(path.name for path in output.iterdir() if path not in (mark, *own))
    if foreign:
        raise InputError(
            f"{output} holds '{foreign[0]}' beside an earlier demonstration, so it is not replaced.",
            hint=f"Move '{foreign[0]}' elsewhere, or choose a new folder for the demonstration.",
        )
    for folder in own:
        shutil.rmtree(folder)
