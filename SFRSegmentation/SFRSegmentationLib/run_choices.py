"""The choices of a run in the Train step: read from its controls, and put back from what ran before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from SFRCore.presets import PRESETS
from SFRCore.settings import Settings

from . import catalogue
from .train_words import device_choices, foundation_words, recipe_words, student_words, tuning_words

DEFAULTS = {
    "recipe": "sfr", "ssl": "mean_teacher", "student": "", "tuning": "", "device": "auto",
    "iterations_finetune": 0, "iterations_retrain": 0,
}  # fmt: skip
FOUNDATION = "vit_b"
"""Chosen for a study in which nothing ran yet."""
OF_PREDICT = ("recipe", "ssl", "device")
"""The choices that a prediction depends on; it says nothing of the others."""


def choices_of(jobs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What was chosen for the newest whole run among ``jobs`` (as ``Job.info`` tells of them, oldest first);
    where none was a whole run, each option by the newest job that has it. {} where nothing ran.
    """
    runs = [info for info in jobs if info.get("command") == "run"]
    chosen: dict[str, str] = {}
    for info in runs[-1:] or jobs:
        chosen.update(_chosen(info))
    return chosen


def _chosen(info: Mapping[str, Any]) -> dict[str, str]:
    """The options of one job by name: by the words it was started with, else by what it wrote down."""
    words = [str(word) for word in info.get("args") or ()]
    settings = (info.get("config") or {}).get("settings") or {}
    used = {name: str(value) for name, value in settings.items() if value is not None}
    named = {w[2:].replace("-", "_"): v for w, v in zip(words, words[1:], strict=False) if w[:2] == "--"}
    if info.get("command") == "predict":
        return {name: value for name, value in (named if words else used).items() if name in OF_PREDICT}
    foundation = used.get("foundation", Settings().foundation)
    return {"foundation": foundation, **(named if words else used)}


class RunChoices:
    """Fills the controls of ``ui`` and reads them. ``options()`` are those of ``sfr run``;
    ``onChange`` is called when another recipe, foundation or method is chosen."""

    def __init__(self, ui: Any, onChange: Callable[[], Any]) -> None:
        self.ui = ui
        self._combos = {
            "preset": ui.presetCombo, "recipe": ui.recipeCombo, "foundation": ui.foundationCombo,
            "device": ui.deviceCombo, "ssl": ui.methodCombo, "student": ui.studentCombo,
            "tuning": ui.tuningCombo,
        }  # fmt: skip
        self._spins = {"iterations_finetune": ui.finetuneSteps, "iterations_retrain": ui.retrainSteps}
        self._devices: list[tuple[str, str]] = []
        for name, preset in PRESETS.items():
            ui.presetCombo.addItem(preset.summary if name != "auto" else _("Any volumes (automatic)"), name)
        for name, summary in catalogue.recipes().items():
            ui.recipeCombo.addItem(recipe_words().get(name, name), name)
            ui.recipeCombo.setItemData(ui.recipeCombo.count - 1, summary, qt.Qt.ToolTipRole)
        for name, words in foundation_words().items():
            ui.foundationCombo.addItem(words, name)
        for name, words in catalogue.methods().items():
            ui.methodCombo.addItem(words.partition(":")[0], name)
            ui.methodCombo.setItemData(ui.methodCombo.count - 1, words, qt.Qt.ToolTipRole)
        for name in ("", *catalogue.students()):
            ui.studentCombo.addItem(student_words().get(name, name), name)
        for name, words in tuning_words().items():
            ui.tuningCombo.addItem(words, name)
        self.showDevices(None)
        for name in ("recipe", "foundation", "ssl"):
            self._combos[name].connect("currentIndexChanged(int)", lambda index: onChange())

    def showDevices(self, doctor: Any) -> None:
        """Offer the devices that the worker told of; the choice stays."""
        found = device_choices(doctor)
        if found != self._devices:
            chosen = self.value("device") if self._devices else "auto"
            self._devices = found
            combo = self.ui.deviceCombo
            combo.clear()
            for text, name in found:
                combo.addItem(text, name)
            self.choose("device", chosen)

    def showFile(self, file: str) -> None:
        """Offer a checkpoint file that the user chose in step 1."""
        if file and self.ui.foundationCombo.findData(file) < 0:
            self.ui.foundationCombo.addItem(Path(file).name, file)

    def value(self, name: str) -> str:
        """What is chosen in one of the lists."""
        return str(self._combos[name].currentData)

    def choose(self, name: str, value: str) -> None:
        """Choose in a list; a value that it lacks (a file, a device) is added."""
        combo = self._combos[name]
        if combo.findData(value) < 0:
            combo.addItem(value, value)
        combo.setCurrentIndex(combo.findData(value))

    def options(self) -> dict[str, Any]:
        """What is chosen, less what is the default anyway."""
        chosen: dict[str, Any] = {name: self.value(name) for name in self._combos}
        chosen.update({name: spin.value for name, spin in self._spins.items()})
        return {name: value for name, value in chosen.items() if value != DEFAULTS.get(name)}

    def show(self, preset: str, chosen: Mapping[str, str]) -> None:
        """Show a study's preset, and what was ``chosen`` there before, by the names of the options."""
        fallbacks = {**DEFAULTS, "preset": preset, "foundation": FOUNDATION}
        for name in self._combos:
            self.choose(name, chosen.get(name, str(fallbacks[name])))
        for name, spin in self._spins.items():
            text = chosen.get(name, "0")
            spin.value = int(text) if text.isdecimal() else 0
