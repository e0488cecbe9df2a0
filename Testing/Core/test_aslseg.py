"""ASLseg: prompts, corruptions, reliability, and whole runs that are cut off and continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy import ndimage

from SFRCore import api
from SFRCore.errors import Cancelled, InputError, SFRError
from SFRCore.foundation.checkpoints import build_foundation, save_foundation_checkpoint
from SFRCore.foundation.prompting import PromptedSAM, Prompts, build_prompted, load_prompted
from SFRCore.foundation.spec import SPECS
from SFRCore.foundation.store import save_tuned
from SFRCore.report import write_report
from SFRCore.runtime import loop
from SFRCore.runtime.devices import choose_device
from SFRCore.settings import Settings
from SFRCore.stages.adaptation import BOTH, guessed_batch, with_guesses
from SFRCore.stages.aslseg_models import adaptation_lineage, prompted_lineage
from SFRCore.stages.context import StageContext
from SFRCore.stages.corruption import corrupt
from SFRCore.stages.data import LABELED, CropSource
from SFRCore.stages.lineage import shortened
from SFRCore.stages.prompted import tune_prompted
from SFRCore.stages.prompts import KINDS, ask_about, components, make_prompts
from SFRCore.stages.refine import reliability
from SFRCore.stages.rounds import NOTHING, Selection, round_student
from SFRCore.stages.survey import plan_for
from SFRCore.students import vnet
from SFRCore.study import Study

SETTINGS: dict[str, Any] = {
    "recipe": "aslseg",
    "patch": (16, 16, 16),
    "iterations_finetune": 3,
    "iterations_retrain": 3,
    "device": "cpu",
    "seed": 3,
}
POCKET = {
    "dim": 24, "depth": 2, "heads": 2, "global_blocks": (1,), "canvas": 64, "out_chans": 16, "mlp_dim": 16,
    "iou_hidden": 16,
}  # fmt: skip
STUDENT = "models/aslseg-mean_teacher/student.safetensors"
ALL = {"agreement": 0.0, "certainty": 0.0, "corruptions": 2}
"""Options with which every case that finds anything is reliable."""


@pytest.fixture(autouse=True)
def pocket_networks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same networks with a few hundred times fewer weights, on one thread."""
    monkeypatch.setitem(SPECS, "tiny", replace(SPECS["tiny"], **POCKET))
    monkeypatch.setattr(vnet, "_CHANNELS", (2, 4, 4, 8, 8))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_study(root: Path, cohort: tuple[Path, Path]) -> Study:
    """Two labeled cases, two without a label, one for testing."""
    study = Study.create(root, structures={1: "Front", 2: "Back"})
    images, labels = (sorted(folder.iterdir()) for folder in cohort)
    for index, (image, label) in enumerate(zip(images[:5], labels[:5], strict=True)):
        if index < 2:
            study.add(image, label=label)
        else:
            study.add(image, reference=label, role="test" if index == 4 else "unlabeled")
    return study


@pytest.fixture
def study(tmp_path: Path, cohort: tuple[Path, Path]) -> Study:
    return make_study(tmp_path / "study", cohort)


def run(study: Study, *, options: dict[str, Any] | None = None, **changes: Any) -> tuple[Any, list[Any]]:
    events: list[dict[str, Any]] = []
    given_options = SETTINGS | {"recipe_options": ALL if options is None else options} | changes
    return api.run(study, on_event=events.append, **given_options)["stages"], events


# Prompts


def discs(side: int = 40) -> np.ndarray:
    rows, columns = np.ogrid[:side, : side + 8]
    one = (rows - 12) ** 2 + (columns - 10) ** 2 < 36
    two = (rows - 28) ** 2 + (columns - 30) ** 2 < 64
    return np.asarray(one | two)


