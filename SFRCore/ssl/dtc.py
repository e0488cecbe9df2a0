"""DTC: one network segments and measures the distance to the boundary, and both answers agree."""

from __future__ import annotations

import torch
from torch import nn

from SFRCore.errors import InputError
from SFRCore.ssl.consistency import ConsistencyMethod
from SFRCore.ssl.contract import Batch, MethodContext, Progress, Step
from SFRCore.ssl.losses import consistency_mse, dice_loss
from SFRCore.ssl.signed_distance import signed_distance
from SFRCore.ssl.tracing import feature_shapes


class DualTaskConsistency(ConsistencyMethod):
    """L = Dice of the labeled crops + w * mean (u - sdf)^2 there + lambda(k) * mean (sigmoid(-k u) - p)^2.

    u = tanh of a second head, one channel a foreground class; sdf the signed distance of the label; p the
    foreground probabilities. The last term is of all crops, and gradients flow through both sides. w is
    ``distance_weight``, k ``steepness``. The largest lambda is ten times that of other methods, and so no
    preset replaces it. There is no cross-entropy, as released.

    p is the softmax of the student's head, which for one structure is the sigmoid of the difference of its
    two channels: the released network has that difference as its only channel. For several structures
    each term is the mean over them.
    """

    name = "dtc"
    description = "DTC: segmentation and distance to the boundary agree"
    source = "Luo et al., AAAI 2021; DTC train_la_dtc.py"
    keeps = frozenset({"consistency"})
    defaults = {"consistency": 1.0, "distance_weight": 0.3, "steepness": 1500.0}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        channels = feature_shapes(self.student, context.patch)[1][-1][0]
        self.distance_head = self.seeded("distance", lambda: nn.Conv3d(channels, context.classes - 1, 1))

    def check(self) -> None:
        super().check()
        if self.options["steepness"] <= 0:
            raise InputError("The method dtc needs steepness above 0.")
        if self.options["distance_weight"] < 0:
            raise InputError("The method dtc cannot use distance_weight below 0.")

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labeled_images)
        features = self.student.decode(self.student.encode(batch.images))[-1]
        logits = self.student.head(features)
        probabilities = logits.float().softmax(1)
        distance = self.distance_head(features).float().tanh()
        truth = signed_distance(batch.labels, batch.labeled_valid, self.context.classes)
        dice = dice_loss(
            probabilities[:labeled],
            batch.labels,
            valid=batch.labeled_valid,
            epsilon=1e-5,
            foreground_only=True,
        )
        shape = consistency_mse(distance[:labeled], truth, batch.labeled_valid)
        as_mask = torch.sigmoid(-self.options["steepness"] * distance)
        return self.combine(
            dice + self.options["distance_weight"] * shape,
            consistency_mse(as_mask, probabilities[:, 1:], batch.valid),
            progress,
            [logits[labeled:]],
            dice=dice,
            distance=shape,
        )


METHOD = DualTaskConsistency
