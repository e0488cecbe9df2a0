"""Recipes: which stages a run consists of, in which order. Each recipe is one file with one ``RECIPE``."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from ..stages.context import StageContext


@dataclass(frozen=True)
class Recipe:
    """``stages`` names what is run, in order; ``run`` does it and returns what each stage said.

    ``options`` are what ``--recipe-option`` sets, with their defaults; ``limits`` the least and the largest
    number, or the words, that an option may be.
    """

    name: str
    summary: str
    stages: tuple[str, ...]
    run: Callable[[StageContext], dict[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    limits: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def resolved(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, the defaults where nothing is ``given``; InputError for one that cannot be used."""
        for name, value in given.items():
            if name not in self.options:
                hint = f"It has: {', '.join(self.options)}." if self.options else "It has none."
                raise InputError(f"The recipe {self.name} has no option '{name}'.", hint=hint)
            if not _fits(value, self.options[name], self.limits.get(name)):
                raise InputError(
                    f"The recipe {self.name} cannot use {name}={value}.",
                    hint=f"Give {_expected(self.options[name], self.limits.get(name))}.",
                )
        return {**self.options, **given}


def _fits(value: Any, default: Any, limits: tuple[Any, ...] | None) -> bool:
    if isinstance(default, bool | str):
        return isinstance(value, type(default)) and (limits is None or value in limits)
    number = isinstance(value, int if isinstance(default, int) else int | float)
    if not number or isinstance(value, bool) or not math.isfinite(value):
        return False
    return limits is None or bool(limits[0] <= value <= limits[1])


def _expected(default: Any, limits: tuple[Any, ...] | None) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, str):
        return "one of: " + ", ".join(limits or ())
    kind = "a whole number" if isinstance(default, int) else "a number"
    return f"{kind} from {limits[0]} to {limits[1]}" if limits else kind


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
