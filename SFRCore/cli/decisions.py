"""A person's decisions on cases, each confirmed in a line, with a warning where it may be a slip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import typer

from SFRCore.cli.display import Display
from SFRCore.errors import command_line
from SFRCore.runtime.jobs import Job
from SFRCore.study import Study


class Decisions:
    """Takes decisions on the cases of a study and says what was done; ``quiet`` leaves the lines out."""

    def __init__(self, study: Study, display: Display, *, quiet: bool) -> None:
        self.study, self.display, self.quiet = study, display, quiet

    def set_role(self, ids: Sequence[str], role: str) -> None:
        """Change the role of cases; warns where a running job may have learned from a new test case."""
        learned = [id for id in ids if role == "test" and self.study.case(id).role == "labeled"]
        self.study.set_role(ids, role)
        for id in ids:
            self._say(f"{id}: {role} now")
        if learned and Job.running(self.study.root) is not None:
            self.display.warn(
                f"The job that is running may have learned from {', '.join(learned)} already. Its results "
                "are not scored there, and the next run starts anew without the label."
            )

    def set_reference(self, id: str, path: Path) -> None:
        self.study.set_reference(id, path)
        self._say(f"{id}: {path} is its reference now, which only evaluate and the report read")

    def label(self, id: str, path: Path, origin: str) -> None:
        """Take a label drawn or corrected by a person; warns of an empty one."""
        if origin == "corrected":
            self.study.accept_corrected(id, path)
            if self.study.draft(id) is not None:
                self.display.warn(f"Case {id} has a draft of other corrections, which stays as it is.")
        else:
            self.study.accept_label(id, path, origin)
        self._say(f"{id}: {path} is its label now")
        self._warn_if_blank(id, "The label that was given")

    def accept(self, id: str) -> None:
        """Accept the newest result; warns where it is empty, or takes the place of a label by hand."""
        before = self.study.case(id)
        number, origin, role = before.label_number, before.label_origin, before.role
        kept = before.label
        self.study.accept(id)
        if self.study.case(id).label_number == number:
            self._say(f"{id}: already accepted")
            return
        self._say(f"{id}: accepted, its newest result is its label now")
        if role == "labeled" and origin in ("expert", "corrected"):
            self.display.warn(
                f"Case {id} had a label by hand, which the result has replaced for training; it is kept as "
                f"{kept}."
            )
        self._warn_if_blank(id, "The accepted result")

    def reject(self, id: str) -> None:
        self.study.reject(id)
        self._say(f"{id}: rejected, it is kept out of training")

    def unreject(self, id: str) -> None:
        was = self.study.case(id).review
        self.study.unreject(id)
        self._say(f"{id}: back in the queue" if was == "rejected" else f"{id}: it was not rejected")

    def _warn_if_blank(self, id: str, what: str) -> None:
        if self.study.is_blank(id):
            back = command_line("sfr", "review", self.study.root, "--role", f"ignored={id}")
            self.display.warn(
                f"{what} of case {id} is empty: no voxel belongs to a structure, and the next run learns "
                "that nothing is there. If that is wrong, give a corrected label or leave the case out:  "
                + back
            )

    def _say(self, message: str) -> None:
        if not self.quiet:
            typer.echo(message)


def nothing_to_review(study: Study) -> str:
    """Why the queue is empty, and what to do next."""
    waiting = study.unlabeled_cases(for_training=True)
    if waiting:
        run = command_line("sfr", "run", study.root)
        return f"Nothing to review: no unlabeled case has a result yet. Make them:  {run}"
    reviewed = Counter(case.review for case in study.cases.values() if case.review != "unseen")
    if not reviewed:
        return "Nothing to review: the study has no unlabeled case."
    counts = ", ".join(f"{number} {review}" for review, number in sorted(reviewed.items()))
    alone = command_line("sfr", "run", study.root, "--recipe", "baseline", "--ssl", "supervised")
    return f"Every case is reviewed: {counts}. Add volumes, or train on the labels alone:  {alone}"
