"""MagicNet: cubes come back to where they were, and the loss is that of its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from SFRCore.errors import InputError
from SFRCore.ssl import get_method, magicnet
from SFRCore.ssl.contract import MethodContext
from SFRCore.ssl.cubes import assemble, exchange, grid_of, partition, random_order
from SFRCore.students import make_student
from Testing.Core.small_student import CLASSES, at, batch, dice_by_hand, entropy_by_hand, method

CUBE = (8, 8, 8)


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The location head would take most of the time."""
    monkeypatch.setattr(magicnet, "LOCATION_WIDTH", 16)


@pytest.mark.parametrize(
    ("size", "cube"), [((6, 4, 8), (2, 2, 2)), ((12, 4, 6), (4, 2, 3)), ((4, 4, 4), (4, 4, 4))]
)
def test_cubes_come_back(size: tuple[int, ...], cube: tuple[int, ...]) -> None:
    grid = grid_of(size, cube)
    crops = torch.arange(3 * 2 * size[0] * size[1] * size[2]).reshape(3, 2, *size).float()
    cubes = partition(crops, grid)
    assert torch.equal(assemble(cubes, grid), crops)
    x, y, z = cube
    for index in range(cubes.shape[1]):
        i, j, k = index % grid[0], index // grid[0] % grid[1], index // (grid[0] * grid[1])
        wanted = crops[:, :, i * x : (i + 1) * x, j * y : (j + 1) * y, k * z : (k + 1) * z]
        assert torch.equal(cubes[:, index], wanted)


def test_cubes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be cut"):
        grid_of((6, 4, 8), (4, 2, 2))


def test_exchanged_cubes_keep_their_place_and_come_back() -> None:
    torch.manual_seed(3)
    crops = torch.randn(4, 3, 6, 4, 8)
    order = random_order(4, (3, 2, 4), torch.device("cpu"))
    mixed = exchange(crops, order)
    for i in range(3):
        for j in range(2):
            for k in range(4):
                place = (
                    slice(None),
                    slice(2 * i, 2 * i + 2),
                    slice(2 * j, 2 * j + 2),
                    slice(2 * k, 2 * k + 2),
                )
                assert sorted(order[:, i, j, k].tolist()) == [0, 1, 2, 3]
                for b in range(4):
                    assert torch.equal(mixed[b][place], crops[int(order[b, i, j, k])][place])
    assert torch.equal(exchange(mixed, order.argsort(0)), crops)
    assert len({tuple(order[:, i, j, k].tolist()) for i in range(3) for j in range(2) for k in range(4)}) > 5


def by_hand(
    trained: Any, one: Any, *, blended: bool, within: bool, counts: list[int], power: float
) -> dict[str, Any]:
    """The terms of the loss with loops over cubes, random numbers drawn in the same order."""
    images, student = one.images, trained.student
    order = torch.rand(4, 2, 2, 2).argsort(0)
    noise = (torch.randn_like(one.unlabeled_images) * 0.1).clamp(-0.2, 0.2)
    places = [(slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8), slice(8 * k, 8 * k + 8), (i, j, k))
              for k in range(2) for j in range(2) for i in range(2)]  # fmt: skip
    mixed = torch.zeros_like(images)
    for x, y, z, place in places:
        for b in range(4):
            mixed[b, :, x, y, z] = images[order[(b, *place)], :, x, y, z]
    seen = student.decode(student.encode(mixed))[-1]
    back = torch.zeros_like(seen)
    for x, y, z, place in places:
        for b in range(4):
            back[order[(b, *place)], :, x, y, z] = seen[b, :, x, y, z]
    alone = torch.zeros_like(seen)
    location = torch.zeros((), dtype=torch.float64)
    for b in range(4):
        bottoms = []
        for x, y, z, _ in places:
            levels = student.encode(images[b : b + 1, :, x, y, z])
            bottoms.append(levels[-1].flatten())
            alone[b, :, x, y, z] = student.decode(levels)[-1][0]
        guess = trained.location(torch.stack(bottoms)).double()
        location = location + functional.cross_entropy(guess, torch.arange(8)) / 4
    plain, recovered, together = student(images), student.head(back), student.head(alone)
    taught = trained.teacher(one.unlabeled_images + noise)
    labels = taught.argmax(1)
    if blended:
        share = (torch.tensor(counts).double() / max(counts)) ** power
        omega = share[labels][:, None]
        labels = ((1 - omega) * taught.double() + omega * together[2:].double()).argmax(1)
    target = (one.labels, one.labeled_valid)
    terms = [entropy_by_hand(plain[:2], *target)]
    for logits in (plain, recovered, together) if within else (plain, recovered):
        terms.append(dice_by_hand(logits[:2].softmax(1), *target, epsilon=1e-10))
    consistency = dice_by_hand(recovered[2:].softmax(1), labels, one.unlabeled_valid, epsilon=1e-10)
    return {
        "supervised": torch.stack(terms).mean(),
        "location": location,
        "consistency": consistency,
        "labels": labels,
        "plain": plain[2:],
    }


