"""Commands that compute: run, its single stages, predict, demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from SFRCore.cli import options as opt
from SFRCore.cli.app import COMPUTE_PANEL, EXAMPLE, app
from SFRCore.cli.display import Display, can_ask, print_json, show_result
from SFRCore.errors import Cancelled, InputError, command_line

STAGES = {
    "run": "Do the whole recipe; what is done is skipped, what was cut off is continued."
    + EXAMPLE
    + "sfr run STUDY --foundation vit_b --device cuda",
    "finetune": "Fine-tune SAM on the labeled cases, stitched into canvases."
    + EXAMPLE
    + "sfr finetune STUDY --iterations-finetune 500",
    "pseudolabel": "Label the unlabeled cases with the fine-tuned SAM, and say how sure it is."
    + EXAMPLE
    + "sfr pseudolabel STUDY",
    "retrain": "Train the student on labels and pseudo-labels."
    + EXAMPLE
    + "sfr retrain STUDY --ssl mean_teacher --iterations-retrain 2000",
}


def compute(call: Callable[..., Any], *arguments: Any, yes: bool, **settings: Any) -> Any:
    """Call a function of SFRCore.api while showing its events; on a terminal, ask before a very long run."""
    try:
        with Display() as display:
            return call(*arguments, yes=yes, on_event=display, **settings)
    except InputError as error:
        if error.code != "long_run" or not can_ask():
            raise
        question = error
    typer.echo(question.message + (f"\n{question.hint}" if question.hint else ""), err=True)
    if not typer.confirm("Start anyway?", err=True):
        raise Cancelled("Nothing was started.")
    with Display() as display:
        return call(*arguments, yes=True, on_event=display, **settings)


def start_in_background(verb: str, study: Path, options: dict[str, Any], *, yes: bool, json: bool) -> None:
    """Start ``sfr VERB STUDY …`` as a job of its own, and say how to follow and stop it."""
    from SFRCore.runtime.jobs import Job
    from SFRCore.study import Study

    root = Study.open(study).root
    if options.get("foundation") and Path(options["foundation"]).is_file():
        options = {**options, "foundation": Path(options["foundation"]).resolve()}
    words = [verb, str(root), *opt.arguments_from(options), *(["--yes"] if yes else [])]
    job = Job.start(root, words)
    if json:
        print_json({"run": job.run, "state": job.state})
    else:
        typer.echo(
            f"Started {job.run}.\nFollow it:  {command_line('sfr', 'jobs', study, '--follow')}\n"
            f"Stop it:    {command_line('sfr', 'cancel', study)}"
        )


def _add_stage(verb: str) -> None:
    def command(
        study: opt.StudyFolder,
        recipe: opt.Recipe = None,
        ssl: opt.Ssl = None,
        preset: opt.Preset = None,
        foundation: opt.Foundation = None,
        tuning: opt.Tuning = None,
        input: opt.Input = None,
        student: opt.Student = None,
        pseudo_labels: opt.PseudoLabels = None,
        iterations_finetune: opt.IterationsFinetune = None,
        iterations_retrain: opt.IterationsRetrain = None,
        patch: opt.Patch = None,
        batch: opt.Batch = None,
        pseudo_weight: opt.PseudoWeight = None,
        pseudo_schedule: opt.PseudoSchedule = None,
        method_option: opt.MethodOption = None,
        recipe_option: opt.RecipeOption = None,
        faithful: opt.Faithful = False,
        dense: opt.Dense = False,
        device: opt.Device = None,
        precision: opt.Precision = None,
        seed: opt.Seed = None,
        yes: opt.Yes = False,
        background: opt.Background = False,
        json: opt.Json = False,
    ) -> None:
        options = {
            "recipe": recipe, "ssl": ssl, "preset": preset, "foundation": foundation, "tuning": tuning,
            "input": input, "student": student, "pseudo_labels": pseudo_labels,
            "iterations_finetune": iterations_finetune, "iterations_retrain": iterations_retrain,
            "patch": patch, "batch": batch, "pseudo_weight": pseudo_weight,
            "pseudo_schedule": pseudo_schedule, "method_option": method_option,
            "recipe_option": recipe_option, "faithful": faithful, "dense": dense,
            "device": device, "precision": precision, "seed": seed,
        }  # fmt: skip
        settings = opt.settings_from(options)
        if background:
            start_in_background(verb, study, options, yes=yes, json=json)
            return
        from SFRCore import api

        if verb == "run":
            result = compute(api.run, study, yes=yes, **settings)
        else:
            result = compute(api.run_stage, study, verb, yes=yes, **settings)
        show_result(result, json=json)
        if not json and verb in ("run", "pseudolabel"):
            typer.echo(f"Look at the doubtful cases first:  {command_line('sfr', 'review', study)}")

    app.command(verb, help=STAGES[verb], rich_help_panel=COMPUTE_PANEL)(command)


for _verb in STAGES:
    _add_stage(_verb)


@app.command(
    rich_help_panel=COMPUTE_PANEL,
    help="Predict the cases of a study, or one volume that is in no study, with a trained student."
    + EXAMPLE
    + "sfr predict STUDY"
    + EXAMPLE
    + "sfr predict --model STUDY/models/sfr-mean_teacher --image scan.nrrd --output scan_seg.nrrd",
)
def predict(
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY]", help="The study folder.", show_default=False)
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of a trained student.", show_default=False)
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Volume to predict (a file or a DICOM folder).", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Label map to write.", show_default=False)
    ] = None,
    confidence: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Confidence map to write, 0 to 255.", show_default=False),
    ] = None,
    recipe: opt.Recipe = None,
    ssl: opt.Ssl = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    dense: opt.Dense = False,
    yes: opt.Yes = False,
    background: opt.Background = False,
    json: opt.Json = False,
) -> None:
    """The predict stage of a study, or one file."""
    file_options = {"--model": model, "--image": image, "--output": output, "--confidence": confidence}
    given = [name for name, value in file_options.items() if value is not None]
    if study is not None:
        if given:
            raise InputError(
                f"{given[0]} goes with a single volume, not with a study.",
                hint="Give either STUDY, or --model, --image and --output.",
            )
        options = {"recipe": recipe, "ssl": ssl, "device": device, "precision": precision, "dense": dense}
        settings = opt.settings_from(options)
        if background:
            start_in_background("predict", study, options, yes=yes, json=json)
            return
        from SFRCore import api

        show_result(compute(api.run_stage, study, "predict", yes=yes, **settings), json=json)
        return
    if model is None or image is None or output is None:
        missing = [name for name in ("--model", "--image", "--output") if name not in given]
        raise InputError(
            f"Nothing to predict: {', '.join(missing)} missing.",
            hint="Give either STUDY, or --model, --image and --output.",
        )
    from SFRCore import api

    settings = opt.settings_from({"device": device, "precision": precision, "dense": dense})
    with Display() as display:
        result = api.predict_file(model, image, output, confidence=confidence, on_event=display, **settings)
    show_result(
        result if isinstance(result, dict) else {"output": output, "confidence": confidence}, json=json
    )


@app.command(
    rich_help_panel=COMPUTE_PANEL,
    help="Invent a small cohort, run everything on it, and write a report: needs no data and no download."
    + EXAMPLE
    + "sfr demo --output sfr-demo",
)
def demo(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make.")] = Path("sfr-demo"),
    seed: opt.Seed = None,
    json: opt.Json = False,
) -> None:
    """The whole loop on an invented cohort."""
    from SFRCore import api

    with Display() as display:
        result = api.demo(output, on_event=display, **opt.settings_from({"seed": seed}))
    show_result(result, json=json)
