"""Moving studies: finding images that were moved, and copying images in so that the folder stands alone."""

from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from SFRCore.errors import DiskFull, InputError
from SFRCore.runtime.files import atomic_path, file_identity, free_space, full_suffix, same_file_quick
from SFRCore.study.case import Case
from SFRCore.study.images import DETACHED
from SFRCore.study.intake import Intake, absolute
from SFRCore.study.pairing import OnImage
from SFRCore.volumes import read_image, write_volume

_COMMIT_SECONDS = 5.0
_SPARE_BYTES = 50 << 20


@dataclass
class Relinked:
    """What `relink` did: the new path of each case it found, and why it did not find the others."""

    found: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Transfer(Intake):
    """The part of a study that follows images from place to place."""

    def missing_images(self) -> list[Case]:
        """The cases whose image is not where study.json says; looks at every file."""
        return [case for case in self.cases.values() if not self._is_there(case)]

    def relink(
        self, search_folders: Path | str | Iterable[Path | str], *, on_image: OnImage | None = None
    ) -> Relinked:
        """Find images that were moved: by name, else by size, and in either case by their SHA-256.

        An image without a recorded hash is taken by its name alone where one file has that name. Images that
        are where they should be are left as they are. `on_image(path)` is called before each is looked for:
        what it raises ends the search, and nothing is changed. Raises `InputError` where a folder cannot be
        searched.
        """
        self.check_writable()
        given = [search_folders] if isinstance(search_folders, (str, Path)) else search_folders
        folders = [absolute(folder) for folder in given]
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder.", hint="Give the folder the images are in now.")
        gone = self.missing_images()
        result = Relinked()
        index = _Index(folders) if gone else None
        identities: dict[str, dict[str, Any]] = {}
        for case in gone:
            assert index is not None
            if on_image is not None:
                on_image(Path(case.image))
            match, reason = index.find(_name_of(case.image), case.image_identity)
            if match is None:
                result.missing[case.id] = reason
            else:
                result.found[case.id] = match
                identities[case.id] = file_identity(match)
        if result.found:
            before = {case.id: case.image for case in gone}
            with self.transaction("relinking images"):
                for id, path in result.found.items():
                    if id in self.cases and self.cases[id].image == before[id]:
                        self._point_to(self.cases[id], path, identities[id])
        return result

    def pack(self, *, on_image: OnImage | None = None) -> dict[str, Path]:
        """Copy images that lie outside into the study, byte for byte; returns the new path of each case.

        A DICOM series is copied as a folder. A header with its voxels in a file beside it becomes one NRRD
        file. `on_image(path)` is called before each is copied. What was copied before it or an error raises
        stays copied.

        Raises `InputError` where an image is missing, `DiskFull`.
        """
        self.check_writable()
        outside = [case for case in self.cases.values() if case.outside]
        sources = {case.id: self.image_path(case.id) for case in outside}
        lost = [id for id, path in sources.items() if not path.exists()]
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            raise InputError(
                f"The image {sources[lost[0]]} of case {lost[0]}{more} is missing, so nothing was packed.",
                hint="Was it moved? Find it with 'Find moved images' in Slicer, or sfr relink.",
            )
        needed = sum(_bytes_of(path) for path in sources.values())
        if needed + _SPARE_BYTES > free_space(self.root):
            raise DiskFull(
                f"Packing needs {needed / 1e9:.2f} GB, more than is free on the disk of {self.root}.",
                hint="Free some space on that disk, or copy the study to a larger one first.",
            )
        packed: dict[str, Path] = {}
        waiting: dict[str, Path] = {}
        since = time.monotonic()
        try:
            for id, source in sources.items():
                if on_image is not None:
                    on_image(source)
                waiting[id] = self._copy_in(id, source)
                if time.monotonic() - since > _COMMIT_SECONDS:
                    packed |= self._adopt(waiting, sources)
                    waiting, since = {}, time.monotonic()
        finally:
            packed |= self._adopt(waiting, sources)
        return packed

    def _copy_in(self, id: str, source: Path) -> Path:
        folder = source.is_dir()
        base, suffix = f"images/{id}", "" if folder else full_suffix(source)
        if not folder and suffix.lower() in DETACHED:
            return write_volume(read_image(source), self._inside(self._unused(base, ".nrrd")))
        left = self._inside(base + suffix)  # by a packing that was cut off
        if left.is_dir() == folder and left.exists() and same_file_quick(source, file_identity(left)):
            return left
        target = self._inside(self._unused(base, suffix))
        with atomic_path(target) as temporary:
            if folder:
                shutil.copytree(source, temporary)
            else:
                shutil.copy2(source, temporary)
            if file_identity(temporary)["sha256"] != file_identity(source)["sha256"]:
                raise InputError(f"{source} changed while it was copied.", hint="Pack again when it rests.")
        return target

    def _adopt(self, copies: dict[str, Path], sources: dict[str, Path]) -> dict[str, Path]:
        identities = {id: file_identity(path) for id, path in copies.items()}
        done = {}
        if copies:
            with self.transaction("packing images"):
                for id, path in copies.items():
                    if id in self.cases and self.cases[id].image == str(sources[id]):
                        self._point_to(self.cases[id], path, identities[id])
                        done[id] = path
        return done

    def _point_to(self, case: Case, path: Path, identity: dict[str, Any]) -> None:
        case.image, case.image_identity = self._stored_path(path), identity
        if case.outside:
            self._listed.add(case.image)

    def _is_there(self, case: Case) -> bool:
        try:
            return self.image_path(case.id).exists()
        except InputError:
            return False


class _Index:
    """The files and folders below some folders, by name and by size in bytes."""

    def __init__(self, folders: list[Path]) -> None:
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        self.by_size: dict[int, list[Path]] = defaultdict(list)
        for top in folders:
            sizes: dict[str, int] = defaultdict(int)
            for place, inside, names in os.walk(top, topdown=False):
                for name in names:
                    path = Path(place, name)
                    try:
                        size = path.stat().st_size
                    except OSError:
                        continue
                    sizes[place] += size
                    self._enter(path, size)
                sizes[place] += sum(sizes[os.path.join(place, name)] for name in inside)
                self._enter(Path(place), sizes[place])

    def _enter(self, path: Path, size: int) -> None:
        self.by_name[path.name.casefold()].append(path)
        self.by_size[size].append(path)

    def find(self, name: str, identity: dict[str, Any] | None) -> tuple[Path | None, str]:
        """The path of what was called `name`, or None and the reason."""
        named = self.by_name.get(name.casefold(), [])
        if identity is None:
            if len(named) == 1:
                return named[0], ""
            return None, "several files have its name" if named else "no file has its name"
        candidates = self.by_size.get(identity.get("size", -1), [])
        for path in sorted(candidates, key=lambda path: path.name.casefold() != name.casefold()):
            with suppress(InputError):
                if file_identity(path)["sha256"] == identity.get("sha256"):
                    return path, ""
        return None, "the file of its name has other contents" if named else "no file has its contents"


def _name_of(image: str) -> str:
    windows = PureWindowsPath(image)
    return windows.name if windows.drive else PurePosixPath(image).name


def _bytes_of(path: Path) -> int:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size
