"""A 3D patch laid out as slices on one square canvas image, and back exactly.

The layout is that of the SFR reference implementation (Li et al., "SFR", section III-A; ``Spread_bs_aug``
and ``Spread_bs_tensor`` in its code), computed by coordinates, so that patches with X != Y and with more
slices than tiles come back whole as well.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SFRCore.errors import InputError

Array = TypeVar("Array", Tensor, np.ndarray)

# SAM's masks have a quarter of the canvas resolution: at four canvas pixels a voxel, a mask pixel is a voxel.
LARGEST_ZOOM = 4


class StitchLayout:
    """Where every voxel of a patch (X, Y, Z) lies on ``canvases`` square images of ``canvas_size`` pixels.

    The tile of slice z is the transpose of ``patch[:, :, z]``: tile rows run along Y, tile columns along X.
    Slices are read row by row. Empty tiles are shared out before and after the slices. More slices than tiles
    are split into contiguous chunks, a canvas each, of which the last overlaps the one before.

    With ``zoom`` each voxel covers zoom x zoom canvas pixels.

    Attributes: ``canvases`` (N), ``tiles`` (rows, columns), ``valid`` ((N, S, S) bool, True on content),
    ``filled`` (fraction of valid pixels). ``windows``, ``single``, ``together`` and ``drawn`` are those of
    :mod:`SFRCore.inputs`: one canvas or several, a patch is always laid out and segmented whole.

    Raises InputError where a slice is larger than the canvas.
    """

    together = 1

    def __init__(self, patch_size: tuple[int, int, int], canvas_size: int, zoom: int = 1) -> None:
        size_x, size_y, slices = (int(n) for n in patch_size)
        if min(size_x, size_y, slices, zoom, canvas_size) < 1:
            raise InputError(
                f"A patch of {size_x} x {size_y} x {slices} voxels at zoom {zoom} cannot be laid out."
            )
        if max(size_x, size_y) * zoom > canvas_size:
            raise InputError(
                f"A slice of {size_x} x {size_y} voxels, enlarged {zoom} times, does not fit on a canvas of "
                f"{canvas_size} pixels.",
                hint="Choose a smaller patch or a larger canvas.",
            )
        self.patch_size = (size_x, size_y, slices)
        self.canvas_size = int(canvas_size)
        self.zoom = int(zoom)
        rows = _tile_offsets(size_y * zoom, canvas_size)
        columns = _tile_offsets(size_x * zoom, canvas_size)
        self.tiles = (len(rows), len(columns))
        tiles = len(rows) * len(columns)
        self.canvases = -(-slices // tiles)
        self._row_offsets, self._column_offsets = rows, columns
        if self.canvases == 1:
            self._starts, self._empty_before = [0], (tiles - slices) // 2
        else:
            self._starts = [min(i * tiles, slices - tiles) for i in range(self.canvases)]
            self._empty_before = 0
        self._overlap = slice(self._starts[-1], (self.canvases - 1) * tiles)
        self._build_indices()
        self.filled = float(self.valid.float().mean())

    @property
    def windows(self) -> list[tuple[int, int]]:
        return [(0, self.patch_size[2])]

    @property
    def single(self) -> StitchLayout:
        return self

    def drawn(self, rng: np.random.Generator) -> StitchLayout:
        return self

    def offset(self, z: int) -> tuple[int, int, int]:
        """(canvas, row, column) of the first pixel of slice ``z``, in the first canvas that shows it."""
        if not 0 <= z < self.patch_size[2]:
            raise IndexError(f"Slice {z} is outside a patch of {self.patch_size[2]} slices.")
        canvas = min(z // (self.tiles[0] * self.tiles[1]), self.canvases - 1)
        return self._place(z, canvas)

    def stitch(self, patch: Array, fill: float, *, smooth: bool = False) -> Array:
        """Lay patches (..., X, Y, Z) out as canvases (..., N, S, S) of the same type.

        ``fill`` is written where no slice lies (0 for images, 255 for labels to be ignored). With zoom,
        voxels are repeated, or interpolated bilinearly within their slice where ``smooth`` (for images).
        """
        if isinstance(patch, np.ndarray):
            return self.stitch(torch.from_numpy(np.ascontiguousarray(patch)), fill, smooth=smooth).numpy()
        self._check("patch", patch, self.patch_size)
        leading = patch.shape[:-3]
        if patch.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch computes little with these
            return self.stitch(patch.to(torch.int64), fill).to(patch.dtype)
        enlarged = self._enlarge(patch.reshape(-1, *self.patch_size), smooth).flatten(1)
        source, valid = self._source.to(patch.device), self.valid.flatten().to(patch.device)
        empty = torch.full((), fill, dtype=patch.dtype, device=patch.device)
        canvas = torch.where(valid, enlarged.index_select(1, source), empty)
        return canvas.reshape(*leading, self.canvases, self.canvas_size, self.canvas_size)

    def unstitch(self, canvas: Array) -> Array:
        """Bring canvases (..., N, S, S) back to patches (..., X, Y, Z) of the same type.

        With zoom, floating-point pixels of a voxel are averaged, integers take the middle pixel. Slices that
        two canvases show are averaged (floating point) or taken from the first (integers).
        """
        if isinstance(canvas, np.ndarray):
            return self.unstitch(torch.from_numpy(np.ascontiguousarray(canvas))).numpy()
        self._check("canvas", canvas, (self.canvases, self.canvas_size, self.canvas_size))
        leading = canvas.shape[:-3]
        flat = canvas.reshape(int(np.prod(leading)), -1)
        first = self._first.to(canvas.device)
        patch = self._reduce(flat.index_select(1, first.flatten()).reshape(-1, *first.shape))
        if canvas.is_floating_point() and self._overlap.stop > self._overlap.start:
            last = self._last.to(canvas.device)
            again = self._reduce(flat.index_select(1, last.flatten()).reshape(-1, *last.shape))
            before, after = self._overlap.start, self._overlap.stop
            shared = (patch[..., before:after] + again) / 2
            patch = torch.cat([patch[..., :before], shared, patch[..., after:]], dim=-1)
        return patch.reshape(*leading, *self.patch_size)

    def _place(self, z: int, canvas: int) -> tuple[int, int, int]:
        tile = z - self._starts[canvas] + self._empty_before
        row, column = divmod(tile, self.tiles[1])
        return canvas, self._row_offsets[row], self._column_offsets[column]

    def _build_indices(self) -> None:
        """Flat indices: canvas pixel -> enlarged voxel, and enlarged voxel -> canvas pixel."""
        size_x, size_y = (n * self.zoom for n in self.patch_size[:2])
        slices = self.patch_size[2]
        side = self.canvas_size
        voxels = torch.arange(size_x * size_y * slices).reshape(size_x, size_y, slices)
        source = torch.full((self.canvases, side, side), -1, dtype=torch.long)
        first = torch.empty_like(voxels)
        last = torch.empty_like(voxels[..., self._overlap])
        within = torch.arange(size_y) * side + torch.arange(size_x)[:, None]
        for z in range(slices):
            canvas, row, column = self.offset(z)
            places = [(canvas, row, column)]
            first[..., z] = within + (canvas * side + row) * side + column
            if self._overlap.start <= z < self._overlap.stop:
                canvas, row, column = self._place(z, self.canvases - 1)
                places.append((canvas, row, column))
                last[..., z - self._overlap.start] = within + (canvas * side + row) * side + column
            for canvas, row, column in places:
                source[canvas, row : row + size_y, column : column + size_x] = voxels[..., z].T
        self.valid = source >= 0
        self._source = source.clamp_(min=0).flatten()
        self._first, self._last = first, last

    def _enlarge(self, patch: Tensor, smooth: bool) -> Tensor:
        if self.zoom == 1:
            return patch
        if smooth:
            slices = patch.permute(0, 3, 1, 2)
            slices = F.interpolate(slices, scale_factor=self.zoom, mode="bilinear", align_corners=False)
            return slices.permute(0, 2, 3, 1)
        return patch.repeat_interleave(self.zoom, dim=1).repeat_interleave(self.zoom, dim=2)

    def _reduce(self, patch: Tensor) -> Tensor:
        if self.zoom == 1:
            return patch
        count, size_x, size_y, slices = patch.shape
        blocks = patch.reshape(count, size_x // self.zoom, self.zoom, size_y // self.zoom, self.zoom, slices)
        if patch.is_floating_point():
            return blocks.mean(dim=(2, 4))
        return blocks[:, :, self.zoom // 2, :, self.zoom // 2]

    def _check(self, what: str, array: Tensor, expected: tuple[int, int, int]) -> None:
        if tuple(array.shape[-3:]) != expected:
            raise ValueError(f"The {what} ends in {tuple(array.shape[-3:])}, the layout expects {expected}.")

    def __repr__(self) -> str:
        return f"StitchLayout(patch_size={self.patch_size}, canvas_size={self.canvas_size}, zoom={self.zoom})"


def choose_canvas(patch_size: tuple[int, int, int], limit: int, multiple: int = 16) -> tuple[int, int]:
    """(canvas size, zoom) for patches (X, Y, Z) on a foundation model whose canvas is at most ``limit`` px.

    The canvas is the smallest multiple of ``multiple`` that holds all slices, or the limit where none does
    (several canvases are used then). Where the slices would fill less than half of the limit's canvas, they
    are enlarged by the largest whole number, at most 4, with which all still fit on it.

    Raises InputError where one slice is larger than the limit.
    """
    size_x, size_y, slices = patch_size
    largest = limit // multiple * multiple
    zoom = 1
    if size_x * size_y * slices * 2 < limit * limit:
        zoom = max((n for n in range(1, LARGEST_ZOOM + 1) if _holds(patch_size, largest, n)), default=1)
    for canvas in range(multiple, largest + 1, multiple):
        if _holds(patch_size, canvas, zoom):
            return canvas, zoom
    if max(size_x, size_y) > largest:
        raise InputError(
            f"A slice of {size_x} x {size_y} voxels is larger than the canvas of {largest} pixels of this "
            "foundation model.",
            hint="Choose a smaller patch or another foundation model.",
        )
    return largest, 1


def _holds(patch_size: tuple[int, int, int], canvas: int, zoom: int) -> bool:
    size_x, size_y, slices = patch_size
    return (canvas // (size_x * zoom)) * (canvas // (size_y * zoom)) >= slices


def _tile_offsets(content: int, canvas: int) -> list[int]:
    """First content pixel of each tile along one axis, for tiles of ``content`` pixels."""
    count = canvas // content
    padding = round((canvas / count - content) / 2)
    pitch = content + 2 * padding
    start = (canvas - pitch * count) // 2 + padding
    if start < 0 or start + (count - 1) * pitch + content > canvas:
        pitch = canvas // count
        start = (canvas - pitch * count) // 2 + (pitch - content) // 2
    return [start + i * pitch for i in range(count)]
