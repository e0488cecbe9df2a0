"""Semi-supervised methods: every module of this package with a ``METHOD`` is found by its name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from SFRCore.errors import InputError

if TYPE_CHECKING:
    from SFRCore.ssl.contract import Method


@cache
def available_methods() -> dict[str, type[Method]]:
    """Every method by its name, in alphabetical order."""
    names = (found.name for found in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    methods: list[type[Method]] = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    return {method.name: method for method in sorted(methods, key=lambda method: method.name)}


def get_method(name: str) -> type[Method]:
    """The class of a method; raises InputError for an unknown name."""
    methods = available_methods()
    if name not in methods:
        raise InputError(
            f"The semi-supervised method '{name}' is not known.", hint=f"Choose one of: {', '.join(methods)}."
        )
    return methods[name]
