"""Commands around computing: jobs, cancel, download, doctor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from SFRCore.cli import options as opt
from SFRCore.cli.app import EXAMPLE, UPKEEP_PANEL, app
from SFRCore.cli.display import Display, console, print_json, print_table, show_result, size
from SFRCore.errors import InputError, SFRError, command_line

SECONDS_TO_STOP = 10.0
"""How long a job may take to stop by itself before its processes are ended."""


@app.command(
    rich_help_panel=UPKEEP_PANEL,
    help="List the runs of a study, or follow the one that is running." + EXAMPLE + "sfr jobs STUDY --follow",
)
def jobs(
    study: opt.StudyFolder,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show its progress until it ends.")] = False,
    json: opt.Json = False,
) -> None:
    """Runs and their state."""
    from SFRCore.runtime.jobs import Job
    from SFRCore.study import Study

    root = Study.open(study).root
    if follow:
        running = Job.running(root)
        if running is None:
            raise InputError(
                f"No job is running in {study}.",
                hint=f"Past runs are listed by:  {command_line('sfr', 'jobs', study)}",
            )
        _follow(running)
        return
    found = [_describe_job(job) for job in Job.list(root)]
    if json:
        print_json(found)
    elif not found:
        typer.echo(f"No runs yet. Start one:  {command_line('sfr', 'run', study)}")
    else:
        columns = ("run", "state", "command", "started", "stage", "message")
        print_table(
            [name.capitalize() for name in columns], ([row[name] for name in columns] for row in found)
        )


def _describe_job(job: Any) -> dict[str, Any]:
    info, failure = job.info, job.error() or {}
    start = info.get("start")
    return {
        "run": job.run,
        "state": job.state,
        "command": info.get("command"),
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(start)) if start else None,
        "stage": next((event["stage"] for event in reversed(job.events()) if event.get("stage")), None),
        "message": failure.get("message"),
        "hint": failure.get("hint"),
    }


def _follow(job: Any) -> None:
    """Show a job's events until it ends; leaving (Ctrl+C) does not stop it."""
    follower = job.follower()
    try:
        with Display() as display:
            while True:
                state = job.state
                for event in follower.poll():
                    display(event)
                if state not in ("queued", "running"):
                    break
                time.sleep(0.3)
    except KeyboardInterrupt:
        typer.echo("The job goes on in the background.", err=True)
        return
    failure = job.error()
    if failure:
        raise SFRError(
            failure.get("message") or f"The run {job.run} failed.",
            hint=failure.get("hint") or "",
            code=failure.get("code"),
        )
    typer.echo(f"{job.run}: {job.state}")


@app.command(
    rich_help_panel=UPKEEP_PANEL,
    help="Stop the running job; it writes a checkpoint, and sfr run continues from it."
    + EXAMPLE
    + "sfr cancel STUDY",
)
def cancel(
    study: opt.StudyFolder,
    now: Annotated[bool, typer.Option("--now", help="End its processes at once.")] = False,
    json: opt.Json = False,
) -> None:
    """Ask the running job to stop, and end it if it does not."""
    from SFRCore.runtime.jobs import Job
    from SFRCore.study import Study

    job = Job.running(Study.open(study).root)
    if job is None:
        raise InputError(f"No job is running in {study}, so there is nothing to cancel.")
    job.cancel()
    if not now:
        job.wait(SECONDS_TO_STOP)
    if job.state in ("queued", "running"):
        job.kill()
    if json:
        print_json({"run": job.run, "state": job.state})
    else:
        typer.echo(f"Stopped {job.run}. The same command with the same options goes on from there.")


@app.command(
    rich_help_panel=UPKEEP_PANEL,
    help="Download a checkpoint of SAM and verify it; without a name, list them."
    + EXAMPLE
    + "sfr download vit_b",
)
def download(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="vit_b, vit_l or vit_h.", show_default=False)
    ] = None,
    json: opt.Json = False,
) -> None:
    """Fetch a foundation checkpoint, resuming where it was cut off."""
    from SFRCore.foundation import download as downloads

    if name is None:
        rows: list[dict[str, Any]] = [
            {"name": known, "bytes": entry.size, "downloaded": downloads.is_downloaded(known)}
            for known, entry in downloads.CHECKPOINTS.items()
        ]
        if json:
            print_json(rows)
        else:
            print_table(
                ["Name", "Size", "Downloaded"], ([r["name"], size(r["bytes"]), r["downloaded"]] for r in rows)
            )
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)
        path = downloads.download(
            name, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    show_result({"checkpoint": path}, json=json)


@app.command(
    rich_help_panel=UPKEEP_PANEL,
    help="Say what is installed, which device is used, how much memory is free, and whether a study is whole."
    + EXAMPLE
    + "sfr doctor STUDY",
)
def doctor(
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY]", help="A study to look at too.", show_default=False)
    ] = None,
    json: opt.Json = False,
) -> None:
    """A check of this computer, and of a study."""
    from SFRCore import api

    show_result(api.doctor(study), json=json)
