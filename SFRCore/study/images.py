"""Which image a case has: files are looked at again before they are computed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from SFRCore.errors import InputError
from SFRCore.runtime.identity import renewed_identity
from SFRCore.study.folder import StudyFolder
from SFRCore.volumes import read_image


def renew_identities(study: StudyFolder) -> list[str]:
    """Bring the recorded identity of every image up to date; the cases that have another image now.

    A file is hashed only where its size or time differ from what is recorded. What is missing or has no
    recorded identity stays as it is. A file that is no volume now is not named: whoever reads it says so.
    """
    before: dict[str, tuple[str, dict[str, Any]]] = {}
    now: dict[str, dict[str, Any]] = {}
    for case in study.cases.values():
        if case.role == "ignored" or not case.image_identity:
            continue
        try:
            found = renewed_identity(study.image_path(case.id), case.image_identity)
        except InputError:
            continue
        if found != case.image_identity:
            before[case.id] = case.image, case.image_identity
            now[case.id] = found
    if now:
        with study.transaction("looking at the images"):
            for id, identity in now.items():
                present = study.cases.get(id)
                if present is not None and (present.image, present.image_identity) == before[id]:
                    present.image_identity = identity
    changed = [id for id, found in now.items() if found["sha256"] != before[id][1].get("sha256")]
    return [id for id in changed if _is_volume(study.image_path(id))]


def _is_volume(path: Path) -> bool:
    try:
        read_image(path)
    except InputError:
        return False
    return True
