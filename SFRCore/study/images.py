"""Which image a case has: files are looked at again before they are computed with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from SFRCore.errors import InputError
from SFRCore.runtime.files import full_suffix
from SFRCore.runtime.identity import renewed_identity
from SFRCore.study.case import Case
from SFRCore.study.folder import StudyFolder
from SFRCore.volumes import read_image

DETACHED = (".mhd", ".nhdr", ".hdr")
"""Endings of headers whose voxels lie in a file beside them."""
_A_ROLE = {"labeled": "labeled", "unlabeled": "unlabeled", "test": "a test case"}


def twins(case: Case, cases: Iterable[Case]) -> list[Case]:
    """Which of the others have the image of ``case``, by the hashes on record; a detached header's says
    nothing of its voxels.
    """
    content = _content(case)
    return [other for other in cases if other is not case and content and _content(other) == content]


def refuse_tested_twin(case: Case, role: str, cases: Iterable[Case], *, source: Path | None = None) -> None:
    """Raise InputError where ``role`` would make one image both learned from and tested on. ``source``: the
    file of a case that is new.
    """
    what = f"Case {case.id}" if source is None else str(source)
    for other in twins(case, cases):
        roles = {role, other.role}
        if "test" in roles and not roles.isdisjoint(("labeled", "unlabeled")):
            raise InputError(
                f"{what} cannot be {_A_ROLE[role]}, because its image is that of case {other.id}, which is "
                f"{_A_ROLE[other.role]}: what is learned from must not be tested on.",
                hint="Make both test cases, or ignore one of them.",
                code="tested_twin",
            )


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


def _content(case: Case) -> str | None:
    if full_suffix(Path(case.image)).lower() in DETACHED:
        return None
    return (case.image_identity or {}).get("sha256")


def _is_volume(path: Path) -> bool:
    try:
        read_image(path)
    except InputError:
        return False
    return True
