"""Options that several commands share, and how their text is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from SFRCore.errors import InputError

StudyFolder = Annotated[Path, typer.Argument(metavar="STUDY", help="The study folder.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however long it will take.")]
Background = Annotated[
    bool, typer.Option("--background", help="Start it as a process of its own and return; see sfr jobs.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", show_default="auto")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.", show_default="auto")]
Recipe = Annotated[
    str | None, typer.Option(help="Which stages run: sfr, sfr_plus, aslseg or baseline.", show_default="sfr")
]
Ssl = Annotated[
    str | None,
    typer.Option(
        help="Semi-supervised method of the retraining: mean_teacher, supervised, self_training, acmt, "
        "acmt_mu, acmt_serr, acmt_perr, magicnet, ua_mt, cps, ict, urpc, cct, dtc, bcp, caussl, ss_net, cpcl "
        "or slc_net.",
        show_default="mean_teacher",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Numbers for a kind of data: left_atrium, brats, btcv, mact, abdomenct1k, hippocampus, uniform, "
        "or auto, which chooses them from the volumes.",
        show_default="the study's",
    ),
]
Foundation = Annotated[
    str | None,
    typer.Option(
        help="tiny, tiny16 (coarser, faster), vit_b, vit_l, vit_h or a checkpoint file.", show_default="tiny"
    ),
]
Tuning = Annotated[
    str | None,
    typer.Option(
        help="What of SAM is tuned: lora, adapter, decoder, encoder_decoder or full.",
        show_default="by the foundation",
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        help="What SAM is shown: stitched, upsampled, small, scale:N (an N x N grid), shuffled or rotated "
        "slices.",
        show_default="stitched",
    ),
]
Student = Annotated[
    str | None,
    typer.Option(help="Network that predicts in the end: vnet or unet3d.", show_default="by the preset"),
]
PseudoLabels = Annotated[
    str | None,
    typer.Option(help="cached (made once) or online (made while retraining).", show_default="cached"),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random number.", show_default="1337")]
IterationsFinetune = Annotated[
    int | None, typer.Option(help="Steps of fine-tuning SAM.", show_default="by the preset")
]
IterationsRetrain = Annotated[
    int | None,
    typer.Option(help="Steps of training the student.", show_default="by the preset"),
]
Patch = Annotated[
    str | None,
    typer.Option(
        metavar="X,Y,Z",
        help="Size of a training crop in voxels.",
        show_default="by the preset",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Canvases in a step of fine-tuning, and labeled as well as unlabeled crops in one of training "
        "the student (more with methods that have more). 1 needs less memory than the paper's 2.",
        show_default="2",
    ),
]
PseudoWeight = Annotated[
    float | None, typer.Option(help="Weight of the pseudo-label loss.", show_default="1")
]
PseudoSchedule = Annotated[
    str | None,
    typer.Option(
        help="Whether that weight stays: constant, or linear, down to 0 at the end.", show_default="constant"
    ),
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--method-option",
        metavar="NAME=VALUE",
        help="An option of the semi-supervised method; may be repeated.",
    ),
]
RecipeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--recipe-option",
        metavar="NAME=VALUE",
        help="An option of the recipe; may be repeated.",
    ),
]
Faithful = Annotated[
    bool,
    typer.Option("--faithful", help="Do as the reference code does, also where it departs from its paper."),
]
Dense = Annotated[
    bool,
    typer.Option("--dense", help="Predict with the reference's dense windows: slower, a little smoother."),
]
ResampleLabels = Annotated[
    bool, typer.Option("--resample-labels", help="Accept labels on another grid, resampled to their image.")
]


def split_ids(text: str | None) -> list[str]:
    """ "a, b,c" as ["a", "b", "c"]; None and empty text as []."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def parse_pairs(pairs: list[str] | None, option: str, expected: str) -> list[tuple[str, str]]:
    """ "NAME=VALUE" texts as pairs; InputError says what ``option`` expects."""
    read = []
    for pair in pairs or []:
        name, sign, value = pair.partition("=")
        if not (sign and name.strip() and value.strip()):
            raise InputError(
                f"{option} {pair} cannot be read.", hint=f"It is written as {option} {expected}."
            )
        read.append((name.strip(), value.strip()))
    return read


def parse_patch(text: str | None) -> tuple[int, int, int] | None:
    """ "96,96,64" or "96x96x64" as three numbers of voxels."""
    if text is None:
        return None
    parts = text.lower().replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(
            f"--patch {text} is not a size in voxels.", hint="Give three numbers: --patch 96,96,64"
        )
    first, second, third = (int(part) for part in parts)
    return first, second, third


def parse_value(text: str) -> Any:
    """The text as a truth value, number or word, whichever it is first; "40,150,6000" as a tuple of them."""
    if "," in text:
        return tuple(parse_value(part.strip()) for part in text.split(","))
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def settings_from(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for SFRCore.api from a command's options; what was not given is left out."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    if given.pop("dense", False):
        given["fast"] = False
    if "patch" in given:
        given["patch"] = parse_patch(given["patch"])
    pairs = parse_pairs(given.pop("method_option", None), "--method-option", "NAME=VALUE")
    if pairs:
        given["method_options"] = {name: parse_value(value) for name, value in pairs}
    pairs = parse_pairs(given.pop("recipe_option", None), "--recipe-option", "NAME=VALUE")
    if pairs:
        given["recipe_options"] = {name: parse_value(value) for name, value in pairs}
    return given


def arguments_from(options: Mapping[str, Any]) -> list[str]:
    """The options as the words of a command line, for a process of its own."""
    words: list[str] = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is None or value is False or value == []:
            continue
        if value is True:
            words.append(flag)
        else:
            for item in value if isinstance(value, list) else [value]:
                words += [flag, str(item)]
    return words
