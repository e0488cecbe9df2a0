"""The command line ``sfr``: it parses, calls SFRCore and prints.

Nothing heavy is imported before a command runs."""

from SFRCore.cli import computing, results, studies, upkeep  # noqa: F401  (each registers its commands)
from SFRCore.cli.app import app, main

__all__ = ["app", "main"]
