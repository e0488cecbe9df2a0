"""Sample cohorts, made into studies: left atria of the Medical Segmentation Decathlon, an invented one."""

from __future__ import annotations

import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from SFRCore.errors import DiskFull, InputError
from SFRCore.runtime.files import free_space, process_mark, sweep_temporary
from SFRCore.runtime.transfer import Progress, RemoteFile, fetch

Say = Callable[[str], None]

LABELED, TEST = 4, 4
SYNTHETIC_CASES, SYNTHETIC_SIZE = 12, (48, 48, 16)

_MEMBER = re.compile(r"^(?:\./)?[^/]+/(imagesTr|labelsTr|imagesTs)/([A-Za-z0-9][A-Za-z0-9_-]*\.nii\.gz)$")
_LARGEST_MEMBER = 1 << 30


@dataclass(frozen=True)
class Cohort:
    """Where a sample cohort comes from; without an archive it is computed here."""

    archive: RemoteFile | None = None
    url: str = ""


COHORTS: dict[str, Cohort] = {
    "synthetic": Cohort(),
    "left_atrium": Cohort(
        RemoteFile(
            "Task02_Heart.tar",
            "06ee59366e1e5124267b774dbd654057",
            455_721_472,
            algorithm="md5",
            folder_variable="SFR_DATA",
        ),
        "https://msd-for-monai.s3-us-west-2.amazonaws.com/Task02_Heart.tar",
    ),
}


def make(
    name: str,
    folder: Path,
    *,
    progress: Progress = lambda done, total: None,
    say: Say = lambda line: None,
) -> Path:
    """Make the study of a sample cohort in ``folder``/``name``; returns its folder, at once where it exists.

    Four cases are labeled, four are for testing; the labels of the others are references, which only scoring
    reads. ``progress(done, total)`` is called with bytes or cases; what it raises ends the work, and a
    cut-off download goes on from there the next time. Raises InputError, DiskFull, DownloadError.
    """
    home = folder / name
    study = home / "study"
    if (study / "study.json").is_file():
        say(f"The study is in {study}.")
        return study
    from SFRCore.synthetic import STRUCTURES, make_synthetic_cohort

    cohort = COHORTS[name]
    data = home / "data"
    if cohort.archive is None:
        say("Making the volumes.")
        make_synthetic_cohort(home / "data", cases=SYNTHETIC_CASES, size=SYNTHETIC_SIZE)
        labeled, extra = sorted((data / "images").iterdir()), []
        structures, labels = {value: STRUCTURES[value] for value in (1, 2)}, data / "labels"
    else:
        if not (data / "imagesTr").is_dir():
            archive = home / cohort.archive.filename
            say(f"Downloading {cohort.url}")
            fetch(cohort.url, archive, cohort.archive, progress=progress)
            say(f"Unpacking into {data}")
            unpack(archive, data, progress=progress)
            archive.unlink()
        labeled, labels = sorted((data / "imagesTr").iterdir()), data / "labelsTr"
        extra = sorted((data / "imagesTs").iterdir()) if (data / "imagesTs").is_dir() else []
        structures = {1: "Left atrium"}
    say("Making the study.")
    _make_study(study, structures, labeled, labels, extra, progress)
    say(f"The study is in {study}.")
    return study


def unpack(archive: Path, target: Path, *, progress: Progress = lambda done, total: None) -> None:
    """Unpack the images and labels of a Decathlon archive into ``target``; all of them or none.

    Only plain files in imagesTr, labelsTr and imagesTs are taken, under their own names: no path, link or
    device that an archive may hold can lead elsewhere. Raises InputError where it is damaged or of another
    kind, DiskFull where there is no room.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep_temporary(target.parent)
    temporary = target.with_name(f".{target.name}.sfr-tmp-{process_mark()}n0")
    damaged = InputError(
        f"{archive} is damaged or is not an archive of the Medical Segmentation Decathlon.",
        hint="Delete it and download it again.",
    )
    try:
        with tarfile.open(archive, "r:*") as opened:
            members = [(match, entry) for entry in opened if entry.isfile() and (match := _match(entry))]
            total = sum(entry.size for _, entry in members)
            if not members or any(entry.size > _LARGEST_MEMBER for _, entry in members):
                raise damaged
            if free_space(target) < total:
                raise DiskFull(
                    f"There is no room for the sample data: {total / 1e9:.1f} GB are needed in "
                    f"{target.parent}.",
                    hint="Free some space, or name another folder with the variable SFR_DATA.",
                )
            done = 0
            for (part, name), entry in members:
                source = opened.extractfile(entry)
                assert source is not None
                place = temporary / part / name
                place.parent.mkdir(parents=True, exist_ok=True)
                with source, open(place, "xb") as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)
                done += entry.size
                progress(done, total)
        temporary.rename(target)
    except (tarfile.TarError, EOFError) as error:
        raise damaged from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _match(entry: tarfile.TarInfo) -> tuple[str, str] | None:
    found = _MEMBER.match(str(PurePosixPath(entry.name)))
    return (found[1], found[2]) if found else None


def _make_study(
    root: Path,
    structures: dict[int, str],
    labeled: Sequence[Path],
    labels: Path,
    extra: Sequence[Path],
    progress: Progress,
) -> None:
    from SFRCore.study import Study

    try:
        study = Study.create(root, structures=structures)
        total = len(labeled) + len(extra)
        for index, image in enumerate([*labeled, *extra]):
            if index < LABELED:
                study.add(image, label=labels / image.name)
            elif index < len(labeled):
                role = "test" if index >= len(labeled) - TEST else "unlabeled"
                study.add(image, reference=labels / image.name, role=role)
            else:
                study.add(image, role="unlabeled")
            progress(index + 1, total)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
