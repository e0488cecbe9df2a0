"""What the Set up step says: of packages, checkpoints, the device, and of what an installation would take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slicer.i18n import tr as _

from SFRCore.foundation import download

from .installation import Installation, other_installations
from .worker_python import WorkerPython

_NAMED = 6


def gigabytes(size: float) -> str:
    """A size for people: 375 MB, 1.2 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def state_words(
    worker: WorkerPython | None, found: Installation | None, doctor: dict[str, Any] | None
) -> str:
    """How the packages stand. ``found`` is None for a Python of the user's own."""
    if worker is None:
        return _(
            "The Python that computes was not found. Repair Slicer, or correct the variable SFR_PYTHON and "
            "start Slicer again."
        )
    missing = doctor.get("missing") if doctor else None
    if found is None:
        words = _("SFR computes with your own Python, {program} (variable SFR_PYTHON).").format(
            program=worker.program
        )
        if missing:
            words += " " + _("It lacks {names}: install them there.").format(names=_some(missing))
        return words
    gaps = _some([str(gap) for gap in found.gaps])
    if found.state == "ready":
        words = _("Installed in {folder}, with PyTorch for {build}.").format(
            folder=found.folder, build=found.build
        )
        return words + (" " + _others(found.folder) if other_installations(found.folder) else "")
    if found.state == "installing":
        return _("The packages are being installed, perhaps by another window of Slicer.")
    if found.state == "outdated":
        return _("The packages were installed by an earlier version and lack {gaps}.").format(gaps=gaps)
    if found.state == "broken":
        return _("The packages are damaged or were not installed to the end. Install them again.")
    words = _(
        "SFR computes with PyTorch and other packages, which are not part of Slicer. They come from the "
        "network, 0.4 to 4 GB depending on the computer, and go into a folder of their own: {folder}."
    ).format(folder=found.folder)
    return words + (" " + _others(found.folder) if other_installations(found.folder) else "")


def installation_words(survey: dict[str, Any], folder: Path) -> str:
    """The question before an installation: what, how much, where, and how much room there is."""
    needed = survey["disk"] + survey["download"]
    lines = [
        _("SFR will install PyTorch and the other packages that it computes with."),
        "",
        _("GPU: {gpu}. PyTorch for {build}.").format(
            gpu=survey["gpu"] or _("none found"), build=survey["build"]
        ),
        _("Download: about {download}. On the disk: about {disk}.").format(
            download=gigabytes(survey["download"]), disk=gigabytes(survey["disk"])
        ),
        _("Folder: {folder}").format(folder=folder),
        _("Free there: {free}.").format(free=gigabytes(survey["free"])),
        "",
        _("Nothing of Slicer's is changed. The Remove button takes everything away again."),
    ]
    if survey["gpu"] and survey["build"] == "CPU":
        lines.insert(3, _("The driver of this GPU is too old for PyTorch: update it first to use the GPU."))
    if survey["free"] < needed:
        lines.append(_("That is too little: {needed} are needed.").format(needed=gigabytes(needed)))
    return "\n".join(lines)


def folder_words(wheels: Path, folder: Path) -> str:
    """The question before an installation from a folder."""
    count = sum(1 for path in wheels.glob("*.whl"))
    return _(
        "Install from the {count} packages in {wheels} into {folder}? Nothing of Slicer's is changed."
    ).format(count=count, wheels=wheels, folder=folder)


def checkpoint_words(name: str, file: str) -> str:
    """Whether a checkpoint is there, and which file of the user's is offered besides."""
    path = download.checkpoint_path(name)
    words = (
        _("On this computer: {path}.").format(path=path)
        if download.is_downloaded(name)
        else _(
            "Not downloaded. Without it you can train the small model 'tiny', which is for trying things out."
        )
    )
    return words + (" " + _("Your file: {file}.").format(file=file) if file else "")


def device_words(doctor: dict[str, Any] | None, *, asking: bool) -> str:
    """What computes, and its free memory."""
    if asking:
        return _("The worker is being asked. The first time this takes a minute.")
    if doctor is None:
        return _("Not looked at yet.")
    if "problem" in doctor:
        return _("The worker could not be asked: {problem}").format(problem=doctor["problem"])
    if doctor.get("torch_problem"):
        return _("PyTorch cannot be loaded: {problem}. Install the packages again.").format(
            problem=doctor["torch_problem"]
        )
    devices = doctor.get("devices") or []
    chosen = next((device for device in devices if device.get("chosen")), None)
    if chosen is None:
        return _("Nothing can compute before the packages are installed.")
    free, total = chosen.get("free_bytes") or 0, chosen.get("total_bytes")
    memory = _("{free} of {total} free") if total else _("{free} memory free")
    words = f"{chosen['name']}, " + memory.format(free=gigabytes(free), total=gigabytes(total or 0))
    if chosen["device"] == "cpu":
        words += ". " + _("There is no GPU that PyTorch can use: training takes hours to days.")
    return words


def progress_words(progress: tuple[int, int] | None) -> str:
    """ "120 MB of 375 MB", or "" where there are no bytes to tell of."""
    if progress is None or progress[1] < 1_000_000:
        return ""
    return _("{done} of {total}").format(done=gigabytes(progress[0]), total=gigabytes(progress[1]))


def _others(folder: Path) -> str:
    names = ", ".join(other.name for other in other_installations(folder))
    return _("Packages of an earlier Slicer are there too ({names}); Remove takes them away.").format(
        names=names
    )


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (_(" and {more} more").format(more=more) if more > 0 else "")


def sample_title(name: str) -> str:
    """What a sample cohort is called."""
    return {"synthetic": _("Invented cohort"), "left_atrium": _("Left atrium (MSD Task02)")}[name]


def sample_words(name: str) -> str:
    """What a sample cohort is, before it is fetched."""
    return {
        "synthetic": _("12 small volumes with two structures, computed in seconds: nothing is downloaded."),
        "left_atrium": _(
            "30 cardiac MR volumes, 20 of them with the left atrium drawn, of the Medical Segmentation "
            "Decathlon (King's College London). Licence CC-BY-SA 4.0. Download 456 MB, on the disk 0.5 GB."
        ),
    }[name]
