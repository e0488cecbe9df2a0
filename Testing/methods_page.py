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
What the papers of two recipes leave open is set with `--recipe-option NAME=VALUE`; what each means stands in
`SFRCore/recipes/`.

| `--recipe` | options |
|---|---|
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
    return HEAD.format(shared=shared) + "".join(lines) + RECIPES + "".join(_recipe_lines())


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
