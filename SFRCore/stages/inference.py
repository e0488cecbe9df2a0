"""From a network's class probabilities to what a case's result says: label map, confidence, doubt, expected
Dice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import Tensor

from ..inputs import Layout
from ..runtime.devices import Device
from ..students import Student, fast_stride, fast_window
from ..students.sliding_window import sliding_window
from ..volumes import Frame

PATCHES_AT_ONCE = {"cuda": 8, "mps": 4, "cpu": 2}
MARGIN = 2
"""Voxels around the foreground that count when looking for the most doubtful slice."""
Probabilities = Callable[[Tensor], Tensor]
"""Crops (B, 1, X, Y, Z) on the device -> class probabilities (B, C, X, Y, Z), float32."""


def network_probabilities(network: Student, device: Device) -> Probabilities:
    """Softmax of a 3D student, in the device's precision."""
    network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def probabilities(crops: Tensor) -> Tensor:
        crops = crops.contiguous(memory_format=torch.channels_last_3d)
        with device.autocast():
            logits = network(crops)
        return logits.float().softmax(1)

    return probabilities


def stitched_probabilities(model: torch.nn.Module, layout: Layout, device: Device) -> Probabilities:
    """Softmax of a fine-tuned SAM: crops are laid out, segmented as images, and brought back."""
    single = layout.single

    def pieces(crop: Tensor) -> Iterator[Tensor]:
        """Of one crop (X, Y, Z): (C, X, Y, z) for each canvas' slices, as many together as in training."""
        for first in range(0, len(layout.windows), layout.together):
            windows = layout.windows[first : first + layout.together]
            canvases = torch.stack(
                [single.stitch(crop[..., start:stop], 0.0, smooth=True) for start, stop in windows]
            )
            found = []
            images = canvases.flatten(0, 1).unsqueeze(1)
            for image in images.split(1 if layout.together == 1 else len(images)):
                with device.autocast():
                    logits = model(image)
                found.append(logits.float().softmax(1))
            probabilities = torch.cat(found).unflatten(0, canvases.shape[:2]).transpose(1, 2)
            for offset, piece in enumerate(single.unstitch(probabilities)):
                reached = layout.windows[first + offset - 1][1] if first + offset else 0
                yield piece[..., reached - layout.windows[first + offset][0] :]

    def probabilities(crops: Tensor) -> Tensor:
        return torch.stack([torch.cat(list(pieces(crop)), -1) for crop in crops[:, 0]])

    return probabilities


def predict_volume(
    probabilities: Probabilities,
    image: np.ndarray,
    frame: Frame,
    window: Sequence[int],
    stride: Sequence[int],
    device: Device,
    *,
    trained_on: Sequence[int] | None = None,
    batch: int = 4,
    check: Callable[[], None] | None = None,
) -> np.ndarray:
    """Class probabilities (C, X, Y, Z), float32, of a preprocessed ``image`` of ``frame.shape`` on its file's
    grid.
    """
    found = sliding_window(
        probabilities,
        np.asarray(image),
        window,
        stride=stride,
        batch=batch,
        trained_on=trained_on,
        device=device.torch_device,
        check=check,
    )
    native: np.ndarray = frame.to_native(found)
    if native is not found:
        native /= np.maximum(native.sum(0, keepdims=True), 1e-6)
    return native


def student_windows(
    network: Student, shape: Sequence[int], patch: Sequence[int], dense: Sequence[int], fast: bool
) -> tuple[Sequence[int], Sequence[int]]:
    """Window and stride for a student: few large windows (``fast``), or the training patch at stride
    ``dense``.
    """
    if not fast:
        return patch, dense
    if network.takes_any_size:
        return fast_window(shape, patch, divisor=network.divisor)
    return patch, fast_stride(patch)


def predict_by_student(
    network: Student,
    image: np.ndarray,
    frame: Frame,
    patch: Sequence[int],
    dense: Sequence[int],
    device: Device,
    *,
    fast: bool = True,
    check: Callable[[], None] | None = None,
) -> np.ndarray:
    """As :func:`predict_volume`, by a student (in eval mode, on the device) in windows that suit it."""
    window, stride = student_windows(network, image.shape, patch, dense, fast)
    larger = math.prod(window) / math.prod(patch)
    return predict_volume(
        network_probabilities(network, device),
        image,
        frame,
        window,
        stride,
        device,
        trained_on=patch,
        batch=max(1, int(PATCHES_AT_ONCE[device.torch_device.type] / larger)),
        check=check,
    )


def describe(
    probabilities: np.ndarray, values: Sequence[int], frame: Frame, spacing: Sequence[float]
) -> dict[str, Any]:
    """The numbers of a result.

    ``probabilities`` (C, X, Y, Z) on the file's own grid with background first, ``values`` the study's values
    of classes 1..C-1, ``spacing`` in millimetres. Mean confidence is Eq. 8 of the paper; the expected Dice
    of a structure is 2 sum(p y) / (sum p + sum y), 0 where it was not found.
    """
    label = probabilities.argmax(0)
    confidence = probabilities.max(0)
    expected: dict[str, float] = {}
    volumes: dict[str, float] = {}
    voxel = float(np.prod(spacing)) / 1000.0
    for index, value in enumerate(values, start=1):
        found = label == index
        size = int(found.sum())
        total = float(probabilities[index].sum(dtype=np.float64)) + size
        shared = float(probabilities[index][found].sum(dtype=np.float64))
        expected[str(value)] = 2 * shared / total if size else 0.0
        volumes[str(value)] = size * voxel
    doubt = 1.0 - confidence
    near = label > 0
    near = ndimage.binary_dilation(near, iterations=MARGIN) if near.any() else np.ones_like(near)
    per_slice = (doubt * near).sum(axis=(0, 1), dtype=np.float64)
    means = confidence.mean(axis=(0, 1), dtype=np.float64)
    slices = [
        {
            "index": frame.native_slice(z)[1],
            "mean_confidence": round(float(means[z]), 5),
            "doubt": round(float(per_slice[z]), 3),
        }
        for z in range(label.shape[2])
    ]
    return {
        "mean_confidence": float(confidence.mean(dtype=np.float64)),
        "expected_dice": min(expected.values()),
        "expected_dice_by_structure": expected,
        "volume_ml": volumes,
        "slices": slices,
        "slice_axis": frame.native_slice(0)[0],
        "doubtful_slice": slices[int(per_slice.argmax())]["index"],
    }


def as_images(
    probabilities: np.ndarray, values: Sequence[int], frame: Frame
) -> tuple[sitk.Image, sitk.Image]:
    """Label map in the study's values (uint8 or uint16) and confidence (uint8, 0..255 for 0..1), in the
    input's geometry.
    """
    kind = np.uint8 if max(values) < 256 else np.uint16
    table = np.array([0, *values], dtype=kind)
    label = frame.to_image(table[probabilities.argmax(0)])
    confidence = frame.to_image(np.rint(probabilities.max(0) * 255).astype(np.uint8))
    return label, confidence


def summary(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a result that goes into events."""
    return {
        "confidence": round(float(numbers["mean_confidence"]), 5),
        "expected_dice": round(float(numbers["expected_dice"]), 4),
    }
