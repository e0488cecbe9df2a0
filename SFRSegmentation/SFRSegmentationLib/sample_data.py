"""Sample cohorts in Slicer's Sample Data module: a click there gets one and opens its study in the panel."""

from __future__ import annotations

from typing import Any

import slicer
from slicer.i18n import tr as _

from .sample_cohorts import COHORTS

CATEGORY = "SFR"
MODULE = "SFRSegmentation"
_NAMES = {"synthetic": "SFRInvented", "left_atrium": "SFRLeftAtrium"}


def register() -> None:
    """Offer the cohorts; to be called when Slicer has started. What is offered already stays."""
    import SampleData

    logic = SampleData.SampleDataLogic
    if hasattr(logic, "registerCustomSampleDataCategory"):
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("SFR Segmentation"))
    icon = slicer.util.modulePath(MODULE)
    for name, cohort in COHORTS.items():
        logic.registerCustomSampleDataSource(
            category=CATEGORY,
            sampleName=_NAMES[name],
            # The list may not be empty, also where our own function does all the work.
            uris=[cohort.url],
            fileNames=[cohort.archive.filename if cohort.archive is not None else _NAMES[name]],
            nodeNames=[None],
            loadFiles=[False],
            thumbnailFileName=icon.replace(f"{MODULE}.py", f"Resources/Icons/{_NAMES[name]}.png"),
            customDownloader=DOWNLOADERS[name],
        )


def get_synthetic(source: Any) -> list[Any]:
    """Make the invented cohort; returns no nodes, since the study opens in the panel."""
    return _get("synthetic")


def get_left_atrium(source: Any) -> list[Any]:
    """Download the left atria; returns no nodes, since the study opens in the panel."""
    return _get("left_atrium")


DOWNLOADERS = {"synthetic": get_synthetic, "left_atrium": get_left_atrium}


def _get(name: str) -> list[Any]:
    """Show the panel, which asks, follows the download without blocking, and opens the study."""
    if slicer.util.mainWindow() is not None:
        slicer.util.selectModule(MODULE)
    panel = slicer.util.getModuleWidget(MODULE).panel
    step = panel.steps["setUp"]
    panel.open("setUp")
    step.attempt(lambda: step.downloads.getSample(name))
    return []
