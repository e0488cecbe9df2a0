"""Foundation models from a known name or a file, and back to a file in segment-anything's own format."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from SFRCore.errors import InputError
from SFRCore.foundation.download import CHECKPOINTS, checkpoint_path, file_sha256
from SFRCore.foundation.sam import ClasswiseSAM, build_decoder
from SFRCore.foundation.spec import SPECS, FoundationSpec, get_spec, spec_from_state
from SFRCore.runtime.files import atomic_path

# Their shapes depend on the number of classes. What fits is kept, tensor by tensor, as in the reference: it
# means to draw all three anew where one does not fit, but the loading that failed has copied the others.
CLASS_PARTS = ("mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head")
RANDOM = tuple(name for name in SPECS if name not in CHECKPOINTS)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from the CPU's generator as if just seeded, and leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def build_foundation(
    name_or_file: str | Path,
    *,
    classes: int,
    canvas: int | None = None,
    seed: int = 0,
    folder: Path | str | None = None,
) -> ClasswiseSAM:
    """A SAM on the CPU, in float32, for ``classes`` classes and canvases of ``canvas`` pixels.

    Without ``canvas``, it has the size that the weights were made for.

    ``name_or_file``: ``vit_b``, ``vit_l``, ``vit_h`` (downloaded before, to ``folder`` or the checkpoint
    folder), ``tiny`` or ``tiny16`` (random weights drawn from ``seed``), or a checkpoint file of the same
    design. Parts that depend on the number of classes and do not fit are drawn from ``seed``.

    Raises InputError for an unknown name, a missing or damaged file, one that holds program code, one whose
    checksum is not the known one, or another architecture.
    """
    name = str(name_or_file)
    if name in RANDOM:
        return _build_random(get_spec(name), classes, canvas, seed)
    if name in CHECKPOINTS:
        path = downloaded(name, folder)
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            raise InputError(
                f"There is no foundation model and no file called {name}.",
                hint=f"Choose one of {', '.join(SPECS)}, or a checkpoint file.",
            )
    checksum = file_sha256(path)
    if name in CHECKPOINTS and checksum != CHECKPOINTS[name].sha256:
        raise InputError(
            f"{path} is damaged: its checksum is not the known one.",
            hint=f"Delete it and run: sfr download {name}",
        )
    state = load_checkpoint_file(path)
    model = build_from_state(state, classes=classes, canvas=canvas, seed=seed, source=str(path))
    model.origin = {
        "name": name if name in CHECKPOINTS else model.spec.name,
        "seed": seed,
        "sha256": checksum,
    }
    if name not in CHECKPOINTS:
        model.origin["file"] = str(path.absolute())
    return model


def downloaded(name: str, folder: Path | str | None = None) -> Path:
    """The file of a known checkpoint; InputError where it is not downloaded."""
    path = checkpoint_path(name, folder)
    if not path.is_file():
        raise InputError(
            f"The checkpoint {name} is not downloaded yet: {path} is missing.",
            hint=f"Run: sfr download {name}",
        )
    return path


def build_from_state(
    state: Mapping[str, Tensor],
    *,
    classes: int,
    canvas: int | None = None,
    seed: int = 0,
    source: str = "the file",
) -> ClasswiseSAM:
    """A SAM with the weights of a segment-anything state dict, its positions resized to ``canvas``."""
    spec = spec_from_state(state, source=source)
    with torch.device("meta"):
        model = ClasswiseSAM(spec, classes, canvas)
    weights = split_qkv(resize_positions(state, spec, model.canvas))
    with seeded(seed):
        fresh = {
            f"mask_decoder.{key}": value for key, value in build_decoder(spec, classes).state_dict().items()
        }
    by_class = {key for key in fresh if key.split(".")[1] in CLASS_PARTS}
    kept = {
        key: value
        for key, value in weights.items()
        if key.split(".")[1] not in CLASS_PARTS or (key in by_class and value.shape == fresh[key].shape)
    }
    weights = {key: fresh[key] for key in by_class} | kept
    if any(not bool(value.isfinite().all()) for value in weights.values()):
        raise InputError(f"{source} is damaged: some of its weights are not numbers.", hint="Fetch it again.")
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"{source} does not hold the weights of a Segment Anything model of the original design.",
            hint="Use a vit_b, vit_l or vit_h checkpoint, or one fine-tuned from them, such as MedSAM.",
        ) from error
    return model


def _build_random(spec: FoundationSpec, classes: int, canvas: int | None, seed: int) -> ClasswiseSAM:
    with seeded(seed):
        model = ClasswiseSAM(spec, classes, canvas)
        assert model.image_encoder.pos_embed is not None
        nn.init.trunc_normal_(model.image_encoder.pos_embed, std=0.02)
    model.origin = {"name": spec.name, "seed": seed}
    return model


def load_checkpoint_file(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a checkpoint (safetensors, or PyTorch's format without code) in segment-anything's
    names.

    Wrappings such as ``{"model": ...}`` and prefixes such as ``module.`` are taken off; weights become
    float32. Raises InputError where the file is missing, damaged, holds program code or no SAM.
    """
    path = Path(path)
    damaged = InputError(
        f"{path} is not a whole checkpoint file.", hint="Fetch it again, or choose another file."
    )
    try:
        if path.suffix.lower() == ".safetensors":
            content: Any = load_file(path, device="cpu")
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"The checkpoint {path} is missing.", hint="Check the file you chose.") from error
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):
            raise InputError(
                f"{path} holds program code besides weights and is not opened, for safety.",
                hint="Save it again as a state dict or as safetensors, or use the original checkpoint.",
            ) from error
        raise damaged from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise damaged from error
    while isinstance(content, dict):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        marks = [key for key in tensors if key.endswith("image_encoder.pos_embed")]
        if marks:
            prefix = marks[0].removesuffix("image_encoder.pos_embed")
            return {
                key.removeprefix(prefix): value.float()
                for key, value in tensors.items()
                if key.startswith(
                    tuple(prefix + part for part in ("image_encoder.", "prompt_", "mask_decoder."))
                )
            }
        wrapped = [content[key] for key in ("model", "state_dict", "model_state_dict") if key in content]
        content = wrapped[0] if wrapped else None
    raise InputError(
        f"{path} does not hold the weights of a Segment Anything model.",
        hint="Use a vit_b, vit_l or vit_h checkpoint, or one fine-tuned from them, such as MedSAM.",
    )


