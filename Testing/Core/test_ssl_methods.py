"""The contract of semi-supervised methods, and the methods against their formulas."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from SFRCore.errors import InputError
from SFRCore.ssl import available_methods, get_method, scan
from SFRCore.ssl.consistency import ConsistencyMethod
from SFRCore.ssl.contract import Batch, Method, MethodContext, Phase, Progress, progress_at
from SFRCore.ssl.losses import dice_loss, segmentation_loss
from SFRCore.students import make_student
from SFRCore.students.student import Student
from Testing import methods_page

PATCH = (16, 16, 16)
CLASSES = 3


class Tiny(Student):
    """A student of two convolutions, with the same parts as V-Net."""

    name = "tiny"
    divisor = 4

    def __init__(self, in_channels: int, classes: int, dropout: bool = True) -> None:
        super().__init__(in_channels, classes, dropout=dropout)
        self.stage = torch.nn.Sequential(
            torch.nn.Conv3d(in_channels, 6, 3, padding=1), torch.nn.BatchNorm3d(6), torch.nn.ReLU()
        )
        self.dropout = torch.nn.Dropout3d(0.5 if dropout else 0.0)
        self.head = torch.nn.Conv3d(6, classes, 1)

    def encode(self, images: Tensor) -> list[Tensor]:
        return [self.stage(images)]

    def decode(self, features: Any) -> list[Tensor]:
        return [self.dropout(features[-1])]


def build(**overrides: Any) -> Student:
    return Tiny(**{"in_channels": 1, "classes": CLASSES, **overrides})


def method(name: str, *, guided: bool = False, seed: int = 1337, **options: Any) -> Method:
    context = MethodContext(CLASSES, PATCH, build, with_pseudo_labels=guided, options=options, seed=seed)
    return checked(name, context)


def checked(name: str, context: MethodContext) -> Method:
    made = get_method(name)(context)
    made.check()
    return made


def batch(labeled: int = 2, unlabeled: int = 2, *, pseudo: bool = True, seed: int = 0) -> Batch:
    """Crops whose classes follow their brightness; the last two slices are padding."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(labeled + unlabeled, 1, *PATCH, generator=generator)
    labels = torch.bucketize(images[:, 0], torch.tensor([-0.5, 0.5]))
    valid = torch.ones_like(labels, dtype=torch.bool)
    valid[..., -2:] = False
    return Batch(
        labeled_images=images[:labeled],
        labels=labels[:labeled],
        labeled_valid=valid[:labeled],
        unlabeled_images=images[labeled:],
        unlabeled_valid=valid[labeled:],
        pseudo_labels=labels[labeled:] if pseudo else None,
    )


def at(step: int, total: int, trained: Method) -> Progress:
    return progress_at(trained.plan(total), total, step)


def train(trained: Method, total: int, *, first: int = 0, optimizer: Any = None) -> list[float]:
    """The loop in short: phases, one optimiser each, seeded steps."""
    losses = []
    phase = None
    for step in range(first, total):
        progress = at(step, total, trained)
        if progress.phase is not phase and progress.phase != phase:
            phase = progress.phase
            if optimizer is None or progress.step_in_phase == 0:
                trained.begin(phase)
                trained.train()
                optimizer = torch.optim.SGD(trained.parameter_groups(phase), lr=0.05, momentum=0.9)
        torch.manual_seed(step)
        result = trained(batch(phase.labeled, phase.unlabeled, seed=step), progress)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        trained.after_step(progress)
        losses.append(float(result.loss.detach()))
    return losses


ALL = [(name, guided) for name in ("mean_teacher", "self_training", "supervised") for guided in (False, True)]
FITTING = [case for case in ALL if case != ("supervised", True)]


def test_methods_are_found_by_name() -> None:
    assert scan()[1] == {}, "files that cannot be used"
    assert {"mean_teacher", "self_training", "supervised"} <= set(available_methods())
    for name, kind in available_methods().items():
        assert kind.name == name and kind.description and kind.source and get_method(name) is kind
    with pytest.raises(InputError, match="'mean_techer'") as caught:
        get_method("mean_techer")
    assert "mean_teacher" in caught.value.hint


