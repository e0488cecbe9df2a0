"""Finding moved images and copying images into the study, in a process of its own: files are read whole."""

from __future__ import annotations

from typing import Any

from SFRCore.study import Study


def relink(reporter: Any, study: str, folder: str) -> dict[str, Any]:
    """Find images that were moved to ``folder``. Returns the ids found, and why others were not.

    Stopped between two images it changes nothing.
    """
    done = Study.open(study).relink(folder, on_image=lambda path: reporter.check())
    return {"found": list(done.found), "missing": done.missing}


def pack(reporter: Any, study: str) -> list[str]:
    """Copy images that lie outside the study into it. Returns the ids.

    Between two images it is asked whether to stop: what was copied by then stays.
    """
    return list(Study.open(study).pack(on_image=lambda path: reporter.check()))
