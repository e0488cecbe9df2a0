"""Writes docs/methods.md: every semi-supervised method, where it is from, and its options.

python Testing/methods_page.py
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "methods.md"
HEAD = """# The semi-supervised methods and their options

`--ssl NAME` chooses one, `--method-option NAME=VALUE` sets an option, and may be given several times:
`sfr run STUDY --ssl acmt --method-option threshold=0.7,0.9`. What each loss is, and where ours differs from
the released code, stands at the top of its class:
`python -c "from SFRCore.ssl import get_method; help(get_method('acmt'))"`.

Every method also has {shared}. The preset of a
data set replaces `schedule`, `step_every`, `base_rate`, `consistency` and `ramp`, so that methods are
compared alike, but for those marked \\*; what you set yourself holds. `ramp=k,l,m`: of m iterations the
weight `consistency` rises every l, k times, as exp(-5 (1 - t)²) with t from 0 to 1; a training of another
length stretches or shortens that. Fractions are rounded here.

This page is written by `python Testing/methods_page.py`.

| `--ssl` | what it is | source | options |
|---|---|---|---|
"""

RECIPES = """
## What the papers of two recipes leave open
Neither has released code. What is written below as *here* is our reading; an option changes it where one is
named, with `--recipe-option NAME=VALUE`.

| `--recipe` | options |
|---|---|
"""

READINGS = """
**SFR+** (IEEE TMI 2025, section III-C): a sample whose confidence, the mean over its voxels of the largest
probability (Eq. 8), is above 0.985 updates SAM; the others get SAM's pseudo-labels.
- A sample is here a crop of the training, and all its voxels count; `region=foreground` looks only at
  structures and two voxels around, for background is easily sure.
- Here the student's probabilities are looked at, without dropout; `judge=teacher` or `judge=foundation` the
  others'.
- SAM learns from the labeled crops and the confident ones with the student's labels, stitched, at a constant
  `foundation_rate`; it begins after the share `warm_up` of the iterations, and then with every one (of each
  `period` iterations in the last `updates`).
- Confident crops get no pseudo-labels of SAM; with `keep_confident=true` they do. The method's own loss is on
  all.

**ASLseg** (ISBI 2024): a student's predictions prompt a fine-tuned SAM, an adaptation network trained on
synthetic pseudo-labels refines both, reliable cases join the labeled ones, and so on for some `rounds`.
- Prompts are here made slice by slice for each connected component of at least 10 voxels: a box enlarged by
  10/1024 of the canvas and the point deepest inside; `prompts` also knows `mask`, the component itself as
  strong logits.
- SAM is tuned by `--tuning` on slices of labeled cases with true components: boxes enlarged by up to 20/1024,
  points anywhere inside, masks with mistakes.
- The adaptation network is here a student that sees the image and both predictions, trained on `corruptions`
  spoilt copies of each label with SAM's answers to them.
- A case is here reliable if its refined label agrees with the student's and with SAM's, mean Dice at least
  `agreement`, and the mean probability of its foreground is at least `certainty`. It is judged anew in every
  round and never replaces a label of a person.
"""


def page() -> str:
    """The page as it should be."""
    from SFRCore.ssl import available_methods
    from SFRCore.ssl.contract import Method

    lines = []
    for name, method in available_methods().items():
        own = {key: value for key, value in method.known_options().items() if key not in Method.defaults}
        options = ", ".join(
            f"`{key}={text(value)}`" + ("\\*" if key in method.keeps else "") for key, value in own.items()
        )
        lines.append(f"| `{name}` | {method.description} | {method.source} | {options or '–'} |\n")
    shared = ", ".join(f"`{key}={text(value)}`" for key, value in Method.defaults.items())
    return HEAD.format(shared=shared) + "".join(lines) + RECIPES + "".join(_recipe_lines()) + READINGS


def _recipe_lines() -> list[str]:
    from SFRCore.recipes import available_recipes, get_recipe

    found = ((name, get_recipe(name).options) for name in available_recipes())
    return [
        f"| `{name}` | {', '.join(f'`{key}={text(value)}`' for key, value in options.items())} |\n"
        for name, options in found
        if options
    ]


def text(value: Any) -> str:
    """A value as ``--method-option`` takes it."""
    if isinstance(value, tuple | list):
        return ",".join(map(text, value))
    if isinstance(value, Fraction | float):
        return f"{float(value):.4g}"
    return "(unset)" if value is None else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"Written: {PAGE}")
