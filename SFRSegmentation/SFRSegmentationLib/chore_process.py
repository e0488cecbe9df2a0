"""The process of a chore: ``python -m SFRSegmentationLib.chore_process NAME ARGUMENTS FOLDER``.

It writes JSON lines to stdout ({"say"}, {"done", "total"}, {"result"}, {"error"}), and stops when a file
``stop`` appears in FOLDER.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from SFRCore.errors import Cancelled, DiskFull, SFRError
from SFRCore.foundation import download
from SFRCore.runtime.files import atomic_path, free_space, is_disk_full

from . import adding, installation, moving, sample_cohorts, torch_build
from .requirements import load_requirements

_LONGEST_LINE = 2000


class Reporter:
    """What a chore says, and whether it is to stop."""

    def __init__(self, folder: Path) -> None:
        self._stop = folder / "stop"
        self._told = 0.0

    def write(self, **message: Any) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    def say(self, line: str) -> None:
        """A line of the log; pip's raw progress becomes progress."""
        words = line.split()
        if len(words) == 4 and words[0] == "Progress" and words[1].isdigit() and words[3].isdigit():
            self.progress(int(words[1]), int(words[3]))
        else:
            self.write(say=line[:_LONGEST_LINE])

    def progress(self, done: int, total: int) -> None:
        """How far it is, told five times a second at most. Raises Cancelled when it is to stop."""
        self.check()
        now = time.monotonic()
        if done >= total or now - self._told > 0.2:
            self._told = now
            self.write(done=done, total=total)

    def check(self) -> None:
        """Raise Cancelled when it is to stop."""
        if self._stop.exists():
            raise Cancelled("Cancelled; nothing was changed.")


def survey(reporter: Reporter, folder: str) -> dict[str, Any]:
    """What an installation would fetch, how large it is, and how much room there is."""
    gpu = torch_build.find_gpu()
    build = torch_build.choose_build(gpu)
    return {
        "gpu": None if gpu is None else gpu.name,
        "build": build.name,
        "download": build.download,
        "disk": build.disk,
        "free": free_space(folder),
    }


def install(reporter: Reporter, folder: str, python: str, wheels: str | None) -> str:
    """Install the worker's packages; returns the state afterwards."""
    reporter.say("Looking for a GPU")
    gpu = torch_build.find_gpu()
    build = torch_build.choose_build(gpu)
    found = "no NVIDIA GPU" if gpu is None else f"{gpu.name}, CUDA {gpu.cuda[0]}.{gpu.cuda[1]}"
    reporter.say(f"Found {found}: installing PyTorch for {build.name}")
    return installation.install(
        Path(folder),
        load_requirements(),
        build,
        python=python,
        wheels=None if wheels is None else Path(wheels),
        say=reporter.say,
        check=reporter.check,
    ).state


def remove(reporter: Reporter, folder: str) -> int:
    """Remove the worker's packages, those of other Pythons too; returns the bytes that were freed."""
    place = Path(folder)
    return sum(installation.remove(one) for one in [*installation.other_installations(place), place])


def checkpoint(reporter: Reporter, name: str) -> str:
    """Download a checkpoint; returns its path."""
    return str(download.download(name, progress=reporter.progress))


def adopt(reporter: Reporter, file: str) -> str | None:
    """Copy a file that is one of the known checkpoints to where they belong; returns its name, else None."""
    path = Path(file)
    same_size = [name for name, known in download.CHECKPOINTS.items() if known.size == path.stat().st_size]
    for name in same_size:
        if download.file_sha256(path) == download.CHECKPOINTS[name].sha256:
            target = download.checkpoint_path(name)
            if not download.is_whole(name):
                with atomic_path(target) as temporary:
                    _copy(path, temporary, reporter)
            return name
    return None


def sample(reporter: Reporter, name: str, folder: str) -> str:
    """Fetch or make sample data; returns the folder of the study."""
    return str(sample_cohorts.make(name, Path(folder), progress=reporter.progress, say=reporter.say))


CHORES: dict[str, Callable[..., Any]] = {
    chore.__name__: chore
    for chore in (
        survey,
        install,
        remove,
        checkpoint,
        adopt,
        sample,
        adding.add_folder,
        adding.dicom_series,
        adding.add_dicom,
        moving.relink,
        moving.pack,
    )  # fmt: skip
}


def _copy(source: Path, target: Path, reporter: Reporter) -> None:
    total, done = source.stat().st_size, 0
    with open(source, "rb") as reading, open(target, "wb") as writing:
        while block := reading.read(1 << 22):
            writing.write(block)
            done += len(block)
            reporter.progress(done, total)


def main(name: str, arguments: str, folder: str) -> int:
    """Do the chore; returns the exit code of the process."""
    reporter = Reporter(Path(folder))
    try:
        reporter.write(result=CHORES[name](reporter, **json.loads(arguments)))
    except SFRError as error:
        reporter.write(error={"code": error.code, "message": error.message, "hint": error.hint})
        return error.exit_code
    except OSError as error:
        if not is_disk_full(error):
            raise
        hint = "Free some space and try again; what was finished is kept."
        reporter.write(error={"code": "disk_full", "message": "The disk is full.", "hint": hint})
        return DiskFull.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
