"""Several processes on one study, as `accelerate launch` starts them for several GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from SFRCore.study import Study

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [
    "--cpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
]


@pytest.mark.long
def test_two_processes_share_the_work_of_a_run(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    study = Study.create(tmp_path / "study", structures={1: "Front", 2: "Back"})
    for index, (image, label) in enumerate(
        zip(*(sorted(folder.iterdir()) for folder in cohort), strict=True)
    ):
        study.add(image, label=label) if index < 2 else study.add(image)
    settings = [
        "--patch",
        "16,16,16",
        "--iterations-finetune",
        "3",
        "--iterations-retrain",
        "4",
        "--device",
        "cpu",
    ]
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        *LAUNCH,
        "-m",
        "SFRCore",
        "run",
        str(study.root),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *settings], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    study.reload()
    for case in study.unlabeled_cases():
        assert study.result(case.id, "pseudo_label") is not None
        assert study.result(case.id, "prediction") is not None
    assert len(list(study.runs_dir.iterdir())) == 1, "only the main process keeps a run"
