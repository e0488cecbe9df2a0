"""The application ``sfr``: its groups of commands, and the one place where an error becomes a sentence."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from SFRCore import __version__
from SFRCore.cli.display import console, print_json
from SFRCore.errors import Cancelled, DiskFull, OutOfMemory, SFRError, described, says_no_memory
from SFRCore.runtime.leases import in_use

EXAMPLE = "\n\n[bold]Example:[/bold]  "
STUDY_PANEL = "A study and its cases"
COMPUTE_PANEL = "Computing"
RESULTS_PANEL = "Results"
UPKEEP_PANEL = "Jobs and upkeep"


class ExplainingGroup(TyperGroup):
    """Runs a command; what goes wrong is one sentence on stderr and an exit code, never a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["SFRCore.json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except SFRError as error:
            explained = error
        except KeyboardInterrupt:
            explained = Cancelled("Cancelled.")
        except (MemoryError, OSError, RuntimeError) as error:
            explained = _explain(error)
        except Exception as error:
            if type(error).__module__.partition(".")[0] in ("click", "typer"):
                raise
            explained = _explain(error)
        print_error(explained, machine=ctx.meta["SFRCore.json"])
        raise typer.Exit(explained.exit_code)


app = typer.Typer(
    name="sfr",
    cls=ExplainingGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Segment a cohort of 3D medical images from a few labeled volumes.\n\n"
    "[bold]Example:[/bold]  sfr init STUDY --images scans --labels labels --num-labeled 4 "
    '--structures "1=Liver"  &&  sfr run STUDY  &&  sfr review STUDY',
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sfr {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options that belong to no command."""
    folder = os.environ.get("SFR_PACKAGES")
    if folder and ctx.invoked_subcommand != "doctor":  # which is asked between two installations
        ctx.with_resource(in_use(folder, f"'sfr {ctx.invoked_subcommand}'"))


def print_error(error: SFRError, *, machine: bool = False) -> None:
    """One sentence and what to do on stderr; with ``machine`` also an object on stdout."""
    if machine:
        print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
    console.print("Error: " + error.message, style="bold red", markup=False, highlight=False, soft_wrap=True)
    if error.hint:
        console.print(error.hint, markup=False, highlight=False, soft_wrap=True)


def log_file() -> Path:
    """Where tracebacks go that belong to no run: sfr.log in the user's cache folder."""
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sfr" / "sfr.log"


def _explain(error: BaseException) -> SFRError:
    """The sentence for an exception that is not SFRCore's own; its traceback is appended to the log."""
    log = log_file()
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {' '.join(sys.argv)}\n{''.join(traceback.format_exception(error))}\n")
        where = f"The details are in {log}."
    except OSError:
        where = f"The details could not be written to {log}."
    if says_no_memory(error):
        return OutOfMemory(
            "The memory of this computer or of its GPU ran out.",
            hint=f"Close other programs, or choose a smaller patch. {where}",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        name = error.filename or "a file"
        return DiskFull(
            f"The disk is full: {name} could not be written.",
            hint="Free some space and run the command again.",
        )
    return SFRError(f"Something unexpected went wrong ({described(error)}).", hint=where)


def main() -> None:
    """Entry point of the console script and of ``python -m SFRCore``."""
    app(prog_name="sfr")
