"""What SAM is shown of a patch: the paper's stitched canvas, and the inputs that it is compared with.

Source: SFR (IEEE TMI 2025), Fig. 3 (stitched, upsampled and small slices), Fig. 4 (shuffled and rotated
slices) and Fig. 9 (stitching scales), there read off the reference implementation's ``Spread_bs_aug_scale``.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SFRCore.errors import InputError
from SFRCore.stitching import Array, StitchLayout

TOKEN = 16
"""Canvases are multiples of so many pixels."""
LARGEST_PADDING = 4
"""Empty pixels around a resized slice, a sixteenth of its tile at most."""
SMALLEST_TILE = 8


class SliceLayout:
    """Slices of a patch (X, Y, Z), each resized to one tile of a ``grid`` x ``grid`` canvas.

    As in :class:`SFRCore.stitching.StitchLayout`, tile rows run along Y and tile columns along X. More slices
    than tiles are shown on several canvases, of which the last overlaps the one before. Images are resized
    bilinearly (smoothed where they shrink), label maps to the nearest voxel.

    ``content``: height and width in pixels of a slice on the canvas. ``together``: canvases that make one
    training image. Attributes: ``canvases`` (N), ``valid`` ((N, S, S) bool), ``windows``: first and last + 1
    slice of each canvas, ``single``: the layout of the slices of one canvas.

    Raises InputError where the slices would have no pixels.
    """

    def __init__(
        self,
        patch_size: tuple[int, int, int],
        canvas_size: int,
        *,
        grid: int,
        content: tuple[int, int],
        together: int = 1,
    ) -> None:
        pitch = canvas_size // grid
        if min(content) < 1 or max(content) > pitch:
            raise InputError(
                f"Tiles of {pitch} pixels cannot show slices of {content[1]} x {content[0]} pixels.",
                hint="Choose a smaller grid, a smaller patch or a larger foundation model.",
            )
        self.patch_size, self.canvas_size, self.grid, self.content = patch_size, canvas_size, grid, content
        slices, tiles = patch_size[2], grid * grid
        shown = min(slices, tiles)
        self.canvases = -(-slices // tiles)
        starts = [min(i * tiles, slices - shown) for i in range(self.canvases)]
        self.windows = [(start, start + shown) for start in starts]
        self.together = min(together, self.canvases)
        margin = (canvas_size - pitch * grid) // 2
        self._rows, self._columns = (
            [margin + i * pitch + (pitch - side) // 2 for i in range(grid)] for side in content
        )
        self._empty_before = (tiles - shown) // 2
        self.valid = self._lay_out(torch.ones(1, shown, *content, dtype=torch.bool), 0).expand(
            self.canvases, -1, -1
        )

    @property
    def single(self) -> SliceLayout:
        """The layout of the slices of one canvas."""
        if self.canvases == 1:
            return self
        size_x, size_y, _ = self.patch_size
        shown = self.windows[0][1]
        return SliceLayout(
            (size_x, size_y, shown), self.canvas_size, grid=self.grid, content=self.content, together=1
        )

    def drawn(self, rng: np.random.Generator) -> SliceLayout:
        """The layout for one training crop: this one."""
        return self

    def stitch(self, patch: Array, fill: float, *, smooth: bool = False) -> Array:
        """Lay patches (..., X, Y, Z) out as canvases (..., N, S, S) of the same type; ``smooth`` for images.

        ``fill`` is written where no slice lies.
        """
        if isinstance(patch, np.ndarray):
            return self.stitch(torch.from_numpy(np.ascontiguousarray(patch)), fill, smooth=smooth).numpy()
        _check("patch", patch, self.patch_size)
        leading = patch.shape[:-3]
        slices = patch.reshape(-1, *self.patch_size).permute(0, 3, 2, 1)
        resized = _smoothed(slices, self.content) if smooth else _nearest(slices, self.content)
        canvases = [self._lay_out(resized[:, start:stop], fill) for start, stop in self.windows]
        size = self.canvas_size
        return torch.stack(canvases, 1).reshape(*leading, self.canvases, size, size)

    def unstitch(self, canvas: Array) -> Array:
        """Bring canvases (..., N, S, S) back to patches (..., X, Y, Z) of the same type.

        Slices that two canvases show are taken from the first.
        """
        if isinstance(canvas, np.ndarray):
            return self.unstitch(torch.from_numpy(np.ascontiguousarray(canvas))).numpy()
        _check("canvas", canvas, (self.canvases, self.canvas_size, self.canvas_size))
        leading = canvas.shape[:-3]
        flat = canvas.reshape(-1, *canvas.shape[-3:])
        height, width = self.content
        found = []
        for n, (start, stop) in enumerate(self.windows):
            reached = self.windows[n - 1][1] if n else 0
            for z in range(reached, stop):
                row, column = self._place(z - start)
                found.append(flat[:, n, row : row + height, column : column + width])
        tiles = torch.stack(found, 1)
        size = (self.patch_size[1], self.patch_size[0])
        slices = _smoothed(tiles, size) if tiles.is_floating_point() else _nearest(tiles, size)
        return slices.permute(0, 3, 2, 1).reshape(*leading, *self.patch_size)

    def _place(self, index: int) -> tuple[int, int]:
        row, column = divmod(index + self._empty_before, self.grid)
        return self._rows[row], self._columns[column]

    def _lay_out(self, slices: Tensor, fill: float) -> Tensor:
        """One canvas (B, S, S) of resized slices (B, k, h, w)."""
        canvas = slices.new_full((len(slices), self.canvas_size, self.canvas_size), fill)
        height, width = self.content
        for index in range(slices.shape[1]):
            row, column = self._place(index)
            canvas[:, row : row + height, column : column + width] = slices[:, index]
        return canvas


class DisturbedLayout:
    """A stitched canvas whose slices are shuffled, or each turned and mirrored by itself.

    Every training crop draws anew (``drawn``); whole volumes are predicted with one fixed draw. Slices that
    are not square are turned by half turns only, which keep their shape.
    """

    together = 1

    def __init__(self, base: StitchLayout, how: str, rng: np.random.Generator) -> None:
        """``how``: "shuffled" or "rotated"."""
        self.base, self.how = base, how
        self.patch_size, self.canvas_size = base.patch_size, base.canvas_size
        self.canvases, self.valid, self.windows = base.canvases, base.valid, base.windows
        slices = base.patch_size[2]
        self.order = torch.from_numpy(rng.permutation(slices)) if how == "shuffled" else None
        square = base.patch_size[0] == base.patch_size[1]
        turns = rng.integers(4, size=slices) if square else 2 * rng.integers(2, size=slices)
        flips = rng.integers(2, size=slices)
        self.moves = list(zip(turns.tolist(), flips.tolist(), strict=True)) if how == "rotated" else []

    @property
    def single(self) -> DisturbedLayout:
        return self

    def drawn(self, rng: np.random.Generator) -> DisturbedLayout:
        """The same with another draw, for one training crop."""
        return DisturbedLayout(self.base, self.how, rng)

    def stitch(self, patch: Array, fill: float, *, smooth: bool = False) -> Array:
        """As :meth:`SFRCore.stitching.StitchLayout.stitch`, of the disturbed slices."""
        if isinstance(patch, np.ndarray):
            return self.stitch(torch.from_numpy(np.ascontiguousarray(patch)), fill, smooth=smooth).numpy()
        _check("patch", patch, self.patch_size)
        if self.order is not None:
            patch = patch.index_select(-1, self.order.to(patch.device))
        if self.moves:
            slices = [
                _turned(patch[..., z], turns, flip=bool(flip)) for z, (turns, flip) in enumerate(self.moves)
            ]
            patch = torch.stack(slices, -1)
        return self.base.stitch(patch, fill, smooth=smooth)

    def unstitch(self, canvas: Array) -> Array:
        """As :meth:`SFRCore.stitching.StitchLayout.unstitch`, with the slices put right again."""
        if isinstance(canvas, np.ndarray):
            return self.unstitch(torch.from_numpy(np.ascontiguousarray(canvas))).numpy()
        patch = self.base.unstitch(canvas)
        if self.order is not None:
            patch = patch.index_select(-1, torch.argsort(self.order).to(patch.device))
        if self.moves:
            slices = [
                torch.rot90(patch[..., z].flip(-1) if flip else patch[..., z], -turns, (-2, -1))
                for z, (turns, flip) in enumerate(self.moves)
            ]
            patch = torch.stack(slices, -1)
        return patch


Layout: TypeAlias = StitchLayout | SliceLayout | DisturbedLayout


def make_layout(setting: str, patch: tuple[int, int, int], canvas: int, zoom: int) -> Layout:
    """How patches (X, Y, Z) are laid out on canvases of at most ``canvas`` pixels.

    - ``stitched``: all slices side by side at ``zoom``;
    - ``upsampled``: each slice enlarged to a whole canvas (MedSAM);
    - ``small``: each slice at its own size on a canvas that just holds it (SAMed);
    - ``scale:N``: slices resized to the tiles of an N x N grid;
    - ``shuffled``, ``rotated``: stitched, in random order, or each slice turned and mirrored by itself.

    Raises InputError for another setting, or where it does not suit patch and canvas.
    """
    size_x, size_y, _ = patch
    if setting == "stitched":
        return StitchLayout(patch, canvas, zoom)
    if setting in ("shuffled", "rotated"):
        return DisturbedLayout(StitchLayout(patch, canvas, zoom), setting, np.random.default_rng(0))
    if setting == "upsampled":
        return SliceLayout(patch, canvas, grid=1, content=(canvas, canvas))
    if setting == "small":
        side = -(-max(size_x, size_y) // TOKEN) * TOKEN
        together = max(1, canvas * canvas // (side * side))
        return SliceLayout(patch, side, grid=1, content=(size_y, size_x), together=together)
    name, _, number = setting.partition(":")
    if name != "scale" or not number.isdecimal() or int(number) < 1:
        raise InputError(
            f"There is no input of SAM called '{setting}'.",
            hint="Choose stitched, upsampled, small, shuffled, rotated, or scale:8 for a grid of 8 x 8.",
        )
    grid = int(number)
    tile = canvas // grid
    if tile < SMALLEST_TILE:
        raise InputError(
            f"A grid of {grid} x {grid} slices leaves {tile} pixels a slice on a canvas of {canvas} pixels.",
            hint=f"Choose scale:{max(1, canvas // SMALLEST_TILE)} or less.",
        )
    side = tile - 2 * min(LARGEST_PADDING, tile // 16)
    return SliceLayout(patch, canvas, grid=grid, content=(side, side))


def _turned(piece: Tensor, turns: int, *, flip: bool) -> Tensor:
    turned = torch.rot90(piece, turns, (-2, -1))
    return turned.flip(-1) if flip else turned


def _smoothed(slices: Tensor, size: tuple[int, int]) -> Tensor:
    """Slices (B, k, ., .) resized bilinearly, smoothed where they shrink."""
    if tuple(slices.shape[-2:]) == size:
        return slices
    return F.interpolate(slices, size=size, mode="bilinear", align_corners=False, antialias=True)


def _nearest(slices: Tensor, size: tuple[int, int]) -> Tensor:
    """Slices (B, k, ., .) resized by repeating or leaving out whole rows and columns."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        present = slices.shape[axis]
        if present != wanted:
            centres = (torch.arange(wanted, device=slices.device) * 2 + 1) * present
            slices = slices.index_select(axis, centres // (2 * wanted))
    return slices


def _check(what: str, array: Tensor, expected: tuple[int, int, int]) -> None:
    if tuple(array.shape[-3:]) != expected:
        raise ValueError(f"The {what} ends in {tuple(array.shape[-3:])}, the layout expects {expected}.")
