"""Recipes: which stages a run consists of, in which order. Each recipe is one file with one ``RECIPE``."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..stages.context import StageContext


@dataclass(frozen=True)
class Recipe:
    """``stages`` names what is run, in order; ``run`` does it and returns what each stage said."""

    name: str
    summary: str
    stages: tuple[str, ...]
    run: Callable[[StageContext], dict[str, Any]]


def available_recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        recipe = getattr(importlib.import_module(f"{__name__}.{module.name}"), "RECIPE", None)
        if recipe is not None:
            found[recipe.name] = recipe
    return found


def get_recipe(name: str) -> Recipe:
    """The recipe of that name; InputError names the known ones."""
    recipes = available_recipes()
    if name not in recipes:
        raise InputError(f"There is no recipe '{name}'.", hint=f"Known recipes: {', '.join(recipes)}.")
    return recipes[name]
