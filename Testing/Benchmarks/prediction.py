"""Prediction of one volume: the reference's dense windows, one at a time in float32, against the fast
default.

    python Testing/Benchmarks/prediction.py [--model STUDY/models/sfr-mean_teacher] [--image FILE]
    [--repeat 2]

Without a model, a V-Net is trained for a minute on invented left atria; without an image, one of 180 x 140
x 88 voxels is invented. Both ways are timed in turn, in one run, on the same weights and volume.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SHAPE, PATCH, DENSE = (180, 140, 88), (112, 112, 80), (18, 18, 4)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="folder of a student trained with the preset left_atrium")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40, help="training steps where no model is given")
    arguments = parser.parse_args()

    from SFRCore.runtime.devices import choose_device
    from SFRCore.stages.inference import predict_by_student
    from SFRCore.students.sliding_window import sliding_window

    with tempfile.TemporaryDirectory() as folder:
        image, label, frame = _volume(Path(folder), arguments.image)
    network = _network(arguments, image, label)
    device = choose_device("cpu")

    def reference() -> np.ndarray:
        plain = network.to(memory_format=torch.contiguous_format)

        def probabilities(patches: Tensor) -> Tensor:
            return plain(patches).softmax(1)

        return sliding_window(probabilities, image, PATCH, stride=DENSE, batch=1)

    def fast() -> np.ndarray:
        return predict_by_student(network, image, frame, PATCH, DENSE, device)

    seconds: dict[str, list[float]] = {"reference": [], "fast": []}
    results = {}
    for _ in range(arguments.repeat):
        for name, way in (("reference", reference), ("fast", fast)):
            begin = time.perf_counter()
            results[name] = way().argmax(0)
            seconds[name].append(time.perf_counter() - begin)
    slow, quick = min(seconds["reference"]), min(seconds["fast"])
    a, b = results["reference"] > 0, results["fast"] > 0
    dice = 2 * (a & b).sum() / max(1, a.sum() + b.sum())
    print(f"volume {image.shape}, patch {PATCH}, {torch.get_num_threads()} threads")
    print(f"reference, stride {DENSE}, one window at a time, float32: {slow:.1f} s")
    print(f"fast default, {device.precision}: {quick:.1f} s")
    print(
        f"ratio {slow / quick:.1f}, Dice between the two results {dice:.4f}, "
        f"foreground {a.mean():.1%} and {b.mean():.1%}"
    )


def _volume(folder: Path, path: Path | None) -> tuple[np.ndarray, np.ndarray | None, object]:
    from SFRCore.synthetic import make_synthetic_cohort
    from SFRCore.volumes import Frame, Normalisation, read_image, read_label

    label = None
    if path is None:
        images, labels = make_synthetic_cohort(folder, cases=1, size=SHAPE, structures=1)
        path = next(images.iterdir())
        label = read_label(next(labels.iterdir()), [1])
    image = read_image(path)
    frame = Frame.of(image, stack_axis=2)
    array = Normalisation("zscore").apply(frame.to_internal(image))
    return array, None if label is None else frame.to_internal(label, label=True), frame


def _network(arguments: argparse.Namespace, image: np.ndarray, label: np.ndarray | None) -> nn.Module:
    from SFRCore.ssl.losses import segmentation_loss
    from SFRCore.students import load_student, make_student

    if arguments.model is not None:
        return load_student(arguments.model)[0].eval()
    if label is None:
        sys.exit("With --image give a --model too.")
    torch.manual_seed(0)
    network = make_student("vnet", in_channels=1, classes=2).to(memory_format=torch.channels_last_3d).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    rng = np.random.default_rng(0)
    side = 64
    for _ in range(arguments.steps):
        starts = [[int(rng.integers(0, size - side + 1)) for size in image.shape] for _ in range(4)]
        cuts = [tuple(slice(start, start + side) for start in corner) for corner in starts]
        batch = torch.from_numpy(np.stack([image[cut] for cut in cuts])[:, None])
        target = torch.from_numpy(np.stack([label[cut] for cut in cuts]).astype(np.int64))
        loss = segmentation_loss(network(batch.contiguous(memory_format=torch.channels_last_3d)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


if __name__ == "__main__":
    main()
