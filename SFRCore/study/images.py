"""Which image a case has: files are looked at again before they are computed with."""

from __future__ import annotations

from typing import Any

from SFRCore.errors import InputError
from SFRCore.runtime.identity import renewed_identity
from SFRCore.study.folder import StudyFolder


def renew_identities(study: StudyFolder) -> list[str]:
    """Bring the recorded identity of every image up to date; the cases whose content is another one now.

    A file is hashed only where its size or time differ from what is recorded. What is missing, cannot be read
    or has no recorded identity stays as it is.
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
    return [id for id, found in now.items() if found["sha256"] != before[id][1].get("sha256")]