@pytest.mark.parametrize(
    ("options", "step", "blended", "within"),
    [
        ({}, 500, True, True),
        ({"blend_after": 0.5}, 500, False, True),
        ({"within_from": 0.5, "blend_after": 1.0}, 499, False, False),
        ({"within_from": 0.5, "temperature": 0.5}, 500, True, True),
    ],
)
def test_the_loss_is_that_of_the_formula(options: Any, step: int, blended: bool, within: bool) -> None:
    trained = method("magicnet", cube=CUBE, consistency=3.0, ramp=(200, 5, 1000), **options)
    with torch.no_grad():
        for parameter in trained.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        trained.counts.copy_(torch.tensor([50, 20, 30]))
        trained.recent.copy_(torch.tensor([1, 2, 3]))
    one = batch()
    torch.manual_seed(7)
    power = 1 / options.get("temperature", 1.0)
    expected = by_hand(trained, one, blended=blended, within=within, counts=[50, 20, 30], power=power)
    torch.manual_seed(7)
    found = trained(one, at(step, 1000, trained))
    for name in ("supervised", "location", "consistency"):
        assert float(found.parts[name]) == pytest.approx(float(expected[name].detach()), rel=2e-5), name
    weight = 3.0 * 2.718281828 ** (-5 * (1 - (step // 5) / 200) ** 2)
    total = expected["supervised"] + 0.1 * expected["location"] + weight * expected["consistency"]
    assert float(found.loss.detach()) == pytest.approx(float(total.detach()), rel=2e-5)
    assert torch.allclose(found.unlabeled_logits[0], expected["plain"], atol=1e-5)
    total.backward()
    wanted = {name: p.grad.clone() for name, p in trained.named_parameters() if p.grad is not None}
    trained.zero_grad()
    found.loss.backward()
    assert wanted.keys() == {n for n, p in trained.named_parameters() if p.grad is not None}
    for name, parameter in trained.named_parameters():
        if name in wanted:
            assert torch.allclose(parameter.grad, wanted[name], rtol=1e-3, atol=2e-6), name
    seen = torch.bincount(expected["labels"][one.unlabeled_valid], minlength=CLASSES)
    if step % 20 == 0:
        assert trained.counts.tolist() == (seen + torch.tensor([1, 2, 3])).tolist()
        assert trained.recent.tolist() == [0, 0, 0]
    else:
        assert trained.counts.tolist() == [50, 20, 30]
        assert trained.recent.tolist() == (seen + torch.tensor([1, 2, 3])).tolist()


def test_cubes_of_padding_have_no_place() -> None:
    trained = method("magicnet", cube=CUBE)
    one = batch()
    one.labeled_valid[:, :, :, 8:] = one.unlabeled_valid[:, :, :, 8:] = False
    losses = []
    for value in (0.0, 5.0):
        one.labeled_images[..., 8:] = value
        one.unlabeled_images[..., 8:] = value
        losses.append(float(trained._located(one.images, one.valid)[1].detach()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_student_has_instance_norm_and_no_dropout() -> None:
    trained = method("magicnet", cube=CUBE)
    assert trained.student.options == {"norm": "instance", "dropout": False}
    assert trained.grid == (2, 2, 2) and trained.location[-1].out_features == 8


@pytest.mark.parametrize(
    ("patch", "options", "said"),
    [
        ((16, 16, 20), {"cube": CUBE}, "16x16x20 voxels into cubes of 8x8x8"),
        ((16, 16, 16), {"cube": (16, 16, 16)}, "16x16x16 voxels into cubes of 16x16x16"),
        ((16, 16, 16), {}, "16x16x16 voxels into cubes of 16x16x16"),
        ((16, 16, 16), {"cube": (6, 8, 8)}, "6 x 8 x 8"),
        ((16, 16, 16), {"cube": 8}, "cube=8"),
        ((16, 16, 18), {"cube": CUBE}, "16 x 16 x 18"),
        ((16, 16, 16), {"cube": CUBE, "blend_after": 1.5}, "blend_after between 0 and 1"),
        ((16, 16, 16), {"cube": CUBE, "temperature": 0.0}, "temperature above 0"),
        ((16, 16, 16), {"cube": CUBE, "ramp": (40, 0, 10)}, "ramp above 0"),
    ],
)
def test_what_does_not_fit_is_refused(patch: Any, options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        method("magicnet", patch=patch, **options)


def test_cubes_are_16_long_where_32_does_not_divide_the_patch() -> None:
    assert method("magicnet", patch=(32, 48, 64)).grid == (1, 3, 2)


def magic_vnet(patch: tuple[int, int, int], **options: Any) -> Any:
    def build(**changes: Any) -> Any:
        return make_student("vnet", **({"in_channels": 1, "classes": 2} | changes))

    return get_method("magicnet")(MethodContext(2, patch, build, options=options))


@pytest.mark.parametrize(
    ("patch", "grid"),
    [
        ((48, 48, 48), (1, 3, 3)),
        ((112, 112, 80), (1, 7, 5)),
        ((48, 48, 80), (3, 3, 1)),
        ((32, 32, 16), (1, 2, 1)),
    ],
)
def test_the_longest_axis_stays_whole_where_cubes_would_be_too_small(patch: Any, grid: Any) -> None:
    assert magic_vnet(patch).grid == grid


def test_cubes_that_the_network_cannot_take_are_named() -> None:
    with pytest.raises(InputError, match="cubes of 16x16x16: A patch of 16 x 16 x 16") as refused:
        magic_vnet((48, 48, 48), cube=(16, 16, 16))
    assert "cube=32,32,32" in refused.value.hint
