"""Adding many cases in a process of its own: every image is read and checked, which takes minutes for a
cohort; so do the headers of a large DICOM folder on a network drive.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from SFRCore.errors import SFRError
from SFRCore.study import Study
from SFRCore.volumes import list_series


def add_folder(reporter: Any, study: str, folder: str, labels: str | None) -> dict[str, Any]:
    """Add a folder's images; ``reporter.say`` is told each file that is of no use. Returns ids, problems.

    Between two images it is asked whether to stop: what was added by then stays.
    """
    problems: list[str] = []

    def report(path: Path, error: Exception) -> None:
        words = f"{error.message} {error.hint}" if isinstance(error, SFRError) else f"{path.name}: {error}"
        problems.append(words.strip())
        reporter.say(problems[-1])

    opened = Study.open(study)
    cases = opened.add_folder(
        folder, labels=labels, on_problem=report, on_image=lambda path: reporter.check()
    )
    return {"added": [case.id for case in cases], "problems": problems}


def dicom_series(reporter: Any, folder: str) -> list[dict[str, str]]:
    """The DICOM series of a folder, by number: uid and description of each. Between two files it is asked
    whether to stop.
    """
    found = list_series(folder, on_file=lambda path: reporter.check())
    return [{"uid": series.uid, "description": series.description} for series in found]


def add_dicom(reporter: Any, study: str, folder: str, series: str | None) -> dict[str, Any]:
    """Add one DICOM series, by its UID where the folder has several. Returns ids and problems."""
    case = Study.open(study).add_dicom(folder, series=series)
    return {"added": [case.id], "problems": []}
