"""ACMT: Mean Teacher that asks for agreement only where the student is in doubt."""

from __future__ import annotations

import math

from torch import Tensor

from SFRCore.ssl.ambiguity import PAPER, AmbiguityConsensus
from SFRCore.ssl.consistency import rising
from SFRCore.ssl.contract import Batch, Progress
from SFRCore.ssl.losses import entropy


class EntropyConsensus(AmbiguityConsensus):
    """Ambiguous is a voxel whose entropy under the student, divided by ln C, reaches tau(k).

    tau goes from the first to the second number of ``threshold`` along the ramp over the whole training.
    The released numbers suit the left atrium and are strict; a falling (0.75, 0.60) is looser.
    """

    name = "acmt"
    description = "ACMT: consistency with an averaged teacher where the student is in doubt (by entropy)"
    source = f"{PAPER}; AC-MT train_ACMT_Ent_3D.py"
    defaults = {"threshold": (0.75, 0.95)}

    def ambiguous(self, probabilities: Tensor, batch: Batch, progress: Progress) -> Tensor:
        return entropy(probabilities) / math.log(self.context.classes) >= rising(
            self.options["threshold"], progress
        )


METHOD = EntropyConsensus
