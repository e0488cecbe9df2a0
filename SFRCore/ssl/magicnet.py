"""MagicNet: crops cut into cubes that are mixed, recovered, located and used to correct pseudo-labels."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from SFRCore.errors import InputError
from SFRCore.ssl.consistency import TaughtMethod
from SFRCore.ssl.contract import Batch, MethodContext, Progress, Step
from SFRCore.ssl.cubes import assemble, exchange, grid_of, partition, random_order
from SFRCore.ssl.ema import perturb
from SFRCore.ssl.losses import cross_entropy, dice_loss
from SFRCore.ssl.tracing import feature_shapes

LOCATION_WIDTH = 4096
WINDOW = 20
"""Steps after which the frequencies of classes are counted anew."""


class MagicNet(TaughtMethod):
    """L = [CE + Dice(plain) + Dice(recovered) + Dice(within)]/4 + CE(location)/10 + w Dice(recovered).

    The bracket is over labeled crops, the last term, with w = lambda(k), over unlabeled ones. *Recovered*: at
    every place the cubes of the batch are permuted, the student's last features are put back and go through
    its head. *Within*: the cubes of one crop, each seen alone, put together. *Location*: from the bottleneck
    of a cube alone, its place. The last term compares with labels from the teacher's logits (noisy input),
    blended with the student's logits of single cubes, the more of these the more frequent the teacher's
    class is.

    ``cube`` in voxels (None: 32 a side, 16 where 32 does not divide the patch, the longest axis whole where
    all would be 16 or the patch is one cube); ``within_from`` and ``blend_after`` are fractions of the
    training, by default those for BTCV. On MACT the released code adds *within* from 0.4 on, when w is at its
    largest, and never blends (``blend_after=1``) as w is then asked to be larger still. The student has
    instance norm and no dropout. Released for 70000 iterations with a polynomial learning rate (BTCV), or
    30000 with a tenth after each 12000 (MACT): the presets of these data sets have these schedules, those of
    others replace them.

    The released code cuts cubes with z innermost and puts them together with x innermost, which moves 18 of
    27 to another place; here they come back to their own. Padded voxels count in no loss, in no frequency,
    and a cube of padding only has no place.
    """

    name = "magicnet"
    description = "MagicNet: cubes mixed between crops and recovered, each located by its content"
    source = "Chen et al., CVPR 2023; MagicNet train_main_btcv.py, train_main_mact.py"
    defaults = {
        "cube": None,
        "location": 0.1,
        "within_from": 0.0,
        "blend_after": Fraction(100, 70000),
        "temperature": 1.0,
    }
    student_options = {"norm": "instance", "dropout": False}
    counts: Tensor
    recent: Tensor

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        cube = self._cube()
        self.grid = grid_of(context.patch, cube)
        width = math.prod(feature_shapes(self.student, cube)[0][-1])
        self.location = self.seeded("location", lambda: _location_head(width, math.prod(self.grid)))
        self.register_buffer("counts", torch.zeros(context.classes, dtype=torch.int64))
        self.register_buffer("recent", torch.zeros(context.classes, dtype=torch.int64))

    def check(self) -> None:
        super().check()
        self.check_shares("within_from", "blend_after")
        if self.options["temperature"] <= 0:
            raise InputError(f"The method {self.name} needs temperature above 0.")

    def _cube(self) -> tuple[int, ...]:
        patch, wanted = self.context.patch, self.options["cube"]
        sides = wanted if isinstance(wanted, tuple | list) else (wanted,)
        if wanted is not None and not (len(sides) == 3 and all(isinstance(edge, int) for edge in sides)):
            raise InputError(
                f"MagicNet cannot use cube={wanted}.", hint="Give three numbers, such as 32,32,32."
            )
        cube = tuple(wanted or self._standard_cube())
        shown, edges = ("x".join(map(str, lengths)) for lengths in (patch, cube))
        try:
            self.student.check_patch(cube)
        except InputError as error:
            raise InputError(
                f"MagicNet cannot use cubes of {edges}: {error.message}",
                hint="Choose another cube with --method-option, such as cube=32,32,32.",
            ) from error
        if any(side % edge for side, edge in zip(patch, cube, strict=True)) or tuple(patch) == tuple(cube):
            raise InputError(
                f"MagicNet cannot cut a patch of {shown} voxels into cubes of {edges}.",
                hint="Choose a patch that is two or more cubes long, such as 96x96x96, or another cube.",
            )
        return cube

    def _standard_cube(self) -> list[int]:
        """Edges of 32, or 16 where that does not divide the patch; where all are 16, too small for instance
        norm, or the patch is one such cube, 16 with the longest axis whole.
        """
        patch = self.context.patch
        cube = [32 if side % 32 == 0 else 16 for side in patch]
        if cube in ([16] * 3, list(patch)):
            longest = max(range(3), key=lambda axis: patch[axis])
            cube = [16] * 3
            cube[longest] = patch[longest]
        return cube

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labeled_images)
        images = batch.images
        logits = self.student(images)
        unmixed = self._recovered(images)
        with torch.no_grad():
            taught = self.teacher(perturb(batch.unlabeled_images)).float()
        encoded, location = self._located(images, batch.valid)

        within_from = self.options["within_from"] * progress.total
        target = (batch.labels, batch.labeled_valid)
        terms = [
            cross_entropy(logits[:labeled], *target),
            _dice(logits[:labeled], *target),
            _dice(unmixed[:labeled], *target),
        ]
        if progress.step >= within_from:
            terms.append(_dice(self._within([level[:labeled] for level in encoded]), *target))
        labels = self._pseudo_labels(taught, [level[labeled:] for level in encoded], batch, progress)
        consistency = _dice(unmixed[labeled:], labels, batch.unlabeled_valid)

        supervised = torch.stack(terms).mean()
        return self.combine(
            supervised + self.options["location"] * location,
            consistency,
            progress,
            [logits[labeled:]],
            supervised=supervised,
            location=location,
        )

    def _recovered(self, images: Tensor) -> Tensor:
        """Logits of crops whose cubes were exchanged for the network and put back before its head."""
        order = random_order(len(images), self.grid, images.device)
        features = self.student.decode(self.student.encode(exchange(images, order)))[-1]
        recovered: Tensor = self.student.head(exchange(features, order.argsort(0)))
        return recovered

    def _located(self, images: Tensor, valid: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features (B, N, C, x, y, z) of every cube by itself, and the loss of telling where it is from."""
        cubes = partition(images, self.grid)
        seen = partition(valid[:, None], self.grid).flatten(2).any(2)
        levels = [level.unflatten(0, cubes.shape[:2]) for level in self.student.encode(cubes.flatten(0, 1))]
        losses = []
        for features, real in zip(levels[-1].flatten(2), seen, strict=True):
            places = real.nonzero()[:, 0]
            if len(places) > 1:  # batch norm cannot normalise a single one
                found = self.location(features[places]).float()
                losses.append(nn.functional.cross_entropy(found, places))
        loss = torch.stack(losses).mean() if losses else images.new_zeros(())
        return levels, loss

    def _within(self, encoded: list[Tensor]) -> Tensor:
        """Logits of crops put together from cubes that were each decoded by themselves."""
        count = encoded[0].shape[:2]
        features = self.student.decode([level.flatten(0, 1) for level in encoded])[-1]
        whole: Tensor = self.student.head(assemble(features.unflatten(0, count), self.grid))
        return whole

    @torch.no_grad()
    def _pseudo_labels(
        self, taught: Tensor, encoded: list[Tensor], batch: Batch, progress: Progress
    ) -> Tensor:
        """Labels (B, X, Y, Z) of the unlabeled crops from the teacher's logits, blended with the cubes'."""
        labels = taught.argmax(1)
        if progress.step > self.options["blend_after"] * progress.total:
            shares = self.counts / self.counts.max().clamp(min=1)
            weight = (shares ** (1.0 / self.options["temperature"]))[labels][:, None]
            labels = ((1.0 - weight) * taught + weight * self._within(encoded).float()).argmax(1)
        found = labels[batch.unlabeled_valid]
        self.recent += (found[:, None] == torch.arange(self.context.classes, device=found.device)).sum(0)
        if progress.step % WINDOW == 0:
            self.counts.copy_(self.recent)
            self.recent.zero_()
        return labels


def _location_head(width: int, places: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, LOCATION_WIDTH),
        nn.BatchNorm1d(LOCATION_WIDTH),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Linear(LOCATION_WIDTH, places),
    )


def _dice(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    loss: Tensor = dice_loss(logits.float().softmax(1), labels, valid=valid)
    return loss


METHOD = MagicNet
