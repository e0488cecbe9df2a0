"""From label maps to prompts of Segment Anything, slice by slice, and from its answers to label maps.

Source: ASLseg (ISBI 2024) turns a student's predictions into prompts; which and how is not published. Boxes
are enlarged as MedSAM's are, up to 20 of 1024 pixels in training and half of that after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from ..foundation.prompting import PromptedSAM, Prompts
from ..runtime.devices import Device

KINDS = ("box", "point", "mask", "box+point", "box+mask", "point+mask", "box+point+mask")
LEAST_AREA = 10
"""Voxels of a connected component in a slice below which it is not asked about."""
MOST_AT_ONCE = 16
JITTER = 20 / 1024
"""Largest enlargement of a training box on each side, as a share of the canvas."""
MASK_LOGIT = 10.0
TOUCHING = np.ones((3, 3), dtype=bool)


def components(mask: np.ndarray, least: int = LEAST_AREA) -> list[np.ndarray]:
    """The connected components (H, W) of a mask, those that touch at corners together, largest first."""
    marks, count = ndimage.label(mask, structure=TOUCHING)
    areas = np.bincount(marks.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-areas, kind="stable")
    return [marks == index + 1 for index in order if areas[index] >= least]


def make_prompts(
    things: Sequence[np.ndarray],
    canvas: int,
    mask_side: int,
    kinds: str,
    rng: np.random.Generator | None = None,
    masks: Sequence[np.ndarray] | None = None,
) -> Prompts:
    """Prompts about masks (H, W) of things in a slice that is resized to a canvas.

    ``kinds``: of :data:`KINDS`. For training, ``rng`` draws how far a box is enlarged and where in a thing
    its point lies; otherwise the point is the one deepest inside. ``masks`` are shown in place of the things.
    """
    height, width = things[0].shape
    scale = np.array([canvas / width, canvas / height])
    boxes, points = [], []
    for thing in things:
        rows, columns = np.nonzero(thing)
        low, high = np.array([columns.min(), rows.min()]), np.array([columns.max() + 1, rows.max() + 1])
        margin = canvas * JITTER * (rng.random(4) if rng is not None else np.full(4, 0.5))
        corners = np.concatenate([low * scale - margin[:2], high * scale + margin[2:]])
        boxes.append(corners.clip(0, canvas - 1))
        if rng is None:
            depth = ndimage.distance_transform_edt(np.pad(thing, 1))[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        else:
            chosen = int(rng.integers(len(rows)))
            row, column = rows[chosen], columns[chosen]
        points.append((np.array([column, row]) + 0.5) * scale - 0.5)
    shown = torch.from_numpy(np.stack(masks if masks is not None else things)).float()[:, None]
    resized = F.interpolate(shown, size=(mask_side, mask_side), mode="bilinear", antialias=True)
    return Prompts(
        torch.tensor(np.stack(boxes), dtype=torch.float32) if "box" in kinds else None,
        torch.tensor(np.stack(points), dtype=torch.float32) if "point" in kinds else None,
        MASK_LOGIT * (2 * resized - 1) if "mask" in kinds else None,
    )


def as_canvas(piece: np.ndarray, canvas: int) -> torch.Tensor:
    """A slice (H, W) as an image (1, S, S), resized bilinearly."""
    image = torch.from_numpy(np.ascontiguousarray(piece, dtype=np.float32))[None, None]
    return F.interpolate(image, size=(canvas, canvas), mode="bilinear", antialias=True)[0]


@torch.inference_mode()
def ask_about(
    model: PromptedSAM,
    image: np.ndarray,
    guesses: Sequence[np.ndarray],
    classes: int,
    kinds: str,
    device: Device,
    check: Callable[[], None] | None = None,
) -> list[np.ndarray]:
    """SAM's label map (X, Y, Z), uint8, for each of several guesses (X, Y, Z) at a volume's label map.

    Every component of every slice is asked about; a voxel gets the class with the highest logit, background
    where none is above 0, and nothing is found in a slice where nothing was guessed.
    """
    found = [np.zeros(guess.shape, np.uint8) for guess in guesses]
    where = device.torch_device
    for z in range(image.shape[2]):
        asked = [(n, c) for n, guess in enumerate(guesses) for c in range(1, classes)
                 if (guess[:, :, z] == c).any()]  # fmt: skip
        things = {key: components((guesses[key[0]][:, :, z] == key[1]).T) for key in asked}
        if not any(things.values()):
            continue
        if check is not None:
            check()
        with device.autocast():
            embedding = model.encode(as_canvas(np.asarray(image[:, :, z]).T, model.canvas)[None].to(where))
        size = (image.shape[1], image.shape[0])
        best = {n: np.zeros(size, np.float32) for n, _ in asked}
        for (n, c), masks in things.items():
            for first in range(0, len(masks), MOST_AT_ONCE):
                prompts = make_prompts(
                    masks[first : first + MOST_AT_ONCE], model.canvas, model.mask_side, kinds
                )
                with device.autocast():
                    logits = model.answer(embedding, prompts.to(where)).float()
                logit = F.interpolate(logits[None], size=size, mode="bilinear", antialias=True)[0]
                strongest = logit.amax(0).cpu().numpy()
                better = strongest > best[n]
                best[n][better] = strongest[better]
                found[n][:, :, z].T[better] = c
    return found
