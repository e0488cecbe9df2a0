"""What a training keeps on disk instead of in memory: embeddings of canvases, label maps of a round."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from SFRCore import api
from SFRCore.errors import Cancelled
from SFRCore.planning import CaseShape, make_plan
from SFRCore.settings import Settings
from SFRCore.stages.embeddings import EmbeddingPool, Entry
from SFRCore.stages.finetuner import FineTuner
from SFRCore.stages.retrainer import Retrainer, make_method
from SFRCore.study import Study

DECODER: dict[str, Any] = {
    "foundation": "tiny", "tuning": "decoder", "patch": (16, 16, 16), "iterations_finetune": 5,
    "iterations_retrain": 2, "device": "cpu", "precision": "fp32",
}  # fmt: skip


def make_study(root: Path, cohort: tuple[Path, Path]) -> Study:
    study = Study.create(root, structures={1: "Front", 2: "Back"})
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    study.add(images[0], label=labels[0])
    for image in images[1:3]:
        study.add(image)
    return study


class Made:
    """Computes entries of a pool that differ by their number, and notes which."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def __call__(self, index: int) -> Entry:
        self.numbers.append(index)
        labels = torch.tensor([[index, 255]])
        return torch.full((1, 4, 2, 2), index + 1 / 3), labels


def test_an_entry_is_computed_once_over_all_processes(tmp_path: Path) -> None:
    first, second = Made(), Made()
    pool = EmbeddingPool(tmp_path / "pool", first)
    pool.fill(0)
    pool.fill(0)
    again = EmbeddingPool(tmp_path / "pool", second)
    again.fill(0)
    embedding, labels = again.entry(0)
    assert (first.numbers, second.numbers) == ([0], [])
    assert torch.equal(embedding, torch.full((1, 4, 2, 2), 1 / 3)) and labels.tolist() == [[0, 255]]


def test_an_entry_that_is_gone_or_damaged_is_computed_again(tmp_path: Path) -> None:
    made = Made()
    pool = EmbeddingPool(tmp_path / "pool", made)
    for index in (1, 2):
        pool.fill(index)
    gone, damaged = sorted((tmp_path / "pool").iterdir())
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-3])
    for index in (1, 2):
        assert torch.equal(pool.entry(index)[0], torch.full((1, 4, 2, 2), index + 1 / 3))
        pool.entry(index)
    assert made.numbers == [1, 2, 1, 2], "and kept from then on"


def test_embeddings_survive_a_run_that_is_cut_off(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    embedded = FineTuner._embedded

    def counted(self: FineTuner, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        computed.append(index)
        return embedded(self, index)

    def stop(event: dict[str, Any]) -> None:
        if event.get("doing") == "embeddings" and event["step"] == 2:
            raise Cancelled("stopped by the test")

    monkeypatch.setattr(FineTuner, "_embedded", counted)
    cut, whole = (make_study(tmp_path / name, cohort) for name in ("cut", "whole"))
    with pytest.raises(Cancelled):
        api.run_stage(cut, "finetune", on_event=stop, **DECODER)
    assert len(list(cut.cache_dir.glob("embeddings/*/0-of-1/*.safetensors"))) == 2
    api.run_stage(cut, "finetune", **DECODER)
    assert computed == [0, 1, 2, 3, 4], "none twice"
    assert not (cut.cache_dir / "embeddings").exists()
    api.run_stage(whole, "finetune", **DECODER)
    one, other = (load_file(study.models_dir / "foundation/foundation.safetensors") for study in (cut, whole))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_measuring_leaves_no_embeddings(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    study = make_study(tmp_path / "study", cohort)
    found = api.estimate(study, **DECODER)
    assert found["per_stage"]["finetune"] > 0
    assert not (study.cache_dir / "embeddings").exists()


def test_label_maps_of_a_round_are_mapped_from_files_that_go_in_the_end(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(tmp_path / "study", cohort)
    seen: list[dict[str, Any]] = []
    opened = Retrainer._open_stream

    def noted(self: Retrainer, phase: Any) -> None:
        seen.append(dict(self.predicted))
        for name, labels in self.predicted.items():
            assert isinstance(labels, np.memmap) and labels.dtype == np.uint8, name
            assert study.cache_dir in Path(str(labels.filename)).parents
            assert labels.shape == self.unlabeled[name].image.shape
        opened(self, phase)

    monkeypatch.setattr(Retrainer, "_open_stream", noted)
    api.run_stage(
        study, "retrain", recipe="baseline", ssl="self_training", patch=(16, 16, 16), iterations_retrain=3,
        iterations_finetune=1, device="cpu", precision="fp32",
    )  # fmt: skip
    assert [len(round) for round in seen] == [0, 2, 2]
    assert not list(study.cache_dir.glob("rounds/*"))


def test_the_weight_of_pseudo_labels_reaches_the_method() -> None:
    cases = [CaseShape((32, 32, 32), (1.0, 1.0, 1.0))]
    settings = Settings(ssl="self_training", pseudo_weight=0.5, patch=(16, 16, 16))
    plan = make_plan(
        settings, "auto", cases, stack_axis=2, values=[1], names=["Whole"], canvas_limit=64,
        canvas_multiple=16, memory=1 << 34, gpu=False,
    )  # fmt: skip
    context: Any = SimpleNamespace(settings=settings, plan=plan, student="vnet")
    assert make_method(context, True).context.pseudo_weight == 0.5
    assert make_method(context, False).context.pseudo_weight == 1.0
