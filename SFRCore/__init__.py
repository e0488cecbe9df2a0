"""SFR: semi-supervised segmentation of 3D medical images with a stitched, fine-tuned foundation model.

>>> import SFRCore as sfr
>>> study = sfr.Study.create("left-atria", structures={1: "Left atrium"})
>>> study.add("scan01.nrrd", label="scan01_la.nrrd", role="labeled")
>>> study.add_folder("scans")
>>> sfr.run(study, recipe="sfr", ssl="mean_teacher", preset="left_atrium")
"""

from __future__ import annotations

from typing import Any

from .errors import Cancelled, DiskFull, InputError, OutOfMemory, SFRError

__version__ = "0.1.0"
__all__ = [
    "Cancelled", "DiskFull", "InputError", "OutOfMemory", "SFRError", "Study", "estimate", "evaluate",
    "export", "predict_file", "run", "run_stage", "write_report",
]  # fmt: skip
_COMPUTING = {name: name for name in ("estimate", "evaluate", "export", "predict_file", "run", "run_stage")}
_COMPUTING["write_report"] = "report"


def __getattr__(name: str) -> Any:
    """What computes is imported when used: ``import SFRCore`` needs nothing that Slicer does not have."""
    if name == "Study":
        from .study import Study

        return Study
    if name in _COMPUTING:
        from . import api

        return getattr(api, _COMPUTING[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
