"""Semi-supervised methods: every module of this package with a ``METHOD`` is found by its name."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from SFRCore.errors import InputError, described

if TYPE_CHECKING:
    from SFRCore.ssl.contract import Method

GUIDE = "docs/adding-a-method.md shows what a method's file has."


def available_methods() -> dict[str, type[Method]]:
    """Every method by its name, in alphabetical order; a file that cannot be used is passed over."""
    return scan()[0]


def get_method(name: str) -> type[Method]:
    """The class of a method; raises InputError for an unknown name, or a file of that name without method."""
    methods, defects = scan()
    if name in methods:
        return methods[name]
    if name in defects:
        raise InputError(f"SFRCore/ssl/{name}.py cannot be used: {defects[name]}", hint=GUIDE)
    passed = f" Not usable: {', '.join(f'{file}.py' for file in defects)}." if defects else ""
    try:
        without = importlib.util.find_spec(f"{__name__}.{name}") is not None
    except (ImportError, ValueError):
        without = False
    if without:
        raise InputError(f"SFRCore/ssl/{name}.py has no method: no line METHOD = Class.", hint=GUIDE)
    raise InputError(
        f"The semi-supervised method '{name}' is not known.",
        hint=f"Choose one of: {', '.join(methods)}.{passed}",
    )


@cache
def scan() -> tuple[dict[str, type[Method]], dict[str, str]]:
    """Methods by name, and by file name what is wrong with those that cannot be used."""
    from SFRCore.ssl.contract import Method

    methods: dict[str, type[Method]] = {}
    defects: dict[str, str] = {}
    for file in sorted(found.name for found in pkgutil.iter_modules(__path__)):
        try:
            module = importlib.import_module(f"{__name__}.{file}")
        except Exception as error:  # whatever a file does when it is read
            defects[file] = f"{described(error)}."
            continue
        if not hasattr(module, "METHOD"):
            continue
        method = module.METHOD
        if not (isinstance(method, type) and issubclass(method, Method)):
            defects[file] = "METHOD is not a class made from SFRCore.ssl.contract.Method."
        elif lacking := [word for word in ("name", "description", "source") if not hasattr(method, word)]:
            defects[file] = f"the class {method.__name__} has no {' and no '.join(lacking)}."
        elif method.name != file:
            defects[file] = f"its method is called {method.name}; file and method have one name."
        else:
            methods[file] = method
    return methods, defects
