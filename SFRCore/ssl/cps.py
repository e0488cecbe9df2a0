"""CPS: two networks teach each other with their labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from SFRCore.ssl.consistency import ConsistencyMethod
from SFRCore.ssl.contract import Batch, MethodContext, Progress, Step
from SFRCore.ssl.losses import cross_entropy, segmentation_loss
from SFRCore.students.student import Student


class CrossPseudoSupervision(ConsistencyMethod):
    """L = sum over both networks of (CE + Dice)/2 of the labeled crops + lambda(k) * CE(z_i, argmax z_j).

    The second term is of the unlabeled crops; the other network's label carries no gradient. Convolutions
    begin Kaiming-normal in the first network and Xavier-normal in the second. The first is the student;
    pseudo-labels teach both. Released for 30000 iterations with a polynomial learning rate and a weight that
    rises until the end, in place of which the preset's schedule and rise are followed.
    """

    name = "cps"
    description = "CPS: two networks, each learns from the other's labels"
    source = "Chen et al., CVPR 2021; SSL4MIS train_cross_pseudo_supervision_3D.py"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.partner = self.new_student("partner")
        self.seeded("student weights", lambda: _filled(self.student, nn.init.kaiming_normal_))
        self.seeded("partner weights", lambda: _filled(self.partner, nn.init.xavier_normal_))

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labeled_images)
        both = [network(batch.images) for network in (self.student, self.partner)]
        supervised = [
            segmentation_loss(logits[:labeled], batch.labels, batch.labeled_valid, 1e-5) for logits in both
        ]
        unlabeled = [logits[labeled:] for logits in both]
        crossed = [
            cross_entropy(own, other.detach().argmax(1), batch.unlabeled_valid)
            for own, other in zip(unlabeled, unlabeled[::-1], strict=True)
        ]
        return self.combine(
            supervised[0] + supervised[1],
            crossed[0] + crossed[1],
            progress,
            unlabeled,
        )


def _filled(student: Student, initialise: Callable[[Tensor], Any]) -> Student:
    for module in student.modules():
        if isinstance(module, nn.Conv3d):
            initialise(module.weight)
    return student


METHOD = CrossPseudoSupervision