def test_components_are_the_pieces_largest_first_without_specks() -> None:
    mask = discs()
    mask[0, 40] = True
    found = components(mask)
    assert [int(piece.sum()) for piece in found] == sorted((int(p.sum()) for p in found), reverse=True)
    assert len(found) == 2 and len(components(mask, least=1)) == 3
    assert not (found[0] & found[1]).any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), kinds=st.sampled_from(KINDS), jittered=st.booleans())
def test_prompts_are_where_the_things_are(seed: int, kinds: str, jittered: bool) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((20, 30), dtype=bool)
    row, column = int(rng.integers(15)), int(rng.integers(25))
    mask[row : row + 4, column : column + 3] = True
    prompts = make_prompts([mask], 96, 32, kinds, rng if jittered else None)
    assert len(prompts) == 1
    scale = np.array([96 / 30, 96 / 20])
    low, high = np.array([column, row]) * scale, np.array([column + 3, row + 4]) * scale
    given = (prompts.boxes, prompts.points, prompts.masks)
    assert [name for name, one in zip(("box", "point", "mask"), given, strict=True) if one is not None] == (
        kinds.split("+")
    )
    if prompts.boxes is not None:
        box = prompts.boxes[0].numpy()
        assert (box[:2] <= low + 1e-4).all() and (box[2:] >= np.minimum(high, 95) - 1e-4).all()
        assert (box >= 0).all() and (box <= 95).all()
        assert (low - box[:2] <= 96 * 20 / 1024 + 1e-4).all()
    if prompts.points is not None:
        point = prompts.points[0].numpy() + 0.5
        assert (point >= low).all() and (point <= high).all()
    if prompts.masks is not None:
        assert prompts.masks.shape == (1, 1, 32, 32)
        assert float(prompts.masks.min()) >= -10.001 and float(prompts.masks.max()) <= 10.001
        assert float(prompts.masks.max()) > 0 > float(prompts.masks.min())


@pytest.fixture
def sam() -> PromptedSAM:
    return build_prompted("tiny", canvas=64, tuning="full", seed=1)


def prompts_for(sam: PromptedSAM, kinds: str = "box+point+mask") -> Prompts:
    return make_prompts(components(discs()), 64, sam.mask_side, kinds)


