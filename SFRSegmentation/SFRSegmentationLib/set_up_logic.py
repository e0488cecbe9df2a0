"""Step 1 as methods for the console: each returns when it is done, while Slicer stays alive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .chore_follower import await_chore
from .chores import start_chore
from .places import packages_folder, samples_folder
from .worker import start_command
from .worker_python import find_worker_python


class SetUpLogic:
    """What the Set up step does. Nothing is asked here: calling a method is the consent.

    Every method raises SFRError where it fails, and InputError where a process cannot be started.
    """

    def installPackages(self, wheels: Path | str | None = None) -> str:
        """Install the worker's packages into their private folder, from a folder of wheels where one is
        given; returns the state afterwards ("ready").
        """
        return str(
            await_chore(
                start_chore(
                    "install",
                    folder=str(packages_folder()),
                    python=find_worker_python().program,
                    wheels=None if wheels is None else str(wheels),
                )
            )
        )

    def removePackages(self) -> int:
        """Remove the worker's packages; returns the bytes that were freed."""
        return int(await_chore(start_chore("remove", folder=str(packages_folder()))))

    def downloadCheckpoint(self, name: str = "vit_b") -> Path:
        """Download a model checkpoint, vit_b, vit_l or vit_h; returns its file."""
        return Path(await_chore(start_chore("checkpoint", name=name)))

    def makeSample(self, name: str = "synthetic") -> Path:
        """Make the invented cohort, or download "left_atrium"; returns the folder of the study."""
        return Path(await_chore(start_chore("sample", name=name, folder=str(samples_folder()))))

    def doctor(self) -> dict[str, Any]:
        """What the worker says of itself: packages, devices with their free memory, checkpoints."""
        return dict(await_chore(start_command(["doctor"])))
