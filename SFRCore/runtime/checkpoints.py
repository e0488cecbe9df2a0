"""Training checkpoints: written atomically, the last two kept, found again by what they belong to."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch

from .files import atomic_path

KEPT = 2
PATTERN = re.compile(r"(?P<model>[\w-]+)-(?P<identity>[0-9a-f]+)-(?P<step>\d{7})\.pt$")


class Checkpoints:
    """The checkpoints of one training, over all runs of a study.

    ``model`` names what is trained, in letters, digits, "_" and "-": each model of a study has its own name.
    ``identity`` is the fingerprint of everything that the training depends on: a checkpoint of another
    fingerprint is never continued.
    """

    def __init__(self, runs_dir: Path, run_dir: Path, model: str, identity: str) -> None:
        self.runs_dir, self.folder = runs_dir, run_dir / "checkpoints"
        self.model, self.identity = model, identity

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after ``step`` steps. Its last two are kept, and the two youngest of all trainings
        of this model with other settings or labels.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / f"{self.model}-{self.identity}-{step:07d}.pt"
        with atomic_path(target) as temporary:
            torch.save({"step": step, "state": state}, temporary)
        own = [path for _, path in self.found()]
        _remove(own[KEPT:] + self._older_others(own))
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
        """Remove the checkpoints of this training, once its model is written. Of trainings with other
        settings or labels that were cut off the two youngest stay: they can be gone on with.
        """
        own = [path for _, path in self.found()]
        _remove(own + self._older_others(own))

    def _older_others(self, own: Collection[Path]) -> list[Path]:
        """What is left of other trainings of this model, but for the two youngest."""
        others = [path for _, path in self._matching("*") if path not in own]
        return sorted(others, key=_written, reverse=True)[KEPT:]

    def _matching(self, identity: str) -> list[tuple[int, Path]]:
        """Step and path of this model's checkpoints in any run, newest step first."""
        matches = []
        for path in self.runs_dir.glob(f"*/checkpoints/{self.model}-{identity}-*.pt"):
            parts = PATTERN.match(path.name)
            if parts and parts["model"] == self.model:
                matches.append((int(parts["step"]), path))
        return sorted(matches, reverse=True)


def _written(path: Path) -> float:
    """When a file was written; 0 where it is gone meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink()
