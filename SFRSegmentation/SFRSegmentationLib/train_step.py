"""Step 3: one Run button, progress, Cancel and Continue."""

from __future__ import annotations

from slicer.i18n import tr as _

from .step import Step


class TrainStep(Step):
    """Starting and following jobs."""

    uiFile = "Train.ui"
    title = _("Train")
