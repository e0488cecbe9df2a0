"""ACMT by model uncertainty: agreement where the student's noisy passes disagree."""

from __future__ import annotations

import math

from torch import Tensor

from SFRCore.ssl.ambiguity import PAPER, AmbiguityConsensus
from SFRCore.ssl.consistency import rising
from SFRCore.ssl.contract import Batch, Progress
from SFRCore.ssl.losses import consistency_mse, entropy
from SFRCore.ssl.passes import mean_of_passes


class UncertaintyConsensus(AmbiguityConsensus):
    """Ambiguous is a voxel where the entropy of the student's mean prediction reaches tau(k) ln C.

    The mean is over ``passes`` with dropout and input noise of the student itself (of the teacher in
    UA-MT); they also move its batch statistics. The sum over channels is divided by the number of voxels,
    as released, so that the term is C times that of the other variants.
    """

    name = "acmt_mu"
    description = "ACMT, model uncertainty: consistency where noisy predictions of the student are in doubt"
    source = f"{PAPER}; AC-MT train_ACMT_MU_3D.py"
    defaults = {"threshold": (0.75, 0.90), "passes": 8}

    def check(self) -> None:
        super().check()
        self.check_pairs_of_passes()

    def ambiguous(self, probabilities: Tensor, batch: Batch, progress: Progress) -> Tensor:
        doubt = entropy(mean_of_passes(self.student, batch.unlabeled_images, self.options["passes"]))
        return doubt >= rising(self.options["threshold"], progress) * math.log(self.context.classes)

    def consistency(self, student: Tensor, teacher: Tensor, ambiguous: Tensor, valid: Tensor) -> Tensor:
        return self.context.classes * consistency_mse(student, teacher, ambiguous)


METHOD = UncertaintyConsensus
