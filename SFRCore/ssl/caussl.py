"""CauSSL: several decoders, or networks, that agree although their kernels must not depend on each other."""

from __future__ import annotations

from functools import partial
from itertools import permutations

import torch
from torch import Tensor, nn

from SFRCore.ssl.consistency import ConsistencyMethod
from SFRCore.ssl.contract import Batch, MethodContext, Progress, Step
from SFRCore.ssl.decoders import interpolate, keep_decoder
from SFRCore.ssl.dependence import Dependence
from SFRCore.ssl.losses import consistency_mse, cross_entropy, dice_loss
from SFRCore.ssl.tracing import decoder_names
from SFRCore.students.student import Student

REFERENCE = 5000
PERIOD = 60
"""Iterations between two maximisations of the dependence, and updates in each."""
CROSS_AFTER, CROSS_WEIGHT = 400, 0.3


class CauSSL(ConsistencyMethod):
    """L = sum_i [(CE + Dice)/2 of the labeled crops + 3 dependence_i] + lambda(k) * disagreement.

    ``variant="mc"``: one encoder, three decoders; the second and third go up by a 1 x 1 x 1 convolution and
    trilinear or nearest interpolation. Disagreement is the sum over ordered pairs i, j of the mean
    (p_i - q_j)^2 over unlabeled crops, q_j being p_j^2 with sum 1, without gradient. ``variant="cps"``: two
    networks; from 400 iterations on 0.3 times the sum of both cross-entropies of one with the other's labels.

    Dependence of decoder i: how far its kernels are combinations of those of the others; see ``Dependence``.
    The combinations are adapted, in 60 updates, every 60 iterations, for cps from 500 on, and count from
    then. For mc these are the kernels of the decoder but not those that enlarge, and of the head; for cps
    all. Dice over foreground classes, epsilon 1e-5. All these iterations are of 5000 and scale with the
    training, as do the updates. Of the released schedule the rise of the weight is kept; the learning rate
    follows the preset. ``student`` is the first decoder with the encoder, or the first network.

    The released three-decoder code reads the kernels of the second and third decoder without gradient, so
    that only the first is kept apart; here each one is.
    """

    name = "caussl"
    description = "CauSSL: decoders that agree, with kernels kept independent of each other"
    source = "Miao et al., ICCV 2023; CauSSL train_CT_MCCauSSL.py, train_CT_CPSCauSSL.py"
    keeps = frozenset({"consistency", "ramp"})
    defaults = {"variant": "mc", "ramp": (40, 150, REFERENCE), "independence": 3.0}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.check_choice("variant", ("mc", "cps"))
        self.cross = self.options["variant"] == "cps"
        self.start = 500 if self.cross else 40
        if self.cross:
            self.others = nn.ModuleList([self.new_student("second")])
            convolutions: tuple[type[nn.Module], ...] = (nn.Conv3d, nn.ConvTranspose3d)
            inside = [name for name, _ in self.student.named_parameters()]
        else:
            self.others = nn.ModuleList(
                self.seeded(mode, partial(self._decoder, mode)) for mode in ("trilinear", "nearest")
            )
            convolutions, inside = (nn.Conv3d,), decoder_names(self.student, context.patch)
        self.kernels = [
            f"{name}.weight"
            for name, module in self.student.named_modules()
            if isinstance(module, convolutions) and f"{name}.weight" in inside
        ]
        rows = [len(self.student.get_parameter(name)) for name in self.kernels]
        count = len(self.others)
        self.dependences = self.seeded(
            "dependence",
            lambda: nn.ModuleList(Dependence(rows, [count * row for row in rows]) for _ in range(count + 1)),
        )

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labels)
        reached, before = (REFERENCE * k // progress.total for k in (progress.step, progress.step - 1))
        first = (self.start // PERIOD + 1) * PERIOD
        groups = self._kernel_groups()
        if reached >= first and reached // PERIOD > before // PERIOD:
            updates = max(1, round(PERIOD * progress.total / REFERENCE))
            for measure, (own, others) in zip(self.dependences, groups, strict=True):
                measure.strengthen(own, others, updates)  # type: ignore[operator]
        logits = self._logits(batch.images)
        supervised = torch.stack([self._supervised(one[:labeled], batch) for one in logits]).sum()
        disagreement = self._disagreement([one[labeled:] for one in logits], batch.unlabeled_valid, reached)
        dependence = supervised.new_zeros(())
        if reached >= first:
            found = [measure(*group) for measure, group in zip(self.dependences, groups, strict=True)]
            dependence = torch.stack(found).sum()
        step = self.combine(
            supervised,
            disagreement,
            progress,
            [one[labeled:] for one in logits],
            dependence=dependence,
        )
        step.loss = step.loss + self.options["independence"] * dependence
        step.pseudo_average = True
        return step

    def _decoder(self, mode: str) -> Student:
        return keep_decoder(interpolate(self.context.make_student(), mode), self.context.patch)

    def _logits(self, images: Tensor) -> list[Tensor]:
        networks = [self.student, *self.others]
        if self.cross:
            return [network(images) for network in networks]
        features = self.student.encode(images)
        return [network.head(network.decode(features)[-1]) for network in networks]  # type: ignore[operator, union-attr]

    def _supervised(self, logits: Tensor, batch: Batch) -> Tensor:
        dice = dice_loss(
            logits.float().softmax(1),
            batch.labels,
            valid=batch.labeled_valid,
            epsilon=1e-5,
            foreground_only=True,
        )
        return 0.5 * (cross_entropy(logits, batch.labels, batch.labeled_valid) + dice)

    def _disagreement(self, logits: list[Tensor], valid: Tensor, reached: int) -> Tensor:
        if self.cross:
            if reached <= CROSS_AFTER:
                return logits[0].new_zeros((), dtype=torch.float32)
            pairs = [(one, other.argmax(1)) for one, other in permutations(logits, 2)]
            return CROSS_WEIGHT * torch.stack([cross_entropy(*pair, valid) for pair in pairs]).sum()
        found = [one.float().softmax(1) for one in logits]
        sharp = [(squares / squares.sum(1, keepdim=True)).detach() for squares in (p.square() for p in found)]
        terms = [consistency_mse(found[i], sharp[j], valid) for i, j in permutations(range(len(found)), 2)]
        return torch.stack(terms).sum()

    def _kernel_groups(self) -> list[tuple[list[Tensor], list[Tensor]]]:
        """For every network its kernels, and those of the others one below the other, without gradient."""
        kernels = [
            [network.get_parameter(name) for name in self.kernels] for network in (self.student, *self.others)
        ]
        groups = []
        for index, own in enumerate(kernels):
            rest = kernels[:index] + kernels[index + 1 :]
            others = [
                torch.cat([one.flatten(1).detach() for one in layer]) for layer in zip(*rest, strict=True)
            ]
            groups.append((own, others))
        return groups


METHOD = CauSSL
