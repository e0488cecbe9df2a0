"""Training on the labeled cases alone: the lower bound, and with every case labeled the upper bound."""

from __future__ import annotations

from SFRCore.errors import InputError
from SFRCore.ssl.contract import Batch, Method, MethodContext, Phase, Progress, Step
from SFRCore.ssl.losses import cross_entropy, dice_loss


class Supervised(Method):
    """L = (CE + Dice)/2 of four labeled crops a batch.

    ``dice``: ``foreground`` classes (UA-MT, the default) or ``all`` (SSL4MIS).
    """

    name = "supervised"
    description = "Supervised: labeled cases only, the bound to compare with"
    source = "UA-MT train_LA.py"
    uses_unlabeled = False
    defaults = {"dice": "foreground"}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.student = self.new_student("student")

    def check(self) -> None:
        super().check()
        self.check_choice("dice", ("foreground", "all"))
        if self.context.with_pseudo_labels:
            raise InputError(
                "The method supervised learns from labeled cases only and cannot use pseudo-labels.",
                hint="Choose self_training to learn from the pseudo-labels alone.",
            )

    def plan(self, total: int) -> list[Phase]:
        return [self.phase("training", labeled=4, unlabeled=0)]

    def step(self, batch: Batch, progress: Progress) -> Step:
        logits = self.student(batch.labeled_images)
        entropy = cross_entropy(logits, batch.labels, batch.labeled_valid)
        dice = dice_loss(
            logits.float().softmax(1),
            batch.labels,
            valid=batch.labeled_valid,
            epsilon=1e-5,
            foreground_only=self.options["dice"] == "foreground",
        )
        return Step(
            loss=0.5 * (entropy + dice), parts={"cross_entropy": entropy.detach(), "dice": dice.detach()}
        )


METHOD = Supervised