@pytest.mark.parametrize(("size", "crops"), [(1, (2, 0)), (2, (4, 0)), (3, (6, 0))])
def test_the_batch_scales_a_method_s_own_crops(size: int, crops: tuple[int, int]) -> None:
    alone = checked("supervised", MethodContext(CLASSES, PATCH, build, batch=size))
    assert [(phase.labeled, phase.unlabeled) for phase in alone.phases(10)] == [crops]
    odd = Phase("odd", labeled=1, unlabeled=3).of_batch(size)
    assert (odd.labeled, odd.unlabeled) == (max(1, size // 2), 3 * size // 2)
    assert alone.plan(10) == checked("supervised", MethodContext(CLASSES, PATCH, build)).phases(10)


def test_one_crop_is_too_little_for_batch_norm_where_it_ends_in_one_voxel() -> None:
    def v_net(**overrides: Any) -> Student:
        return make_student("vnet", **{"in_channels": 1, "classes": 2, **overrides})

    for patch, size, refused in (((16,) * 3, 1, True), ((32, 16, 16), 1, False), ((16,) * 3, 2, False)):
        made = checked("mean_teacher", MethodContext(2, patch, v_net, batch=size))  # type: ignore[arg-type]
        if refused:
            with pytest.raises(InputError, match="batch of 1 with a patch of 16 x 16 x 16") as caught:
                made.check_batch(10)
            assert "larger patch" in caught.value.hint
        else:
            made.check_batch(10)


def test_what_a_preset_replaces_has_the_same_default_in_every_method() -> None:
    shared = Method.defaults | ConsistencyMethod.defaults
    for name, kind in available_methods().items():
        known = kind.known_options()
        assert kind.keeps <= known.keys(), name
        replaced = {option: value for option, value in known.items() if option in shared.keys() - kind.keeps}
        assert replaced == {option: shared[option] for option in replaced}, name
        assert Method.defaults.keys() <= replaced.keys(), name


@pytest.mark.parametrize(("name", "guided"), FITTING)
def test_every_method_learns(name: str, guided: bool) -> None:
    trained = method(name, guided=guided)
    losses = train(trained, 60)
    last_phase = [index for index in range(60) if at(index, 60, trained).phase == trained.plan(60)[-1]]
    start, end = last_phase[0], last_phase[-1]
    assert sum(losses[end - 2 : end + 1]) < 0.8 * sum(losses[start : start + 3])
    held = batch(seed=999)
    trained.student.eval()
    with torch.no_grad():
        found = trained.student(held.images).argmax(1)
    truth = torch.cat([held.labels, held.pseudo_labels])  # type: ignore[list-item]
    assert (found == truth).float().mean() > 0.6


@pytest.mark.parametrize(("name", "guided"), FITTING)
def test_optimisers_get_what_is_trained_and_teachers_get_no_gradient(name: str, guided: bool) -> None:
    trained = method(name, guided=guided)
    phase = trained.plan(10)[0]
    trained.begin(phase)
    given = [p for group in trained.parameter_groups(phase) for p in group["params"]]
    assert {id(p) for p in trained.student.parameters()} <= {id(p) for p in given}
    trained(batch(phase.labeled, phase.unlabeled), at(0, 10, trained)).loss.backward()
    assert all(p.grad is not None for p in given)
    others = [p for p in trained.parameters() if id(p) not in {id(q) for q in given}]
    assert all(p.grad is None and not p.requires_grad for p in others)


@pytest.mark.parametrize(("name", "guided"), FITTING)
def test_padding_counts_in_no_loss(name: str, guided: bool) -> None:
    trained = method(name, guided=guided, **({"consistency": 5.0} if name == "mean_teacher" else {}))
    trained.eval()
    if name == "mean_teacher":
        with torch.no_grad():
            trained.teacher.head.bias.add_(1.0)  # type: ignore[union-attr, operator]
    phase = trained.plan(10)[-1]
    progress = progress_at(trained.plan(10), 10, 9)
    first, second = (
        batch(4 if phase.labeled == 4 else 2, phase.unlabeled),
        batch(4 if phase.labeled == 4 else 2, phase.unlabeled),
    )
    second.labels[..., -2:] = 2
    second.pseudo_labels[..., -2:] = 2  # type: ignore[index]
    # the images' border reaches one voxel inwards by convolution, so only the last slice changes
    second.labeled_images[..., -1:] = 9.0
    second.unlabeled_images[..., -1:] = 9.0
    values = []
    for one in (first, second):
        torch.manual_seed(0)
        values.append(float(trained(one, progress).loss.detach()))
    assert values[0] == pytest.approx(values[1], abs=1e-6)


@pytest.mark.parametrize(("name", "guided"), FITTING)
def test_a_training_cut_in_two_ends_with_the_same_weights(name: str, guided: bool) -> None:
    whole = method(name, guided=guided)
    train(whole, 12)
    part = method(name, guided=guided)
    total, cut = 12, 7
    optimizer = None
    phase = None
    for step in range(cut):
        progress = at(step, total, part)
        if progress.phase != phase:
            phase = progress.phase
            part.begin(phase)
            optimizer = torch.optim.SGD(part.parameter_groups(phase), lr=0.05, momentum=0.9)
        torch.manual_seed(step)
        result = part(batch(phase.labeled, phase.unlabeled, seed=step), progress)
        optimizer.zero_grad()  # type: ignore[union-attr]
        result.loss.backward()
        optimizer.step()  # type: ignore[union-attr]
        part.after_step(progress)
    state, momenta = part.state_dict(), optimizer.state_dict()  # type: ignore[union-attr]
    resumed = method(name, guided=guided, seed=1)
    resumed.context = part.context
    resumed.begin(phase)  # type: ignore[arg-type]
    resumed.load_state_dict(state)
    again = torch.optim.SGD(resumed.parameter_groups(phase), lr=0.05, momentum=0.9)  # type: ignore[arg-type]
    again.load_state_dict(momenta)
    train(resumed, total, first=cut, optimizer=again)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def consistency_by_hand(trained: Method, one: Batch, compared: slice) -> tuple[float, Tensor]:
    """Mean squared difference of probabilities over valid voxels and channels, in float64."""
    images = torch.cat([one.labeled_images, one.unlabeled_images])
    valid = torch.cat([one.labeled_valid, one.unlabeled_valid])[compared]
    with torch.no_grad():
        logits = trained.student(images)
        noise = (torch.randn_like(images[compared]) * 0.1).clamp(-0.2, 0.2)
        taught = trained.teacher(images[compared] + noise).double().softmax(1)  # type: ignore[operator]
    squares = (logits[compared].double().softmax(1) - taught) ** 2
    return float(squares.permute(0, 2, 3, 4, 1)[valid].mean()), logits


@pytest.mark.parametrize("guided", [False, True])
def test_mean_teacher_has_the_released_loss(guided: bool) -> None:
    trained = method("mean_teacher", guided=guided, consistency=3.0).train()
    with torch.no_grad():
        for parameter in trained.teacher.parameters():  # type: ignore[union-attr]
            parameter.add_(0.3)
    one = batch(2, 3)
    progress = at(3000, 6000, trained)
    compared = slice(0, None) if guided else slice(2, None)
    state = {key: value.clone() for key, value in trained.state_dict().items()}
    torch.manual_seed(11)
    expected, logits = consistency_by_hand(trained, one, compared)
    trained.load_state_dict(state)
    torch.manual_seed(11)
    step = trained(one, progress)

    weight = 3.0 * 0.286505  # exp(-5 / 4) at half of the ramp
    supervised = segmentation_loss(logits[:2], one.labels, one.labeled_valid, 1e-10 if guided else 1e-5)
    assert float(step.parts["consistency"]) == pytest.approx(expected, rel=1e-4)
    assert float(step.parts["consistency_weight"]) == pytest.approx(weight, rel=1e-4)
    assert float(step.parts["supervised"]) == pytest.approx(float(supervised), rel=1e-5)
    assert float(step.loss.detach()) == pytest.approx(float(supervised) + weight * expected, rel=1e-4)
    assert len(step.unlabeled_logits) == 1 and not step.pseudo_average
    assert (step.unlabeled_logits[0] - logits[2:]).abs().max() < 1e-5
    assert step.unlabeled_logits[0].requires_grad


def test_mean_teacher_compares_as_asked() -> None:
    assert method("mean_teacher").options["consistency_on"] == "unlabeled"
    assert method("mean_teacher", guided=True).options["consistency_on"] == "all"
    chosen = method("mean_teacher", guided=True, consistency_on="unlabeled")
    assert chosen.options["consistency_on"] == "unlabeled"
    with pytest.raises(InputError, match="consistency_on=labeled"):
        method("mean_teacher", consistency_on="labeled")


def test_mean_teacher_copies_the_student_once_then_averages() -> None:
    trained = method("mean_teacher")
    train(trained, 1)
    for old, new in zip(trained.teacher.parameters(), trained.student.parameters(), strict=True):  # type: ignore[union-attr]
        assert torch.equal(old, new)
    train(trained, 5)
    assert not torch.equal(trained.teacher.head.weight, trained.student.head.weight)  # type: ignore[union-attr]
    assert trained.teacher.training  # type: ignore[union-attr]


def test_mean_teacher_follows_the_ramp_of_its_options() -> None:
    trained = method("mean_teacher", consistency=0.2, ramp=[40, 300, 30000])
    for step, weight in ((0, 0.2 * 0.0067379), (12000, 0.2), (29999, 0.2)):
        parts = trained(batch(), at(step, 30000, trained)).parts
        assert float(parts["consistency_weight"]) == pytest.approx(weight, rel=1e-4)


def test_plans_take_the_learning_rate_of_the_options() -> None:
    for name in ("mean_teacher", "self_training", "supervised"):
        for phase in method(name, schedule="poly", base_rate=0.1).plan(100):
            assert phase.learning_rate(50, 100) == pytest.approx(0.1 * 0.5**0.9)
        for phase in method(name, step_every=Fraction(2, 5)).plan(100):
            assert [phase.learning_rate(k, 100) for k in (39, 40)] == pytest.approx([0.01, 0.001])
        with pytest.raises(InputError, match="schedule=cosine"):
            method(name, schedule="cosine")
        with pytest.raises(InputError, match="no option 'momentum'"):
            method(name, momentum=0.9)


def test_self_training_rounds() -> None:
    plain, guided = method("self_training"), method("self_training", guided=True)
    assert [p.pseudo_labels for p in guided.plan(300)] == ["foundation", "student", "student"]
    assert [p.pseudo_labels for p in plain.plan(300)] == ["none", "student", "student"]
    assert [p.unlabeled for p in plain.plan(300)] == [0, 2, 2]
    assert all(p.restart for p in guided.plan(300))
    assert len(method("self_training", rounds=5).plan(300)) == 5
    with pytest.raises(InputError, match="0 rounds"):
        method("self_training", rounds=0)


def test_self_training_starts_every_round_anew() -> None:
    trained = method("self_training")
    fresh = []
    for phase in trained.plan(300):
        train(trained, 2)
        trained.begin(phase)
        fresh.append(trained.student.head.weight.detach().clone())  # type: ignore[union-attr, operator]
    assert not torch.equal(fresh[0], fresh[1]) and not torch.equal(fresh[1], fresh[2])
    trained.begin(trained.plan(300)[1])
    assert torch.equal(trained.student.head.weight, fresh[1])  # type: ignore[arg-type]


def test_self_training_adds_the_pseudo_labels_once() -> None:
    trained = method("self_training", guided=True).eval()
    one = batch(2, 3)
    with torch.no_grad():
        logits = trained.student(one.images)
        step = trained(one, at(0, 30, trained))
    expected = segmentation_loss(logits[:2], one.labels, one.labeled_valid) + segmentation_loss(
        logits[2:],
        one.pseudo_labels,
        one.unlabeled_valid,  # type: ignore[arg-type]
    )
    assert float(step.loss) == pytest.approx(float(expected), rel=1e-5)
    assert step.unlabeled_logits == []
    with pytest.raises(ValueError, match="no pseudo-labels"):
        trained(batch(pseudo=False), at(0, 30, trained))


@pytest.mark.parametrize(
    ("weight", "schedule", "step"), [(0.0, "constant", 0), (0.25, "constant", 5), (0.5, "linear", 5)]
)
def test_self_training_weighs_its_pseudo_labels(weight: float, schedule: str, step: int) -> None:
    """A weight of a half has fallen to a quarter in the middle of a round of 10."""
    one = batch(2, 3)
    parts = []
    for factor, falls in ((weight, schedule), (1.0, "constant")):
        context = MethodContext(
            CLASSES, PATCH, build, with_pseudo_labels=True, pseudo_weight=factor, pseudo_schedule=falls
        )
        trained = checked("self_training", context).eval()
        with torch.no_grad():
            parts.append(trained(one, at(step, 30, trained)))
    weight *= 0.5 if schedule == "linear" else 1.0
    weighed, full = parts
    supervised = float(full.parts["supervised"])
    expected = supervised + weight * float(full.parts["pseudo_label"])
    assert float(weighed.loss) == pytest.approx(expected, rel=1e-5)
    assert float(full.loss) > supervised


@pytest.mark.parametrize(
    ("name", "option", "value", "needed"),
    [
        ("mean_teacher", "ramp", 40, "3 numbers, such as 40,150,6000"),
        ("mean_teacher", "ramp", (40, 150), "3 numbers"),
        ("mean_teacher", "ramp", (40, "x", 6000), "3 numbers"),
        ("mean_teacher", "consistency", "abc", "a number, such as 0.1"),
        ("mean_teacher", "consistency", float("nan"), "a number"),
        ("mean_teacher", "consistency", True, "a number"),
        ("mean_teacher", "schedule", 3, "a word, such as step"),
        ("supervised", "base_rate", "x", "a number, such as 0.01"),
        ("supervised", "step_every", "often", "a number, such as 0.417"),
        ("self_training", "rounds", 2.5, "a whole number, such as 3"),
        ("self_training", "rounds", True, "a whole number"),
    ],
)
def test_an_option_of_another_kind_is_refused(name: str, option: str, value: object, needed: str) -> None:
    with pytest.raises(InputError, match=f"{name} cannot use {option}=") as caught:
        method(name, **{option: value})
    assert needed in caught.value.hint


def test_options_that_fit_are_taken_and_those_that_divide_by_zero_are_not() -> None:
    taken = method("mean_teacher", consistency=1, ramp=[40, 300, 30000], step_every=0.4, schedule="poly")
    assert taken.options["consistency"] == 1 and taken.plan(10)[0].step_every == 0.4
    for option, value in (("step_every", 0), ("base_rate", -0.1), ("ramp", (40, 0, 6000))):
        with pytest.raises(InputError, match=option):
            method("mean_teacher", **{option: value})


@pytest.mark.parametrize("dice", ["foreground", "all"])
def test_supervised_loss(dice: str) -> None:
    trained = method("supervised", dice=dice).eval()
    one = batch(4, 0)
    with torch.no_grad():
        logits = trained.student(one.labeled_images)
        step = trained(one, at(0, 30, trained))
    p = logits.double().softmax(1)
    y = torch.stack([one.labels == c for c in range(CLASSES)], 1).double()
    entropy = -(p * y).sum(1).log()[one.labeled_valid].mean()
    terms = []
    for c in range(1 if dice == "foreground" else 0, CLASSES):
        pc, yc = p[:, c][one.labeled_valid], y[:, c][one.labeled_valid]
        terms.append(1 - (2 * (pc * yc).sum() + 1e-5) / ((pc**2).sum() + yc.sum() + 1e-5))
    assert float(step.loss) == pytest.approx(float(0.5 * (entropy + torch.stack(terms).mean())), rel=1e-5)
    assert [(p.labeled, p.unlabeled) for p in trained.plan(9)] == [(4, 0)]
    assert not trained.uses_unlabeled


def test_supervised_refuses_pseudo_labels_and_methods_refuse_patches() -> None:
    with pytest.raises(InputError, match="cannot use pseudo-labels"):
        method("supervised", guided=True)
    context = MethodContext(CLASSES, (16, 16, 18), build)
    for name in ("mean_teacher", "self_training", "supervised"):
        with pytest.raises(InputError, match="16 x 16 x 18"):
            checked(name, context)


def test_initial_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = method("mean_teacher")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    second, other = method("mean_teacher"), method("mean_teacher", seed=7)
    assert torch.equal(first.student.head.weight, second.student.head.weight)  # type: ignore[arg-type]
    assert not torch.equal(first.student.head.weight, other.student.head.weight)  # type: ignore[arg-type]


def test_batch_moves_as_a_whole() -> None:
    one = batch()
    moved = one.to("meta")
    assert moved.labeled_images.device.type == moved.pseudo_labels.device.type == "meta"  # type: ignore[union-attr]
    assert one.images.shape == (4, 1, *PATCH) and one.valid.shape == (4, *PATCH)


def test_losses_stay_in_float32_under_autocast() -> None:
    trained = method("mean_teacher", guided=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = trained(batch(), at(0, 10, trained))
    assert step.unlabeled_logits[0].dtype == torch.bfloat16
    assert step.loss.dtype == torch.float32 and torch.isfinite(step.loss)


def test_a_step_with_v_net() -> None:
    context = MethodContext(
        2, (16, 16, 16), lambda **o: make_student("vnet", **{"in_channels": 1, "classes": 2, **o}),
        with_pseudo_labels=True,
    )  # fmt: skip
    trained = checked("mean_teacher", context)
    one = batch()
    one.labels.clamp_(max=1)
    step = trained(one, at(5, 10, trained))
    step.loss.backward()
    assert torch.isfinite(step.loss)
    assert dice_loss(step.unlabeled_logits[0].softmax(1), one.pseudo_labels.clamp(max=1)) < 1  # type: ignore[union-attr]


def test_the_page_of_methods_is_up_to_date() -> None:
    assert methods_page.PAGE.read_text(encoding="utf-8") == methods_page.page(), (
        "python Testing/methods_page.py"
    )
