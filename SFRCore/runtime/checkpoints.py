"""Training checkpoints: written atomically, the last two kept, found again by what they belong to."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import torch

from .files import atomic_path

KEPT = 2
PATTERN = re.compile(r"(?P<stage>[a-z_]+)-(?P<identity>[0-9a-f]+)-(?P<step>\d{7})\.pt$")


class Checkpoints:
    """The checkpoints of one training, over all runs of a study.

    ``identity`` is the fingerprint of everything that the training depends on: a checkpoint of another
    fingerprint is never continued.
    """

    def __init__(self, runs_dir: Path, run_dir: Path, stage: str, identity: str) -> None:
        self.runs_dir, self.folder = runs_dir, run_dir / "checkpoints"
        self.stage, self.identity = stage, identity

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after ``step`` steps, then remove all but the last two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{self.stage}-{self.identity}-{step:07d}.pt"
        with atomic_path(target) as temporary:
            torch.save({"step": step, "state": state}, temporary)
        for _, old in self.found()[KEPT:]:
            with contextlib.suppress(OSError):
                old.unlink()
        return target

    def found(self) -> list[tuple[int, Path]]:
        """Checkpoints of this training in any run, newest step first."""
        return self._matching(self.identity)

    def load(self, device: torch.device) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that can be read; a damaged one is passed over for the one before it."""
        for _, path in self.found():
            try:
                saved = torch.load(path, map_location=device, weights_only=True)
                return int(saved["step"]), saved["state"]
            except Exception:  # torch raises many kinds for a damaged file
                continue
        return None

    def clear(self) -> None:
        """Remove the checkpoints of this stage, once its model is written: those of this training, and of
        trainings with other settings or labels that were cut off and left.
        """
        for _, path in self._matching("*"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _matching(self, identity: str) -> list[tuple[int, Path]]:
        """Step and path of this stage's checkpoints in any run, newest step first."""
        matches = []
        for path in self.runs_dir.glob(f"*/checkpoints/{self.stage}-{identity}-*.pt"):
            parts = PATTERN.match(path.name)
            if parts and parts["stage"] == self.stage:
                matches.append((int(parts["step"]), path))
        return sorted(matches, reverse=True)
