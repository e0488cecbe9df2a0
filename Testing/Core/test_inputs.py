"""What SAM is shown: every input comes back whole, and is never mixed with another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from SFRCore import api
from SFRCore.errors import InputError
from SFRCore.foundation.spec import SPECS
from SFRCore.inputs import DisturbedLayout, Layout, SliceLayout, make_layout
from SFRCore.stitching import StitchLayout
from SFRCore.students import vnet
from SFRCore.study import Study

INPUTS = ("stitched", "upsampled", "small", "scale:2", "scale:3", "shuffled", "rotated")
PATCHES = st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 30))


def images(patch: tuple[int, int, int], count: int = 2) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, 1, *patch)).astype(np.float32))


def covers(layout: Layout) -> bool:
    """Whether the windows show every slice, each as many as the single layout takes, in order."""
    shown = {z for start, stop in layout.windows for z in range(start, stop)}
    same = {stop - start for start, stop in layout.windows} == {layout.single.patch_size[2]}
    return same and shown == set(range(layout.patch_size[2])) and layout.windows == sorted(layout.windows)


@settings(max_examples=60, deadline=None)
@given(setting=st.sampled_from(INPUTS), patch=PATCHES, canvas=st.sampled_from([64, 80, 96]))
def test_labels_come_back_whole_from_every_input(
    setting: str, patch: tuple[int, int, int], canvas: int
) -> None:
    layout = make_layout(setting, patch, canvas, 1)
    shrinks = isinstance(layout, SliceLayout) and (
        layout.content[0] < patch[1] or layout.content[1] < patch[0]
    )
    labels = np.random.default_rng(1).integers(0, 5, (2, *patch), dtype=np.int64)
    laid = layout.stitch(labels, 255)
    assert laid.shape == (2, layout.canvases, layout.canvas_size, layout.canvas_size)
    valid = np.broadcast_to(layout.valid.numpy(), laid.shape)
    assert (laid[~valid] == 255).all() and not (laid[valid] == 255).any()
    back = layout.unstitch(laid)
    assert back.shape == labels.shape and back.dtype == labels.dtype
    assert covers(layout)
    if not shrinks:
        assert np.array_equal(back, labels)
    per_slice = np.arange(patch[2], dtype=np.float32) * np.ones((*patch[:2], 1), np.float32)
    again = layout.unstitch(layout.stitch(per_slice, -1.0, smooth=True))
    np.testing.assert_allclose(again, per_slice, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(setting=st.sampled_from(INPUTS), patch=PATCHES)
def test_pieces_of_an_input_are_the_whole(setting: str, patch: tuple[int, int, int]) -> None:
    layout = make_layout(setting, patch, 96, 1)
    image = images(patch)
    whole = layout.stitch(image, 0.0, smooth=True)
    single = layout.single
    parts = [single.stitch(image[..., a:b], 0.0, smooth=True) for a, b in layout.windows]
    assert torch.equal(torch.cat(parts, 2), whole)
    assert single.windows == [(0, single.patch_size[2])] and 1 <= layout.together <= layout.canvases


def test_images_that_are_enlarged_come_back_nearly_alike() -> None:
    smooth = torch.linspace(0, 1, 16).view(1, 16, 1, 1) * torch.linspace(0, 1, 12).view(1, 1, 12, 1)
    image = smooth.expand(1, 16, 12, 3).contiguous()
    for setting in ("upsampled", "scale:2", "small"):
        layout = make_layout(setting, (16, 12, 3), 64, 1)
        torch.testing.assert_close(
            layout.unstitch(layout.stitch(image, 0.0, smooth=True)), image, atol=0.05, rtol=0
        )


def test_each_input_is_what_the_paper_compares() -> None:
    patch = (112, 112, 80)
    upsampled = make_layout("upsampled", patch, 1024, 1)
    assert (upsampled.canvases, upsampled.canvas_size, upsampled.together) == (80, 1024, 1)
    assert bool(upsampled.valid.all())
    small = make_layout("small", patch, 1024, 1)
    assert (small.canvases, small.canvas_size) == (80, 112)
    assert small.together == 80, "as many slices a training step as fill the stitched canvas, at most all"
    scaled = make_layout("scale:4", patch, 1024, 1)
    assert isinstance(scaled, SliceLayout)
    assert (scaled.canvases, scaled.content) == (5, (1024 // 4 - 8,) * 2)
    assert scaled.windows[-1] == (64, 80)
    whole = make_layout("scale:9", patch, 1024, 1)
    assert whole.canvases == 1 and whole.canvas_size == 1024
    assert isinstance(make_layout("stitched", patch, 1024, 1), StitchLayout)


def test_tiles_are_transposed_slices_at_their_own_size() -> None:
    image = images((5, 9, 4))[0, 0]
    layout = make_layout("small", (5, 9, 4), 64, 1)
    canvas = layout.stitch(image, 0.0)
    for z in range(4):
        assert torch.equal(canvas[z, 3:12, 5:10], image[:, :, z].T)


def test_shuffled_and_rotated_slices_are_drawn_anew_and_their_labels_with_them() -> None:
    patch = (6, 6, 20)
    image = images(patch)[:, 0]
    rng = np.random.default_rng(3)
    for setting in ("shuffled", "rotated"):
        layout = make_layout(setting, patch, 48, 1)
        assert isinstance(layout, DisturbedLayout)
        stitched = StitchLayout(patch, 48)
        one, two = layout.drawn(rng), layout.drawn(rng)
        first, second = one.stitch(image, 0.0), two.stitch(image, 0.0)
        assert not torch.equal(first, second) and not torch.equal(first, stitched.stitch(image, 0.0))
        assert torch.equal(one.unstitch(first), image) and torch.equal(two.unstitch(second), image)
        labels = (image > 0).to(torch.uint8)
        assert torch.equal(one.stitch(labels, 255)[:, one.valid], (first > 0).to(torch.uint8)[:, one.valid])
        assert torch.equal(layout.stitch(image, 0.0), make_layout(setting, patch, 48, 1).stitch(image, 0.0))
        whole = first.flatten(1).sort().values
        torch.testing.assert_close(whole, stitched.stitch(image, 0.0).flatten(1).sort().values)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tiled", "no input of SAM called 'tiled'"),
        ("scale", "no input of SAM"),
        ("scale:0", "no input of SAM"),
        ("scale:-2", "no input of SAM"),
        ("scale:40", "A grid of 40 x 40 slices leaves 1 pixels"),
    ],
)
def test_inputs_that_make_no_sense_are_refused(setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make_layout(setting, (16, 16, 16), 64, 1)
    assert "scale:8" in caught.value.hint


# Whole runs

SETTINGS: dict[str, Any] = {
    "patch": (16, 16, 16),
    "iterations_finetune": 2,
    "iterations_retrain": 1,
    "device": "cpu",
    "seed": 3,
}
POCKET = {
    "dim": 24, "depth": 2, "heads": 2, "global_blocks": (1,), "canvas": 64, "out_chans": 16, "mlp_dim": 16,
    "iou_hidden": 16,
}  # fmt: skip


@pytest.fixture
def study(tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """Two labeled cases and one without a label; a foundation of a few thousand weights, one thread."""
    monkeypatch.setitem(SPECS, "tiny", replace(SPECS["tiny"], **POCKET))
    monkeypatch.setattr(vnet, "_CHANNELS", (2, 4, 4, 8, 8))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    study = Study.create(tmp_path / "study", structures={1: "Front", 2: "Back"})
    pairs = list(zip(*(sorted(folder.iterdir()) for folder in cohort), strict=True))
    for image, label in pairs[:2]:
        study.add(image, label=label)
    study.add(pairs[2][0])
    yield study
    torch.set_num_threads(before)


def stage(study: Study, name: str, **changes: Any) -> dict[str, Any]:
    return api.run_stage(study, name, **(SETTINGS | changes))["stages"][name]


@pytest.mark.parametrize("setting", ["upsampled", "small", "scale:2", "shuffled", "rotated"])
@pytest.mark.parametrize("tuning", ["full", "decoder"])
def test_every_input_is_tuned_and_pseudo_labels(study: Study, setting: str, tuning: str) -> None:
    stage(study, "finetune", input=setting, tuning=tuning)
    assert stage(study, "finetune", input=setting, tuning=tuning)["skipped"]
    described = json.loads((study.models_dir / "foundation" / "foundation.json").read_text())
    assert described["made_by"]["settings"]["input"] == setting
    assert stage(study, "pseudolabel", input=setting, tuning=tuning)["cases"] == 1
    case = study.unlabeled_cases()[0]
    assert study.result(case.id, "pseudo_label") is not None


def test_a_foundation_of_one_input_is_not_mixed_with_another(study: Study) -> None:
    stage(study, "finetune", input="small")
    with pytest.raises(InputError, match=r"tuned with other settings \(input\)"):
        stage(study, "pseudolabel")
    with pytest.raises(InputError, match=r"tuned with other settings \(input\)"):
        stage(study, "retrain", input="rotated", pseudo_labels="online")
    assert not stage(study, "finetune")["skipped"], "started anew"
    assert stage(study, "pseudolabel")["cases"] == 1


def test_online_labels_and_the_estimate_use_the_input(study: Study) -> None:
    options = {"input": "scale:2", "pseudo_labels": "online"}
    found = api.estimate(study, **(SETTINGS | options))
    assert found["per_stage"]["finetune"] > 0 and found["per_stage"]["pseudolabel"] > 0
    api.run(study, **(SETTINGS | options))
    assert api.estimate(study, **(SETTINGS | options))["seconds"] == 0


def test_an_input_that_does_not_fit_is_refused_before_anything_is_read(study: Study) -> None:
    for setting in ("scale:x", "scale:64"):
        with pytest.raises(InputError):
            api.run(study, **(SETTINGS | {"input": setting}))
    assert not (study.root / "models" / "foundation").exists()
    assert not list(study.cache_dir.glob("*/*"))
