"""Self-training: round by round, a student learns from the labels its predecessor gave."""

from __future__ import annotations

from typing import Any

from SFRCore.errors import InputError
from SFRCore.ssl.contract import Batch, Method, MethodContext, Phase, Progress, Step
from SFRCore.ssl.losses import segmentation_loss


class SelfTraining(Method):
    """L = (CE + Dice)/2 of the labeled crops + w * the same of the unlabeled crops with their pseudo-labels.

    Each of ``rounds`` trains a new network from scratch. The first learns from the foundation model's
    pseudo-labels, or without these from the labeled crops alone; the later ones from the predictions of the
    network before. The rounds share the iterations, so that the method costs what others cost: for rounds of
    full length ask for as many times more. w is the weight of the pseudo-label loss; where it falls, it does
    so in each round.
    """

    name = "self_training"
    description = "Self-training: rounds of fresh students, each taught by the one before"
    source = "Bai et al., MICCAI 2017; SFR train_retraining.py with consistency 0 is the first round"
    defaults = {"rounds": 3}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.student = self.new_student("round 1")

    def check(self) -> None:
        super().check()
        rounds = self.options["rounds"]
        if not isinstance(rounds, int) or rounds < 1:
            raise InputError(
                f"Self-training cannot run {rounds} rounds.", hint="Choose a whole number from 1 on."
            )

    def plan(self, total: int) -> list[Phase]:
        rounds: int = self.options["rounds"]
        phases = []
        for number in range(1, rounds + 1):
            fields: dict[str, Any] = {"pseudo_labels": "student"} if number > 1 else {}
            if number == 1 and not self.context.with_pseudo_labels:
                fields["unlabeled"] = 0
            phases.append(self.phase(f"round {number}", 1 / rounds, restart=True, **fields))
        return phases

    def begin(self, phase: Phase) -> None:
        self.student = self.new_student(phase.name)

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labeled_images)
        logits = self.student(batch.images)
        supervised = segmentation_loss(logits[:labeled], batch.labels, batch.labeled_valid)
        step = Step(loss=supervised, parts={"supervised": supervised.detach()})
        if progress.phase.pseudo_labels != "none":
            if batch.pseudo_labels is None:
                raise ValueError("The batch carries no pseudo-labels.")
            taught = segmentation_loss(logits[labeled:], batch.pseudo_labels, batch.unlabeled_valid)
            step.loss = supervised + self.context.pseudo_weight_at(progress) * taught
            step.parts["pseudo_label"] = taught.detach()
        return step


METHOD = SelfTraining