def resize_positions(state: Mapping[str, Tensor], spec: FoundationSpec, canvas: int) -> dict[str, Tensor]:
    """The state dict with its position embeddings resized from ``spec.canvas`` to ``canvas`` pixels.

    Absolute positions are resized bilinearly, the tables of relative positions of the global blocks linearly
    (as the SFR reference implementation, there for ViT-B only); windows keep theirs.
    """
    side = spec.tokens(canvas)
    resized = dict(state)
    if canvas == spec.canvas:
        return resized
    absolute = state["image_encoder.pos_embed"].permute(0, 3, 1, 2)
    absolute = F.interpolate(absolute, size=(side, side), mode="bilinear", align_corners=False)
    resized["image_encoder.pos_embed"] = absolute.permute(0, 2, 3, 1).contiguous()
    for block in spec.global_blocks:
        for axis in "hw":
            key = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            table = F.interpolate(state[key].T[None], size=2 * side - 1, mode="linear", align_corners=False)
            resized[key] = table[0].T.contiguous()
    return resized


def split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """segment-anything's ``attn.qkv`` as ``attn.q``, ``attn.k`` and ``attn.v``."""
    split: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".attn.qkv." in key:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                split[key.replace(".qkv.", f".{part}.")] = third.clone()
        else:
            split[key] = value
    return split


def join_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``split_qkv``."""
    joined: dict[str, Tensor] = {}
    for key, value in state.items():
        if ".attn.q." in key:
            thirds = [state[key.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            joined[key.replace(".q.", ".qkv.")] = torch.cat(thirds)
        elif ".attn.k." not in key and ".attn.v." not in key:
            joined[key] = value
    return joined


def save_foundation_checkpoint(model: ClasswiseSAM, path: Path | str) -> None:
    """Write all weights in segment-anything's names, to be used as a foundation model again.

    Safetensors where the file is called so, else PyTorch's format. Raises ValueError while low-rank adapters
    are attached (merge them first), InputError for bottleneck adapters, which that format cannot hold, and
    DiskFull and InputError where the file cannot be written.
    """
    path = Path(path)
    split = model.state_dict()
    if any(".lora_" in key for key in split):
        raise ValueError("merge the adapters before saving a foundation checkpoint")
    if any(".adapter." in key for key in split):
        raise InputError(
            "A model with bottleneck adapters cannot be written in Segment Anything's own format.",
            hint="Tune it with lora instead, whose adapters can be merged.",
        )
    state = {key: value.detach().cpu().contiguous() for key, value in join_qkv(split).items()}
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".safetensors":
            save_file(state, temporary)
        else:
            torch.save(state, temporary)
