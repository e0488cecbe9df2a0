"""Pairing: which files of a folder are images, and which label belongs to which image, by their names."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from SFRCore.errors import InputError
from SFRCore.study.case import same_id_key

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl.gz", ".gipl", ".hdr")
_CHANNEL = re.compile(r"_0000$")
_CHANNELS = 4
_NUMBER = re.compile(r"_(\d{4})$")
_LABEL = re.compile(r"([_-](seg|segmentation|label|labels)|\.seg)$", re.IGNORECASE)

_NAMES = "Name labels like their images; the endings _seg and _label are understood."

OnProblem = Callable[[Path, Exception], None]
OnImage = Callable[[Path], object]


@dataclass(frozen=True)
class Pair:
    """An image and the label that belongs to it by name, if there is one."""

    image: Path
    label: Path | None = None


def stem(path: Path | str) -> str:
    """The name without the image suffix: ``scan01`` for ``scan01.nii.gz``; other suffixes are cut once."""
    name = Path(path).name
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def image_stem(path: Path | str) -> str:
    """What an image is called: its stem without the channel number ``_0000``."""
    return _CHANNEL.sub("", stem(path)) or stem(path)


def label_stem(path: Path | str) -> str:
    """The image that a label belongs to: its stem without ``_seg``, ``-label`` and so on."""
    marked = stem(path)
    unmarked = _LABEL.sub("", marked) or marked
    return _CHANNEL.sub("", unmarked) or unmarked


def is_marked_label(path: Path | str) -> bool:
    """Whether a name says that the file is a label."""
    return _LABEL.search(stem(path)) is not None


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, by name; raises `InputError` where the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    except OSError as error:
        raise InputError(
            f"The folder {folder} cannot be read.", hint="Check its name, or whether the drive is connected."
        ) from error
    return [folder / name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]


def pair_files(
    folder: Path, labels: Path | None, on_problem: OnProblem, *, folders: Sequence[Path] = ()
) -> list[Pair]:
    """Pair the images of `folder` with labels of the folder `labels`, or with labels beside the images.

    `folders` are images too, each a folder of DICOM slices; a label has the name of the folder.
    Labels without an image and second labels of one image are reported through `on_problem` and left out.
    A file that is named like a label, but has no image beside it, is an image.
    """
    files = image_files(folder)
    plain = {same_id_key(image_stem(path)) for path in files if not is_marked_label(path)}
    beside = [p for p in files if is_marked_label(p) and same_id_key(label_stem(p)) in plain]
    if labels is None:
        candidates = beside
    elif labels.resolve() == folder.resolve():
        raise InputError(
            f"{folder} was given for the images and for the labels.",
            hint="Leave out the folder of labels: labels beside the images are found by _seg or _label.",
        )
    else:
        candidates = image_files(labels)
    images = _one_channel([path for path in files if path not in beside], candidates, on_problem)
    images += folders
    keys = {key for image in images for key in _keys(image)}
    found: dict[str, Path] = {}
    for label in candidates:
        exact, base = same_id_key(stem(label)), same_id_key(label_stem(label))
        key = exact if exact in keys and labels is not None else base
        if key not in keys:
            on_problem(label, InputError(f"{label} belongs to no image by its name.", hint=_NAMES))
        elif key in found:
            message = f"{label} is a second label, beside {found[key]}, of one image."
            on_problem(label, InputError(message, hint=_NAMES))
        else:
            found[key] = label
    return [Pair(image, next((found[key] for key in _keys(image) if key in found), None)) for image in images]


def _keys(image: Path) -> list[str]:
    """What a label of this image may be called, the likeliest first."""
    names = [image.name] if image.is_dir() else [stem(image), image_stem(image)]
    return [same_id_key(name) for name in names]


def _one_channel(images: list[Path], labels: list[Path], on_problem: OnProblem) -> list[Path]:
    """Leave out further channels of an image (``_0001`` beside ``_0000``), saying so."""
    channels = _channels([stem(image) for image in images], {stem(label) for label in labels})
    kept = []
    for image in images:
        if stem(image) in channels:
            message = f"{image} is a further channel of an image, of which only the first is used."
            on_problem(image, InputError(message, hint="Add it from a folder of its own to use it instead."))
        else:
            kept.append(image)
    return kept


def _channels(names: list[str], labels: set[str]) -> set[str]:
    """Which names are further channels of an image, as nnU-Net numbers them, rather than numbered cases.

    Numbers beyond 9, labels of single numbers, or more numbers of one name than images have channels tell of
    cases: ``patient_0000`` to ``patient_0011``.
    """
    numbers: dict[str, list[str]] = {}
    for name in names:
        ending = _NUMBER.search(name)
        if ending is not None:
            numbers.setdefault(name[: ending.start()], []).append(ending[1])
    several = sum("0000" in found for found in numbers.values()) > 1
    labeled = {_LABEL.sub("", label) for label in labels}
    channels: set[str] = set()
    for base, found in numbers.items():
        further = [f"{base}_{number}" for number in found if number != "0000"]
        cases = any(number > "0009" for number in found) or not labeled.isdisjoint(further)
        if "0000" in found and not cases and (several or base in labeled or len(found) <= _CHANNELS):
            channels.update(further)
    return channels
