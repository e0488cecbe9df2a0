"""Checks of a file's bytes that ITK leaves out: it reads a torn NIfTI file as zeros without a word."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from SFRCore.volumes.geometry import VolumeError

_CHUNK = 1 << 20


def check_bytes(path: Path) -> None:
    """Raise VolumeError when a NIfTI file is shorter than its header says, or compressed data are corrupt.

    What NRRD and MetaImage hold uncompressed needs no check: their readers compare lengths themselves.
    """
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        _check_nifti(path, path)
    elif name.endswith((".hdr", ".img", ".img.gz")):
        stem = path.name[: name.rfind(".img") if ".img" in name else name.rfind(".hdr")]
        data = next((p for s in (".img", ".img.gz") if (p := path.with_name(stem + s)).is_file()), None)
        if data is None:
            raise VolumeError(f"{path} has no .img file beside it.", hint="Keep the two files together.")
        _check_nifti(path.with_name(stem + ".hdr"), data)
    elif name.endswith((".mha", ".mhd")):
        _check_meta(path)
    elif name.endswith(".nrrd"):
        _check_nrrd(path)


def _check_nifti(header: Path, data: Path) -> None:
    if not header.is_file():
        raise VolumeError(f"{data} has no .hdr file beside it.", hint="Keep the two files together.")
    with _open(header) as stream:
        try:
            head = stream.read(540)
        except (OSError, EOFError, zlib.error) as error:
            raise _damaged(header) from error
    if len(head) < 348:
        raise _damaged(header)
    for order in "<>":
        if struct.unpack(order + "i", head[:4])[0] == 348:
            dim = struct.unpack(order + "8h", head[40:56])
            bits = struct.unpack(order + "h", head[72:74])[0]
            pixdim = struct.unpack(order + "8f", head[76:108])
            offset = struct.unpack(order + "f", head[108:112])[0]
            break
        if struct.unpack(order + "i", head[:4])[0] == 540 and len(head) == 540:
            dim = struct.unpack(order + "8q", head[16:80])
            bits = struct.unpack(order + "h", head[14:16])[0]
            pixdim = struct.unpack(order + "8d", head[104:168])
            offset = struct.unpack(order + "q", head[168:176])[0]
            break
    else:
        raise _damaged(header)
    if not 1 <= dim[0] <= 7 or any(n < 1 for n in dim[1 : dim[0] + 1]) or not math.isfinite(offset):
        raise _damaged(header)
    if any(not math.isfinite(s) or s <= 0 for s in pixdim[1 : 1 + min(3, dim[0])]):
        raise _impossible_spacing(header, " x ".join(f"{s:g}" for s in pixdim[1:4]))
    expected = int(offset) + math.prod(dim[1 : dim[0] + 1]) * bits // 8
    if _length(data) < expected:
        raise _damaged(data)


def _length(path: Path) -> int:
    """Length in bytes; a gzip file is unpacked as a whole, which also compares its checksum."""
    total = 0
    try:
        with _open(path) as stream:
            if not isinstance(stream, gzip.GzipFile):
                return path.stat().st_size
            while chunk := stream.read(_CHUNK):
                total += len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path) from error
    return total


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast(BinaryIO, gzip.open(path)) if packed else path.open("rb")


def _check_meta(path: Path) -> None:
    fields: dict[str, str] = {}
    with path.open("rb") as stream:
        for _ in range(200):
            key, _, value = stream.readline(4096).decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
            if key.strip() == "ElementDataFile":
                break
        else:
            raise _damaged(path)
        if "-" in fields.get("ElementSpacing", "").replace("e-", ""):
            raise _impossible_spacing(path, fields["ElementSpacing"].replace(" ", " x "))
        if fields.get("CompressedData", "").lower() != "true":
            return
        if fields["ElementDataFile"] == "LOCAL":
            _check_zlib(path, stream)
    beside = path.parent / fields["ElementDataFile"]
    if fields["ElementDataFile"] != "LOCAL" and beside.is_file():
        with beside.open("rb") as stream:
            _check_zlib(beside, stream)


def _check_nrrd(path: Path) -> None:
    with path.open("rb") as stream:
        packed = detached = False
        while (line := stream.readline(1 << 16)).strip():
            key, _, value = line.decode("latin-1").lower().partition(":")
            packed |= key == "encoding" and value.strip() in ("gzip", "gz")
            detached |= key in ("data file", "datafile")
        if line and packed and not detached:
            _check_zlib(path, stream)


def _check_zlib(path: Path, stream: BinaryIO) -> None:
    unpacker = zlib.decompressobj(wbits=47)
    try:
        while not unpacker.eof and (chunk := stream.read(_CHUNK)):
            unpacker.decompress(chunk)
    except zlib.error as error:
        raise _damaged(path) from error
    if not unpacker.eof:
        raise _damaged(path)


def _impossible_spacing(path: Path, spacing: str) -> VolumeError:
    return VolumeError(
        f"{path} has a voxel spacing of {spacing} mm, which is not possible.",
        hint="Correct the spacing in the file's header or export the image again.",
    )


def _damaged(path: Path) -> VolumeError:
    return VolumeError(f"{path} is damaged or incomplete.", hint="Copy or export the file again.")
