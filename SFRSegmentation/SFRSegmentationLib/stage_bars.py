"""A progress bar with its remaining time for each stage of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import qt
from slicer.i18n import tr as _

from .job_progress import StageProgress
from .train_words import duration, stage_words

SCALE = 1000


class StageBars:
    """Rows in ``holder``'s form layout, made as stages begin."""

    def __init__(self, holder: Any) -> None:
        self._layout = holder.layout()
        self.bars: dict[str, Any] = {}
        self._labels: dict[str, Any] = {}

    def clear(self) -> None:
        """Remove all rows."""
        for widget in (*self.bars.values(), *self._labels.values()):
            self._layout.removeWidget(widget)
            widget.setParent(None)
            widget.deleteLater()
        self.bars, self._labels = {}, {}

    def show(self, stages: Mapping[str, StageProgress]) -> None:
        """Show how far each stage is; stages that measure nothing have no row."""
        for name, stage in stages.items():
            if not name or (not stage.total and stage.state == "running"):
                continue
            if name not in self.bars:
                self._add(name)
            bar = self.bars[name]
            bar.value = round(SCALE * stage.fraction)
            bar.setFormat(self._words(stage))
            bar.toolTip = f"{stage_words(name)}: {stage.message or self._words(stage)}"

    def _add(self, name: str) -> None:
        bar, label = qt.QProgressBar(), qt.QLabel(stage_words(name))
        bar.setRange(0, SCALE)
        bar.objectName, label.objectName = f"{name}Bar", f"{name}BarLabel"
        bar.accessibleName = label.toolTip = stage_words(name)
        self._layout.addRow(label, bar)
        self.bars[name], self._labels[name] = bar, label

    @staticmethod
    def _words(stage: StageProgress) -> str:
        if stage.state == "skipped":
            return _("was done before")
        if stage.state == "done":
            return _("done")
        words = f"{100 * stage.fraction:.0f} %"
        if stage.remaining is not None:
            words += ", " + _("{time} left").format(time=duration(stage.remaining))
        return words
