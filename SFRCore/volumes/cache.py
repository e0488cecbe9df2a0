"""Preprocessed volumes on disk, read by memory map; the folder may be deleted at any time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from SFRCore.errors import SFRError
from SFRCore.runtime.files import atomic_path, sweep_temporary, write_json
from SFRCore.runtime.identity import same_file_quick
from SFRCore.volumes.crops import sample_foreground
from SFRCore.volumes.frame import Frame
from SFRCore.volumes.preprocessing import Preprocessing
from SFRCore.volumes.reading import read_image, read_label

__all__ = ["CachedVolume", "Preprocessing", "VolumeCache"]

FORMAT = 1
_KEPT = {"image": 2, "label": 4}
_PROBE = 1 << 20
_PATIENCE = (0.0, 0.1, 0.5, 2.0)
"""Seconds before each new try where somebody is deleting the folder: that takes a while."""
_DAMAGE = (OSError, ValueError, KeyError, TypeError)


@dataclass(frozen=True)
class CachedVolume:
    """One preprocessed case. Arrays open on each access, so a thousand cases hold no file open.

    A cache that was deleted or damaged meanwhile is built again on access.
    """

    case_id: str
    frame: Frame
    _image: Path = field(repr=False)
    _label: Path | None = field(repr=False)
    _renew: Callable[[], CachedVolume] = field(repr=False, compare=False)

    @property
    def image(self) -> np.ndarray:
        """(X, Y, Z) float32 memory map of the normalised image."""
        return self._open("_image", "image.npy")

    @property
    def label(self) -> np.ndarray | None:
        """(X, Y, Z) uint8 memory map of class indices, None without a label."""
        return None if self._label is None else self._open("_label", "label.npy")

    @property
    def foreground(self) -> np.ndarray | None:
        """(N, 3) int32 memory map of voxels of structures, N at most 20000, as many of each structure."""
        return None if self._label is None else self._open("_label", "foreground.npy")

    def _open(self, which: str, name: str) -> np.ndarray:
        volume = self
        for pause in _PATIENCE:
            try:
                return np.load(getattr(volume, which) / name, mmap_mode="r")
            except (OSError, ValueError):
                time.sleep(pause)
                volume = self._renew()
        return np.load(getattr(volume, which) / name, mmap_mode="r")


class VolumeCache:
    """The preprocessed volumes of a study under one preprocessing.

    An entry belongs to a file's content and the preprocessing: a changed image or label is built again, a new
    label leaves the image as it is. Entries appear whole, so several processes may share the folder.
    """

    def __init__(self, folder: Path | str, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.folder = Path(folder) / f"{preprocessing.digest()}-{FORMAT}"

    def volume(
        self,
        case_id: str,
        image_path: Path | str,
        label_path: Path | str | None = None,
        *,
        identity: dict[str, Any] | None = None,
    ) -> CachedVolume:
        """The case's arrays, built where they are missing, changed or damaged.

        ``identity`` is what runtime's file_identity said of the image: a file of that content is found
        again after it was moved. Raises VolumeError as read_image and read_label do, DiskFull.
        """
        case = self.folder / _hash(case_id)
        image_key = _file_key(Path(image_path), identity)
        image_folder = case / f"image-{image_key}"
        meta = _verified(image_folder)
        if meta is None:
            meta = self._build(image_folder, lambda target: self._build_image(target, Path(image_path)))
        frame = Frame.from_dict(meta["frame"])
        label_folder = None
        if label_path is not None:
            path = Path(label_path)
            label_folder = case / f"label-{_hash(image_key + _file_key(path, None))}"
            if _verified(label_folder) is None:
                self._build(label_folder, lambda target: self._build_label(target, path, frame))
        return CachedVolume(
            case_id,
            frame,
            image_folder,
            label_folder,
            _Renewal(
                self, case_id, Path(image_path), None if label_path is None else Path(label_path), identity
            ),
        )

    def _build(self, target: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        for pause in _PATIENCE:
            try:
                return self._build_once(target, write)
            except FileNotFoundError:  # the folder is being deleted at this moment
                time.sleep(pause)
        return self._build_once(target, write)

    def _build_once(self, target: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        target.parent.mkdir(parents=True, exist_ok=True)
        sweep_temporary(target.parent)
        if (finished := _verified(target)) is not None:
            return finished
        shutil.rmtree(target, ignore_errors=True)
        meta: dict[str, Any] = {}
        try:
            with atomic_path(target) as building:
                building.mkdir()
                meta.update(write(building))
                meta["files"] = {p.name: _probe(p) for p in sorted(building.glob("*.npy"))}
                write_json(building / "meta.json", meta)
        except (OSError, SFRError):
            if _verified(target) is None:  # else another process finished the same entry first
                raise
        _prune(target)
        return meta

    def _build_image(self, target: Path, path: Path) -> dict[str, Any]:
        p = self.preprocessing
        image = read_image(path)
        frame = Frame.of(image, stack_axis=p.stack_axis, spacing=p.spacing)
        np.save(target / "image.npy", p.normalisation.apply(frame.to_internal(image)))
        return {"frame": frame.to_dict()}

    def _build_label(self, target: Path, path: Path, frame: Frame) -> dict[str, Any]:
        stored = read_label(path, self.preprocessing.values, like=frame.geometry)
        label = self.preprocessing.to_classes(frame.to_internal(stored, label=True))
        np.save(target / "label.npy", label)
        np.save(target / "foreground.npy", sample_foreground(label))
        return {}


@dataclass(frozen=True)
class _Renewal:
    cache: VolumeCache
    case_id: str
    image_path: Path
    label_path: Path | None
    identity: dict[str, Any] | None

    def __call__(self) -> CachedVolume:
        return self.cache.volume(self.case_id, self.image_path, self.label_path, identity=self.identity)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _file_key(path: Path, identity: dict[str, Any] | None) -> str:
    """What an entry is found by: the content where ``identity`` still holds, else path, sizes and times."""
    if identity is not None and path.exists() and same_file_quick(path, identity):
        return _hash(f"sha256 {identity['sha256']}")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    parts = [str(path.absolute())]
    for file in files:
        with suppress(OSError):
            status = file.stat()
            parts.append(f"{file.name} {status.st_size} {status.st_mtime_ns}")
    return _hash("\n".join(parts))


def _probe(path: Path) -> list[int]:
    """Size and a checksum of both ends: tells a torn file without reading a large one whole."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        checksum = zlib.crc32(stream.read(_PROBE))
        if size > _PROBE:
            stream.seek(max(_PROBE, size - _PROBE))
            checksum = zlib.crc32(stream.read(), checksum)
    return [size, checksum]


def _verified(folder: Path) -> dict[str, Any] | None:
    """An entry's meta-data when its files are those that were written, else None."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        intact = bool(meta["files"]) and all(_probe(folder / n) == list(p) for n, p in meta["files"].items())
        if "frame" in meta:
            Frame.from_dict(meta["frame"])
    except _DAMAGE:
        return None
    if intact:
        with suppress(OSError):
            os.utime(folder)
        return meta
    return None


def _prune(newest: Path) -> None:
    """Drop a case's oldest entries of the same kind, left by files that have changed since."""
    kind = newest.name.partition("-")[0]
    with suppress(OSError):
        entries = sorted(newest.parent.glob(f"{kind}-*"), key=lambda p: p.stat().st_mtime, reverse=True)
        for old in entries[_KEPT[kind] :]:
            shutil.rmtree(old, ignore_errors=True)