def test_answers_depend_on_the_prompt_and_not_on_those_beside_it(sam: PromptedSAM) -> None:
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for kinds in KINDS:
        asked = prompts_for(sam, kinds)
        both = sam(image, [asked])
        assert both.shape == (2, 64, 64) and not torch.allclose(both[0], both[1])
        parts = (None if one is None else one[1:] for one in (asked.boxes, asked.points, asked.masks))
        alone = sam(image, [Prompts(*parts)])
        torch.testing.assert_close(alone[0], both[1], rtol=1e-4, atol=1e-5)
    two = sam(torch.cat([image, -image]), [asked, asked])
    torch.testing.assert_close(two[:2], both, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(two[2:], both)


def test_what_tuning_adds_begins_as_the_seed_says(tmp_path: Path) -> None:
    save_foundation_checkpoint(build_foundation("tiny", classes=4, seed=9), tmp_path / "sam.pth")

    def added(seed: int) -> torch.Tensor:
        sam = build_prompted(str(tmp_path / "sam.pth"), canvas=64, tuning="lora", seed=seed)
        return torch.cat([p.flatten() for name, p in sam.named_parameters() if "lora_A" in name])

    assert torch.equal(added(1), added(1)) and not torch.equal(added(1), added(2))


def test_sam_s_own_mask_tokens_are_kept(tmp_path: Path) -> None:
    save_foundation_checkpoint(build_foundation("tiny", classes=4, seed=9), tmp_path / "sam.pth")
    source = build_foundation(tmp_path / "sam.pth", classes=4)
    sam = build_prompted(str(tmp_path / "sam.pth"), canvas=64, tuning="lora", seed=2)
    tokens = sam.base.mask_decoder.mask_tokens.weight
    assert torch.equal(tokens, source.mask_decoder.mask_tokens.weight)
    with pytest.raises(ValueError, match="mask tokens"):
        PromptedSAM(build_foundation("tiny", classes=2, canvas=64))


@pytest.mark.parametrize("tuning", ["lora", "adapter", "decoder", "encoder_decoder", "full"])
def test_a_prompted_sam_learns_and_comes_back_equal(tmp_path: Path, tuning: str) -> None:
    save_foundation_checkpoint(build_foundation("tiny", classes=4, seed=9), tmp_path / "sam.pth")
    sam = build_prompted(str(tmp_path / "sam.pth"), canvas=64, tuning=tuning, seed=2)
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    asked = prompts_for(sam)
    optimiser = torch.optim.AdamW([p for p in sam.parameters() if p.requires_grad], lr=1e-2)
    first = None
    for _ in range(4):
        optimiser.zero_grad()
        loss = (sam(image, [asked]) - 1).square().mean()
        loss.backward()
        optimiser.step()
        first = first or float(loss.detach())
    assert float(loss.detach()) < first
    encoder = sam.base.prompt_encoder
    reached = (encoder.point_embeddings[1], encoder.point_embeddings[2], encoder.mask_downscaling[0])
    assert all(part.weight.grad is not None for part in reached)
    folder = save_tuned(sam.base, tmp_path / "prompted", {})
    torch.testing.assert_close(
        load_prompted(folder)(image, [asked]), sam(image, [asked]), rtol=1e-4, atol=1e-4
    )
    again = load_prompted(folder, tuned_on=True)
    names = [{name for name, p in one.named_parameters() if p.requires_grad} for one in (sam, again)]
    assert names[0] == names[1]


class Echo(PromptedSAM):
    """Answers with the box that it is shown."""

    def answer(self, embedding: torch.Tensor, prompts: Prompts) -> torch.Tensor:
        assert prompts.boxes is not None
        at = torch.arange(self.canvas) + 0.5
        inside = [
            ((at > y0) & (at < y1))[:, None] & ((at > x0) & (at < x1)) for x0, y0, x1, y1 in prompts.boxes
        ]
        return 10.0 * (2 * torch.stack(inside).float() - 1)


def test_answers_come_back_where_they_were_asked_for(sam: PromptedSAM) -> None:
    guess = np.zeros((24, 18, 5), np.uint8)
    guess[3:10, 4:9, 1:4] = 1
    guess[14:20, 8:16, 2] = 2
    other = np.zeros_like(guess)
    image = np.random.default_rng(0).normal(size=guess.shape).astype(np.float32)
    device = choose_device("cpu", "fp32")
    found, nothing = ask_about(Echo(sam.base), image, [guess, other], 3, "box", device)
    assert not nothing.any() and not found[:, :, [0, 4]].any()
    assert set(np.unique(found)) == {0, 1, 2}
    for c in (1, 2):
        one, two = guess == c, found == c
        assert (two | ~one).all() and two.sum() < 2 * one.sum(), "the box is a little larger"


# Corruptions


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000), shape=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 12))
)
def test_corruptions_invent_no_structure_and_repeat(seed: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(seed)
    label = (rng.random(shape) < 0.3).astype(np.uint8) * 2
    before = label.copy()
    one, two = (corrupt(np.random.default_rng(seed), label, 4) for _ in range(2))
    assert np.array_equal(one, two) and np.array_equal(label, before)
    assert one.dtype == np.uint8 and one.shape == shape
    assert set(np.unique(one)) <= {0, 2}


def test_corruptions_are_mistakes_of_a_plausible_size() -> None:
    label = np.zeros((40, 40, 30), np.uint8)
    label[8:30, 10:32, 6:24] = 1
    dice = []
    for seed in range(30):
        wrong = corrupt(np.random.default_rng(seed), label, 2)
        dice.append(2 * (wrong & label).sum() / (wrong.sum() + label.sum()))
    assert min(dice) > 0.4 and 0.7 < np.mean(dice) < 0.99 and len({round(d, 6) for d in dice}) > 20


def test_corruptions_of_slices_leave_their_core() -> None:
    y, x = np.ogrid[:96, :96]
    disc = ((y - 48) ** 2 + (x - 48) ** 2 <= 30**2).astype(np.uint8)
    core = ndimage.distance_transform_edt(disc) > 6
    for seed in range(60):
        wrong = corrupt(np.random.default_rng(seed), disc, 2)
        assert wrong.shape == disc.shape
        # a hole has a radius of 4 at most
        assert (wrong.astype(bool) | ~core).mean() > 1 - 60 / disc.size
        assert 2 * (wrong & disc).sum() / (wrong.sum() + disc.sum()) > 0.8


def test_corruptions_reach_over_few_thick_slices_and_not_from_where_the_scan_ends() -> None:
    label = np.zeros((48, 48, 7), np.uint8)
    label[10:38, 10:38, 2:] = 1  # from the third slice to the end of the scan
    firsts = set()
    for seed in range(80):
        wrong = corrupt(np.random.default_rng(seed), label, 2, (1.0, 1.0, 6.0))
        middle = wrong[16:32, 16:32].mean((0, 1)) > 0.5
        firsts.add(int(middle.argmax()))
        assert middle[-1], "the last slice is no end of the structure"
    assert {1, 2, 3} <= firsts <= {0, 1, 2, 3, 4}, "a slice more or less, and shifted by one"


def test_the_network_sees_image_and_both_predictions() -> None:
    guesses = torch.tensor([[1 * BOTH + 2, 0, 2 * BOTH]]).view(1, 3, 1, 1)
    image = torch.arange(3.0).view(1, 1, 3, 1, 1)
    inputs = with_guesses(image, guesses, 3).flatten(2)[0]
    assert inputs.tolist() == [[0, 1, 2], [1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_a_batch_has_what_both_the_student_and_sam_guessed() -> None:
    guess = np.full((20, 18, 16), 1 * BOTH + 2, np.uint16)
    volume = SimpleNamespace(
        image=np.zeros(guess.shape, np.float32), label=np.zeros(guess.shape, np.uint8), foreground=None
    )
    source = CropSource({"a": volume}, (16, 16, 16), 1, LABELED, flip_axes=(0,), overrides={"a": guess})  # type: ignore[dict-item]
    batch = guessed_batch(source, 0, 0, 1)
    assert batch.pseudo_labels is not None
    inputs = with_guesses(batch.labeled_images, batch.pseudo_labels, 3)
    assert inputs.mean((0, 2, 3, 4)).tolist() == [0, 1, 0, 0, 1]


# Reliability


def test_reliable_is_what_agrees_and_is_sure() -> None:
    label = np.zeros((6, 6, 6), np.int64)
    label[:3] = 1
    sure = np.stack([np.where(label == c, 0.95, 0.05) for c in range(2)])
    assert reliability(sure, label, label, 0.7, 0.9) == {
        "agreement": 1.0, "certainty": 0.95, "reliable": True
    }  # fmt: skip
    assert not reliability(sure, label, label, 0.7, 0.96)["reliable"]
    other = np.roll(label, 2, axis=0)
    assert not reliability(sure, label, other, 0.7, 0.9)["reliable"]
    assert not reliability(sure, other, label, 0.7, 0.9)["reliable"]
    nothing = np.stack([np.ones((6, 6, 6)), np.zeros((6, 6, 6))])
    assert not reliability(nothing, 0 * label, 0 * label, 0.0, 0.0)["reliable"]


# Whole runs


def labels_of(study: Study) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted((study.root / "labels").rglob("*.*"))}


def test_rounds_add_reliable_cases_and_never_a_label(study: Study) -> None:
    before = labels_of(study)
    done, events = run(study)
    assert list(done) == [
        "retrain", "prompt", "adapt", "refine 1", "retrain 1", "refine 2", "retrain 2", "predict"
    ]  # fmt: skip
    assert labels_of(study) == before
    assert {case.id for case in study.labeled_cases()} == {"case_01", "case_02"}
    folder = study.models_dir / "aslseg-mean_teacher"
    made = [json.loads((folder / name / "student.json").read_text())["made_by"] for name in
            ("round-0", "round-1", ".")]  # fmt: skip
    assert made[0]["labeled"] == ["case_01", "case_02"]
    for number, one in enumerate(made[1:], start=1):
        chosen = json.loads((folder / f"round-{number}" / "reliable.json").read_text())
        assert one["labeled"] == sorted(["case_01", "case_02", *chosen["cases"]])
        assert one["seen"] == ["case_01", "case_02"], "nobody has seen the label of a reliable case"
        assert set(chosen["numbers"]) == {"case_03", "case_04"}
        assert done[f"refine {number}"]["reliable"] == len(chosen["cases"])
    for case in study.unlabeled_cases():
        result = study.result(case.id, "pseudo_label")
        assert result is not None and result.made_by["round"] == 2
        assert {"agreement", "certainty", "reliable"} <= set(result.extra)
        assert study.result(case.id, "prediction") is not None
    told = {event["step"] for event in events if event["event"] == "metric"}
    assert told == {1, 2}
    assert not (study.cache_dir / "corruptions").exists()
    weights = (study.root / STUDENT).read_bytes()
    again, _ = run(study)
    assert all(stage["skipped"] for stage in again.values())
    assert (study.root / STUDENT).read_bytes() == weights
    assert api.estimate(study, **(SETTINGS | {"recipe_options": ALL}))["seconds"] == 0


def test_nothing_reliable_leaves_the_labels_alone(study: Study) -> None:
    done, events = run(study, options={"rounds": 1, "certainty": 1.0, "corruptions": 1})
    assert done["refine 1"]["reliable"] == 0
    (said,) = [event for event in events if event.get("code") == "none_reliable"]
    assert "of round 1 is reliable" in said["message"] and "0.7 and 1 are asked for" in said["message"]
    made = json.loads((study.models_dir / "aslseg-mean_teacher" / "student.json").read_text())["made_by"]
    assert made["labeled"] == ["case_01", "case_02"] and made["unlabeled"] == ["case_03", "case_04"]


class StopAt:
    """Stops at a step of a stage, as a cancel would."""

    def __init__(self, stage: str, step: int, *, case: bool = False) -> None:
        self.stage, self.step, self.case = stage, step, case

    def __call__(self, event: dict[str, Any]) -> None:
        kind = ("loss" in event) != self.case
        at = (event["event"], event["stage"], event.get("step"))
        if at == ("progress", self.stage, self.step) and kind:
            raise Cancelled("stopped by the test")


def test_cut_off_in_every_stage_and_continued_is_bit_identical(
    tmp_path: Path, cohort: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "EVENT_SECONDS", 0.0)
    whole, cut = (make_study(tmp_path / name, cohort) for name in ("whole", "cut"))
    options = {**ALL, "rounds": 1}
    run(whole, options=options)
    stops = [
        StopAt("prompt", 2),
        StopAt("adapt", 1, case=True),
        StopAt("adapt", 2),
        StopAt("refine", 1, case=True),
        StopAt("retrain", 2),
    ]
    for stop in stops:
        with pytest.raises(Cancelled):
            api.run(cut, on_event=stop, **(SETTINGS | {"recipe_options": options}))
    done, _ = run(cut, options=options)
    assert done["retrain"]["skipped"] and done["refine 1"]["skipped"] and done["adapt"]["skipped"]
    assert done["retrain 1"]["continued_at"] == 2
    one, two = (load_file(study.root / STUDENT) for study in (whole, cut))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for study in (whole, cut):
        assert not list(study.runs_dir.glob("*/checkpoints/*.pt"))


def test_a_new_label_goes_on_from_every_model(study: Study) -> None:
    run(study, options={**ALL, "rounds": 1})
    study.accept("case_03")
    done, _ = run(study, options={**ALL, "rounds": 1})
    for stage in ("retrain", "prompt", "adapt", "retrain 1"):
        assert done[stage]["iterations"] == shortened(3), stage
    assert done["refine 1"]["cases"] == 1


def test_a_pseudo_label_of_what_was_learned_from_is_not_scored(study: Study) -> None:
    options = {"rounds": 1, "corruptions": 1}
    short = {"iterations_finetune": 1, "iterations_retrain": 1}
    run(study, options=options, **short)
    study.set_reference("case_02", study.label_path("case_02"))
    study.set_role(["case_02"], "unlabeled")
    run(study, options=options, **short)
    told: dict[str, SFRError] = {}
    scores = api.evaluate(study, kind="pseudo_label", cases="unlabeled", on_problem=told.__setitem__)
    assert set(scores["cases"]) == {"case_03", "case_04"} and told["case_02"].code == "seen"
    assert "a test case first" in told["case_02"].hint


def test_more_or_fewer_rounds_keep_those_that_are_done(study: Study) -> None:
    short = {"iterations_finetune": 1, "iterations_retrain": 1}
    one, two = ({**ALL, "rounds": rounds, "corruptions": 1} for rounds in (1, 2))
    run(study, options=one, **short)
    info = (study.root / STUDENT).with_name("student.json")
    student = info.read_bytes()
    done, _ = run(study, options=two, **short)
    assert [stage for stage, said in done.items() if not said["skipped"]] == [
        "refine 2",
        "retrain 2",
        "predict",
    ]
    assert info.read_bytes() != student
    done, _ = run(study, options=one, **short)
    assert [stage for stage, said in done.items() if not said["skipped"]] == ["predict"]
    assert info.read_bytes() == student
    other = context_of(study, options={**one, "agreement": 0.1}, **short)
    assert round_student(other, 0, NOTHING).is_done() and not round_student(other, 1, NOTHING).is_done()


SHORT: dict[str, Any] = {"ssl": "supervised", "iterations_finetune": 1, "iterations_retrain": 1}


def study_without(root: Path, cohort: tuple[Path, Path], id: str) -> tuple[Study, Path, Path]:
    """A study on images of its own, that of one case moved away: the path in the study and where it is."""
    images = Path(shutil.copytree(cohort[0], root / "images"))
    study = make_study(root / "study", (images, cohort[1]))
    image = study.image_path(id)
    return study, image, image.rename(root / "away.nrrd")


def test_an_unreadable_labeled_case_does_not_refine_every_round_anew(
    tmp_path: Path, cohort: tuple[Path, Path]
) -> None:
    study, _, _ = study_without(tmp_path, cohort, "case_02")
    options = {**ALL, "rounds": 2, "corruptions": 1}
    first, _ = run(study, options=options, **SHORT)
    assert [first[f"refine {number}"]["cases"] for number in (1, 2)] == [2, 2]
    again, _ = run(study, options=options, **SHORT)
    assert all(stage["skipped"] for stage in again.values()), again


def test_a_case_that_can_be_read_again_is_judged(tmp_path: Path, cohort: tuple[Path, Path]) -> None:
    study, image, away = study_without(tmp_path, cohort, "case_04")
    options = {**ALL, "rounds": 1, "corruptions": 1}
    first, _ = run(study, options=options, **SHORT)
    assert first["refine 1"]["cases"] == 1
    again, _ = run(study, options=options, **SHORT)
    assert again["refine 1"]["skipped"] and again["retrain 1"]["skipped"], "it still cannot be read"
    away.rename(image)
    done, _ = run(study, options=options, **SHORT)
    assert done["retrain"]["skipped"] and done["refine 1"]["cases"] == 1
    result = study.result("case_04", "pseudo_label")
    assert result is not None and not done["retrain 1"]["skipped"]
    reliable = json.loads((study.models_dir / "aslseg-supervised" / "round-1" / "reliable.json").read_text())
    assert set(reliable["numbers"]) == {"case_03", "case_04"}


def test_labels_that_show_nothing_are_refused_in_a_sentence(study: Study) -> None:
    study.set_role(["case_02"], "ignored")
    label = sitk.ReadImage(str(study.label_path("case_01")))
    study.accept_label("case_01", label * 0)
    with pytest.raises(InputError, match="labels of all labeled cases are empty"):
        api.estimate(study, **SETTINGS)
    with pytest.raises(InputError, match="labels of all labeled cases are empty"):
        tune_prompted(context_of(study, options=ALL))


def context_of(study: Study, *, options: dict[str, Any], **changes: Any) -> StageContext:
    made = Settings.of(**(SETTINGS | {"recipe_options": options} | changes))
    device = choose_device("cpu", "fp32")
    return StageContext(study, made, plan_for(study, made, device), device, None)


def test_another_sam_starts_what_learned_from_it_anew(study: Study) -> None:
    options = {**ALL, "rounds": 1, "corruptions": 1}
    run(study, options=options)
    context = context_of(study, options=options, tuning="lora")
    assert round_student(context, 0, NOTHING).is_done(), "the student of the labels alone has not met SAM"
    for lineage in (
        prompted_lineage(context),
        adaptation_lineage(context),
        round_student(context, 1, Selection("other", ("case_03",))),
    ):
        assert lineage.existing is not None and not lineage.is_done() and lineage.parent is None


@pytest.mark.parametrize(
    ("ssl", "tuning", "prompts"),
    [("supervised", "lora", "mask"), ("self_training", "decoder", "box+point+mask")],
)
def test_other_methods_tunings_and_prompts(study: Study, ssl: str, tuning: str, prompts: str) -> None:
    options = {"rounds": 1, "agreement": 0.0, "certainty": 0.0, "corruptions": 1, "prompts": prompts}
    done, _ = run(study, ssl=ssl, tuning=tuning, options=options)
    assert not done["predict"]["skipped"]
    assert (study.models_dir / f"aslseg-{ssl}" / "student.json").is_file()


def test_the_estimate_and_the_report_name_every_stage(study: Study, tmp_path: Path) -> None:
    found = api.estimate(study, **(SETTINGS | {"recipe_options": ALL}))
    assert set(found["per_stage"]) == {"prompt", "adapt", "retrain", "refine", "predict"}
    assert all(seconds > 0 for seconds in found["per_stage"].values())
    assert not (study.models_dir / "aslseg").exists()
    run(study, options={**ALL, "rounds": 1})
    page = write_report(study, tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("tuned with prompts", "Adaptation network trained", "Unlabeled cases refined"):
        assert words in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "scribble"}, "cannot use prompts=scribble"),
        ({"rounds": 0}, "cannot use rounds=0"),
        ({"rounds": 1.5}, "cannot use rounds=1.5"),
        ({"agreement": 2}, "cannot use agreement=2"),
        ({"threshold": 0.9}, "no option 'threshold'"),
    ],
)
def test_rubbish_is_refused_in_one_sentence_before_anything_is_made(
    study: Study, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        run(study, options=options)
    assert caught.value.hint and "\n" not in caught.value.message
    assert not list(study.models_dir.glob("aslseg*"))


def test_what_the_recipe_cannot_do_is_refused(study: Study) -> None:
    with pytest.raises(InputError, match="stage retrain alone"):
        api.run_stage(study, "retrain", **SETTINGS)
    with pytest.raises(InputError, match="takes no --input"):
        run(study, input="small")
    with pytest.raises(InputError, match="neither a known name nor a file"):
        run(study, foundation="vit_x")
    study.set_role(["case_03", "case_04"], "ignored")
    with pytest.raises(InputError, match="no unlabeled"):
        run(study, ssl="supervised")
