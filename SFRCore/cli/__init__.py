"""The command line ``sfr``: it parses, calls SFRCore and prints.

Nothing heavy is imported before a command runs.
"""

from importlib import import_module

from SFRCore.cli.app import app, main

for _part in ("studies", "computing", "comparing", "results", "upkeep"):
    import_module(f"{__name__}.{_part}")

__all__ = ["app", "main"]
