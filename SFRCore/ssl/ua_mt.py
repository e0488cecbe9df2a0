"""UA-MT: Mean Teacher that asks for agreement only where the teacher is certain."""

from __future__ import annotations

import math

import torch

from SFRCore.ssl.consistency import TaughtMethod, rising
from SFRCore.ssl.contract import Batch, Progress, Step
from SFRCore.ssl.ema import perturb
from SFRCore.ssl.losses import consistency_mse, cross_entropy, dice_loss, entropy, valid_mean
from SFRCore.ssl.passes import mean_of_passes


class UncertaintyAwareMeanTeacher(TaughtMethod):
    """L = (CE + Dice)/2 of the labeled crops + lambda(k) * sum M (p_s - p_t)^2 / (C sum M).

    p_t is the teacher's prediction in one noisy pass. M marks voxels where the entropy of its mean
    prediction over ``passes`` further noisy passes with dropout lies below tau(k) ln C; tau goes from the
    first to the second number of ``threshold``. ``consistency_on``: ``unlabeled`` crops (the script that
    the README of UA-MT runs) or ``all`` (its other script). ``dice``: ``foreground`` classes (UA-MT) or
    ``all`` (SSL4MIS). The released code has two classes; ln 2 became ln C, and the factor 2 became C.
    """

    name = "ua_mt"
    description = "UA-MT: consistency with an averaged teacher where it is certain"
    source = "Yu et al., MICCAI 2019; UA-MT train_LA_meanteacher_certainty_unlabel.py"
    defaults = {
        "threshold": (0.75, 1.0),
        "passes": 8,
        "consistency_on": "unlabeled",
        "dice": "foreground",
    }

    def check(self) -> None:
        super().check()
        self.check_pairs_of_passes()
        self.check_choice("consistency_on", ("unlabeled", "all"))
        self.check_choice("dice", ("foreground", "all"))

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labeled_images)
        compared = 0 if self.options["consistency_on"] == "all" else labeled
        images, valid = batch.images, batch.valid[compared:]
        logits = self.student(images)
        probabilities = logits.float().softmax(1)
        with torch.no_grad():
            taught = self.teacher(perturb(images[compared:])).float().softmax(1)
            doubt = entropy(mean_of_passes(self.teacher, images[compared:], self.options["passes"]))
            certain = doubt < rising(self.options["threshold"], progress) * math.log(self.context.classes)
        dice = dice_loss(
            probabilities[:labeled],
            batch.labels,
            valid=batch.labeled_valid,
            epsilon=1e-5,
            foreground_only=self.options["dice"] == "foreground",
        )
        return self.combine(
            0.5 * (cross_entropy(logits[:labeled], batch.labels, batch.labeled_valid) + dice),
            consistency_mse(probabilities[compared:], taught, valid & certain),
            progress,
            [logits[labeled:]],
            certain=valid_mean(certain.float(), valid),
        )


METHOD = UncertaintyAwareMeanTeacher
