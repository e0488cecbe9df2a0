"""What methods with a growing consistency term share: student, ramp, teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from SFRCore.errors import InputError
from SFRCore.ssl.contract import Method, MethodContext, Progress, Step
from SFRCore.ssl.ema import make_teacher, update_ema
from SFRCore.ssl.schedules import Ramp, gaussian_rampup


class ConsistencyMethod(Method):
    """A method with L = supervised + lambda(k) * consistency and one student.

    The option ``consistency`` is the largest lambda, ``ramp`` (T, q, K) of its rise, for a training of K
    iterations.
    """

    defaults = {"consistency": 0.1, "ramp": (40, 150, 6000)}
    student_options: ClassVar[Mapping[str, Any]] = {}
    """What its student is built with, where that is not as the user chose."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.ramp = Ramp(self.options["consistency"], *self.options["ramp"])
        self.student = self.new_student("student", **self.student_options)
        self.student.check_patch(context.patch)

    def check(self) -> None:
        super().check()
        if min(self.options["ramp"][1:]) <= 0:
            raise InputError(f"The method {self.name} needs the last two numbers of ramp above 0.")
        if self.ramp.maximum < 0 or self.ramp.length < 0:
            raise InputError(f"The method {self.name} cannot use a consistency or a ramp below 0.")

    def check_pairs_of_passes(self) -> None:
        """Raise InputError unless the option ``passes`` is an even number, at least 2."""
        if self.options["passes"] < 2 or self.options["passes"] % 2:
            raise InputError(
                f"The method {self.name} cannot use passes={self.options['passes']}.",
                hint="Choose an even number from 2 on.",
            )

    def combine(
        self,
        supervised: Tensor,
        consistency: Tensor,
        progress: Progress,
        unlabeled_logits: list[Tensor],
        /,
        **parts: Tensor,
    ) -> Step:
        """The step of this sum; ``parts`` are further scalars for the log, or in place of the two."""
        weight = self.ramp(progress.step_in_phase, progress.phase_total)
        shown = {"supervised": supervised, "consistency": consistency, **parts}
        return Step(
            loss=supervised + weight * consistency,
            parts={name: value.detach() for name, value in shown.items()}
            | {"consistency_weight": consistency.new_tensor(weight)},
            unlabeled_logits=unlabeled_logits,
        )


class TaughtMethod(ConsistencyMethod):
    """A consistency method whose teacher is the student's average over time (option ``ema_decay``)."""

    defaults = {"ema_decay": 0.99}

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.teacher = make_teacher(self.student)

    def check(self) -> None:
        super().check()
        self.check_shares("ema_decay")

    def after_step(self, progress: Progress) -> None:
        update_ema(self.teacher, self.student, progress.step_in_phase, self.options["ema_decay"])


def rising(limits: tuple[float, float], progress: Progress) -> float:
    """A threshold that goes from the first limit to the second along the Gaussian ramp over the phase."""
    first, last = limits
    return first + (last - first) * gaussian_rampup(progress.step_in_phase, progress.phase_total)
