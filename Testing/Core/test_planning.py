"""What is chosen for a study, and the numbers of the presets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from SFRCore import api
from SFRCore.errors import InputError
from SFRCore.planning import FEW_ITERATIONS, STITCHED, CaseShape, Plan, make_plan, reasons_for, with_settings
from SFRCore.presets import PRESETS, get_preset
from SFRCore.settings import Settings
from SFRCore.students import student_types
from SFRCore.volumes import Normalisation

GIGABYTE = 1 << 30


def planned(preset: str, cases: list[CaseShape], **changes: object) -> Plan:
    arguments: dict = {
        "stack_axis": 2,
        "values": [1, 2],
        "names": ["Anterior", "Posterior"],
        "canvas_limit": 1024,
        "canvas_multiple": 16,
        "memory": 16 * GIGABYTE,
        "gpu": True,
    }
    settings = changes.pop("settings", Settings())
    return make_plan(settings, preset, cases, **(arguments | changes))  # type: ignore[arg-type]


def volumes(*shapes: tuple[int, int, int], least: float = 0.0, zero: float | None = None) -> list[CaseShape]:
    return [CaseShape(shape, (1.0, 1.0, 1.0), least, zero) for shape in shapes]


@pytest.mark.parametrize(
    ("preset", "patch", "stride", "iterations", "ramp"),
    [
        ("left_atrium", (112, 112, 80), (18, 18, 4), 6000, (0.1, 40, 150)),
        ("brats", (96, 96, 96), (64, 64, 64), 6000, (0.1, 40, 150)),
        ("btcv", (96, 96, 96), (12, 12, 12), 70000, (0.1, 200, 350)),
        ("mact", (96, 96, 96), (12, 12, 12), 30000, (0.2, 40, 300)),
    ],
)
def test_presets_have_the_papers_numbers(preset, patch, stride, iterations, ramp) -> None:
    plan = planned(preset, volumes((180, 140, 88)))
    assert (plan.patch, plan.reference_stride, plan.iterations_retrain, plan.ramp) == (
        patch,
        stride,
        iterations,
        ramp,
    )
    assert (plan.canvas, plan.zoom) == (1024, 1)


def test_brats_trains_the_papers_network_and_all_others_the_v_net() -> None:
    assert {preset.student for preset in PRESETS.values()} <= set(student_types())
    assert [name for name, preset in PRESETS.items() if preset.student != "vnet"] == ["brats"]
    assert get_preset("brats").student == "unet3d"


def test_auto_patch_holds_the_95th_percentile_in_steps_of_16() -> None:
    plan = planned("auto", volumes(*[(35, 50, 36)] * 39, (300, 300, 300)))
    assert plan.patch == (48, 64, 48)
    assert any("95 %" in reason for reason in plan.reasons)


def test_auto_patch_is_capped_by_memory_and_says_so() -> None:
    plan = planned("auto", volumes((300, 300, 300)), memory=4 * GIGABYTE)
    assert plan.patch[0] * plan.patch[1] * plan.patch[2] * 4 * 2400 <= 0.6 * 4 * GIGABYTE
    assert any("memory" in reason for reason in plan.reasons)


def test_auto_without_a_gpu_stays_bearable() -> None:
    plan = planned("auto", volumes((300, 300, 300)), gpu=False)
    assert plan.patch == (64, 64, 64)
    assert plan.iterations_retrain == 1000


def test_auto_recognises_ct_by_its_least_value() -> None:
    assert planned("auto", volumes((64, 64, 64), least=-1024)).preprocessing.normalisation.kind == "ct_window"
    fitted = Normalisation("ct_percentile", low=-50.0, high=200.0, mean=90.0, std=40.0)
    assert (
        planned("auto", volumes((64, 64, 64), least=-1024), ct=fitted).preprocessing.normalisation == fitted
    )
    assert planned("auto", volumes((64, 64, 64))).preprocessing.normalisation.kind == "zscore"
    assert (
        planned("auto", volumes((64, 64, 64), zero=0.7)).preprocessing.normalisation.kind == "zscore_nonzero"
    )


def test_sides_of_the_body_are_not_mirrored() -> None:
    assert planned("auto", volumes((64, 64, 64))).flip_axes == (0,)
    assert planned("auto", volumes((64, 64, 64)), names=["Left kidney", "Right kidney"]).flip_axes == ()
    assert planned("auto", volumes((64, 64, 64)), names=list("abcd"), values=[1, 2, 3, 4]).flip_axes == ()


@pytest.mark.parametrize(
    ("names", "sided"),
    [
        ("Hippocampus L,Femur_l,rh,LV,LeftLung,left2,kidney-right,Niere links", True),
        ("Linke Niere,Bright lesion,L5,Liver,Cleft,Tumour", False),
    ],
)
def test_what_names_a_side(names: str, sided: bool) -> None:
    for name in names.split(","):
        plan = planned("auto", volumes((64, 64, 64)), names=[name, "x"])
        assert (plan.flip_axes == ()) == sided, name


def test_left_and_right_are_found_under_any_stacking_axis() -> None:
    assert planned("hippocampus", volumes((35, 50, 36)), stack_axis=0).flip_axes == (2,)
    assert planned("hippocampus", volumes((35, 50, 36)), stack_axis=1).flip_axes == (0,)


def test_uniform_interpolates_thin_stacks_to_96_slices() -> None:
    thin = [CaseShape((200, 200, 30), (0.8, 0.8, 5.0))]
    plan = planned("uniform", thin)
    assert plan.preprocessing.spacing is not None
    assert 30 * 5.0 / plan.preprocessing.spacing[2] == pytest.approx(96)
    assert planned("uniform", volumes((200, 200, 120))).preprocessing.spacing is None


def test_short_trainings_learn_faster_and_the_papers_as_the_paper() -> None:
    cases = volumes((64, 64, 32))
    plan = planned("auto", cases)
    rates = {k: replace(plan, iterations_retrain=k).base_rate for k in (100, 1000, 3000, 6000, 30000)}
    assert rates == pytest.approx({100: 0.05, 1000: 0.05, 3000: 0.02, 6000: 0.01, 30000: 0.01})
    assert replace(planned("left_atrium", cases), iterations_retrain=100).base_rate == 0.01


def test_the_reason_for_iterations_goes_where_the_user_asked_for_others() -> None:
    plan = planned("auto", volumes((64, 64, 64)), gpu=False)
    assert "1000 iterations each" in " ".join(plan.reasons)
    both = with_settings(plan, Settings(iterations_finetune=7, iterations_retrain=8))
    assert "1000" not in " ".join(both.reasons) and both.iterations_finetune == 7
    one = " ".join(with_settings(plan, Settings(iterations_finetune=7)).reasons)
    assert "1000 iterations of re-training" in one and "iterations each" not in one
    assert with_settings(plan, Settings()).reasons == plan.reasons


def test_small_patches_are_enlarged_on_a_large_canvas() -> None:
    plan = planned("hippocampus", volumes((35, 50, 36)))
    assert plan.zoom == 4
    assert plan.canvas <= 1024


def test_a_small_canvas_takes_several_images_and_says_so() -> None:
    plan = planned("auto", volumes((35, 50, 36)), canvas_limit=256)
    assert "48 slices of 48 x 64 voxels are stitched into 3 images of 256 x 256 pixels." in plan.reasons


def test_a_plan_survives_its_own_words() -> None:
    plan = planned("mact", volumes((180, 140, 88)))
    again = Plan.from_dict(__import__("json").loads(__import__("json").dumps(plan.to_dict())))
    assert again == plan


def test_what_cannot_be_planned_is_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match="multiple of 16|does not fit"):
        planned("auto", volumes((64, 64, 64)), settings=Settings(patch=(40, 48, 48)))
    with pytest.raises(InputError, match="No volume"):
        planned("auto", [])
    with pytest.raises(InputError, match="no preset 'heart'"):
        get_preset("heart")
    with pytest.raises(InputError, match="at least 1"):
        Settings(iterations_retrain=0)
    with pytest.raises(InputError, match="not a setting"):
        Settings.of(iteration=3)


def test_every_preset_says_what_it_is_for() -> None:
    assert all(preset.summary and preset.name == name for name, preset in PRESETS.items())


def test_a_smaller_patch_takes_its_stride_along() -> None:
    plan = planned("brats", volumes((180, 140, 88)), settings=Settings(patch=(48, 48, 32)))
    assert plan.reference_stride == (48, 48, 32)


def test_volumes_of_which_only_the_header_is_known_do_not_outvote_the_others() -> None:
    headers = [CaseShape((64, 64, 64), (1.0, 1.0, 1.0)) for _ in range(20)]
    looked = volumes(*[(64, 64, 64)] * 4, zero=0.7)
    assert planned("auto", headers + looked).preprocessing.normalisation.kind == "zscore_nonzero"


def test_abdomenct1k_is_resampled_to_the_studys_median_spacing() -> None:
    spacings = [(0.7, 0.7, 5.0), (0.8, 0.9, 2.5), (0.9, 0.8, 1.0)]
    cases = [CaseShape((512, 512, 100), spacing, -1024.0) for spacing in spacings]
    plan = planned("abdomenct1k", cases)
    assert plan.preprocessing.spacing == pytest.approx((0.8, 0.8, 2.5))
    assert any("0.80 x 0.80 x 2.50 mm" in reason for reason in plan.reasons)
    assert planned("auto", cases).preprocessing.spacing is None


@pytest.mark.parametrize("device", ["cuda:x", "cuda:", "cuda:-1", "cuda:0:1", "cpu:0"])
def test_a_device_that_is_none_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=device):
        Settings(device=device)
    assert Settings(device="cuda:12").device == "cuda:12"


def test_a_gpu_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="cuda:2") as caught:
        api._device(Settings(device="cuda:2"))
    assert "cuda:0, cuda:1" in caught.value.hint


@pytest.mark.parametrize(
    ("stages", "input", "stitched", "iterations"),
    [
        (("finetune", "pseudolabel", "retrain", "predict"), "stitched", True, ["each"]),
        (("finetune", "pseudolabel", "retrain", "predict"), "rotated", True, ["each"]),
        (("finetune", "pseudolabel", "retrain", "predict"), "scale:7", False, ["each"]),
        (("finetune",), "stitched", True, ["of fine-tuning"]),
        (("pseudolabel",), "stitched", True, []),
        (("retrain", "predict"), "stitched", False, ["of re-training"]),
        (("prompt", "adapt", "retrain"), "stitched", False, ["each"]),
    ],
)
def test_reasons_are_those_of_the_stages(
    stages: tuple[str, ...], input: str, stitched: bool, iterations: list[str]
) -> None:
    plan = planned("auto", volumes((64, 64, 64)), gpu=False)
    assert FEW_ITERATIONS in plan.reasons
    reasons = reasons_for(plan, stages, input)
    assert reasons[0] == plan.reasons[0] and any(STITCHED in reason for reason in reasons) == stitched
    few = [reason for reason in reasons if "iterations" in reason]
    said = [reason.split("iterations ")[1].split(" instead")[0] for reason in few]
    assert said == iterations
    own = with_settings(plan, Settings(iterations_finetune=7))
    kept = [reason for reason in reasons_for(own, stages, input) if "iterations" in reason]
    assert all("re-training" in reason for reason in kept) and len(kept) == int("retrain" in stages)
