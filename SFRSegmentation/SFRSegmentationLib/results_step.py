"""Step 5: predictions as segmentations, volumes, scores, export."""

from __future__ import annotations

from slicer.i18n import tr as _

from .step import Step


class ResultsStep(Step):
    """What the student found."""

    uiFile = "Results.ui"
    title = _("Results")
