"""What the command line, Python scripts and the worker process call: every function raises SFRError with a
sentence.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError, SFRError
from .runtime.runs import last_foundation
from .runtime.worker import Worker
from .settings import Settings
from .study import Study

if TYPE_CHECKING:
    from .runtime.devices import Device
    from .stages.context import Listener, StageContext

AnyStudy = Study | Path | str
SINGLE_STAGES = ("finetune", "pseudolabel", "retrain", "predict")


def run(study: AnyStudy, *, on_event: Listener | None = None, **options: Any) -> dict[str, Any]:
    """Run a recipe on a study in this process: what is done is skipped, what was cut off is continued.

    ``options`` are the fields of :class:`SFRCore.settings.Settings`. Returns what each stage did.
    Raises SFRError: InputError for bad input, Cancelled, OutOfMemory, DiskFull.
    """
    from .recipes import get_recipe

    settings = _settings(study, options)
    recipe = get_recipe(settings.recipe)
    with _working(study, "run", settings, on_event, recipe.stages) as context:
        _tell_estimate(context, recipe.stages)
        done = recipe.run(context)
        return {"run": context.run_dir.name, "study": str(context.study.root), "stages": done}


def run_stage(
    study: AnyStudy, stage: str, *, on_event: Listener | None = None, **options: Any
) -> dict[str, Any]:
    """Run one stage: "finetune", "pseudolabel", "retrain" or "predict". Otherwise as :func:`run`.

    Without a recipe and a method, "predict" takes the student that was trained last.
    """
    from .stages.finetune import finetune
    from .stages.predict import predict
    from .stages.pseudolabel import foundation_labels, pseudolabel
    from .stages.retrain import retrain

    if stage not in SINGLE_STAGES:
        raise InputError(f"There is no stage '{stage}'.", hint=f"Stages: {', '.join(SINGLE_STAGES)}.")
    # Predicting takes the student alone: the foundation's file may be on another computer.
    settings = Settings.of(**options) if stage == "predict" else _settings(study, options)
    newest = options.get("recipe") is None and options.get("ssl") is None
    with _working(study, stage, settings, on_event, (stage,), newest=newest) as context:
        _tell_estimate(context, (stage,))
        if stage == "retrain":
            online = (lambda: foundation_labels(context)) if settings.pseudo_labels == "online" else None
            done = retrain(context, online)
        elif stage == "predict":
            done = predict(context, newest=newest)
        else:
            done = {"finetune": finetune, "pseudolabel": pseudolabel}[stage](context)
        return {"run": context.run_dir.name, "study": str(context.study.root), "stages": {stage: done}}


def estimate(study: AnyStudy, *, on_event: Listener | None = None, **options: Any) -> dict[str, Any]:
    """Measure how long a run would take: ``seconds``, ``per_stage`` and ``memory_bytes``."""
    from .recipes import get_recipe
    from .stages.estimate import estimate as measured

    settings = _settings(study, options)
    stages = get_recipe(settings.recipe).stages
    with _working(study, "estimate", settings, on_event, stages) as context:
        return measured(context, stages)


def compare(study: AnyStudy, ssl: Sequence[str], **options: Any) -> dict[str, Any]:
    """Train and score several methods with several seeds; see :func:`SFRCore.comparison.compare`."""
    from .comparison import compare as compared

    _refuse_in_slicer()
    return compared(opened(study), ssl, **options)


def evaluate(study: AnyStudy, **options: Any) -> dict[str, Any]:
    """Score results against references; see :func:`SFRCore.stages.evaluate.evaluate`."""
    from .recipes import get_recipe
    from .stages.evaluate import evaluate as scored

    if options.get("recipe") is not None:
        get_recipe(options["recipe"])
    return scored(opened(study), **options)


def predict_file(
    model_folder: Path | str,
    image: Path | str,
    output: Path | str,
    *,
    confidence: Path | str | None = None,
    device: str = "auto",
    precision: str = "auto",
    fast: bool = True,
    on_event: Listener | None = None,
) -> dict[str, Any]:
    """Segment one volume that is in no study; writes ``output`` in the image's geometry, and the confidence
    map. ``model_folder`` is the folder of a student, or a study: then its newest one.

    Returns the numbers of the result: expected Dice, mean confidence, volumes in ml. Raises InputError,
    before anything is computed, where a file to be written is the image itself or has an unknown type.
    """
    from .runtime.devices import explained_memory
    from .runtime.files import sweep_temporary
    from .stages.predict import predict_image
    from .volumes import read_image, write_volume

    _check_outputs(Path(image), [Path(path) for path in (output, confidence) if path is not None])
    volume = read_image(image)
    where = _device(Settings(device=device, precision=precision))
    model = Path(model_folder)
    if (model / "study.json").is_file():
        model = _newest_student(Study.open(model))
    with explained_memory(where, "predicting a volume"):
        label, doubt, numbers = predict_image(model, volume, where, fast=fast)
    for content, path in ((label, output), (doubt, confidence)):
        if path is not None:
            sweep_temporary(Path(path).parent)
            write_volume(content, path)
    if on_event is not None:
        on_event({"event": "case", "stage": "predict", "id": Path(image).name, "path": str(output)})
    return {"output": str(output)} | {name: value for name, value in numbers.items() if name != "slices"}


def report(study: AnyStudy, path: Path | str | None = None, *, run: str | None = None) -> Path:
    """Write the study's report (of its newest run, or of ``run``), one HTML file, and return its path."""
    from .report import write_report

    return write_report(opened(study), None if path is None else Path(path), run=run)


def export(
    source: AnyStudy, out: Path | str | None = None, formats: Sequence[str] = ("torch", "onnx")
) -> dict[str, Any]:
    """Export a student for use outside of SFR, checked against the original on a real volume where there is
    one.

    ``source`` is a study (its newest student) or a model folder; ``out`` defaults to the study's ``exports``.
    """
    from .stages.export import export_student
    from .stages.lineage import STUDENT_INFO

    if isinstance(source, str | Path) and (Path(source) / STUDENT_INFO).is_file():
        model = Path(source)
        if out is None:
            raise InputError("Say where to export to.", hint="Add --output DIR.")
        return export_student(model, Path(out), formats=tuple(formats), check_volume=None)
    study = opened(source)
    model = _newest_student(study)
    if out is None and study.readonly:
        raise InputError(f"The study {study.root} is read-only.", hint="Export elsewhere: add --output DIR.")
    target = Path(out) if out is not None else study.exports_dir / model.name
    return export_student(model, target, formats=tuple(formats), check_volume=_check_volume(study, model))


def _newest_student(study: Study) -> Path:
    from .stages.lineage import STUDENT_INFO

    models = sorted(study.models_dir.glob(f"*/{STUDENT_INFO}"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise InputError("This study has no trained student yet.", hint="Run 'sfr run' first.")
    return models[-1].parent


def demo(
    output: Path | str, *, seed: int = 1337, on_event: Listener | None = None, **options: Any
) -> dict[str, Any]:
    """Run the whole recipe on a synthetic cohort and write its report; see :mod:`SFRCore.demo`."""
    from .demo import demo as shown

    return shown(Path(output), seed=seed, on_event=on_event, **options)


def doctor(study: AnyStudy | None = None) -> dict[str, Any]:
    """What is installed, which device would compute, memory, checkpoints, and the state of a study."""
    from .doctor import examine

    return examine(None if study is None else opened(study))


def download(name: str, **options: Any) -> Path:
    """Download a foundation checkpoint; see :func:`SFRCore.foundation.download.download`."""
    from .foundation.download import download as fetched

    return fetched(name, **options)


def opened(study: AnyStudy) -> Study:
    """A study as it is, or opened from its folder."""
    return study if isinstance(study, Study) else Study.open(study)


def _settings(study: AnyStudy, options: Mapping[str, Any]) -> Settings:
    """The settings of a run. Where nothing is said of the foundation it is that of the run before: a run that
    is given again without it goes on, and does not begin anew with a ``tiny``.
    """
    from .foundation.spec import SPECS

    settings = Settings.of(**options)
    if options.get("foundation") is not None or settings.recipe == "baseline":
        return settings
    before = last_foundation(opened(study).root)
    if before is None:
        return settings
    if before not in SPECS and not Path(before).expanduser().is_file():
        raise InputError(
            f"The foundation of the run before, {before}, is not there any more.",
            hint="Bring the file back, or say with --foundation which one to use.",
        )
    return settings.with_(foundation=before)


@contextmanager
def _working(
    study: AnyStudy,
    command: str,
    settings: Settings,
    listener: Listener | None,
    stages: Sequence[str],
    *,
    newest: bool = False,
) -> Iterator[StageContext]:
    """A context in which stages run: device, plan, and (in the main process) the run's folder and locks.

    What can be refused is refused before there is a folder for the run.
    """
    from .refusals import refuse_early
    from .stages.survey import saved_plan
    from .study.images import renew_identities

    _refuse_in_slicer()
    study = opened(study)
    if study.readonly:
        raise InputError(
            f"The study {study.root} is read-only.", hint="Copy it to a place where you can write."
        )
    worker = Worker(study.root, command, {"settings": settings.to_dict()})
    try:
        device = _device(settings)
        study.reload()
        context = _context(study, settings, device)
        refuse_early(replace(context, warned=set()), stages, newest=newest)
    except SFRError:
        if worker.folder.exists():  # whoever launched this run reads in its folder how it ended
            with worker:
                raise
        raise
    if not device.is_main:
        context.run_dir = _shared_run_dir(device, study.runs_dir)
        study.reload()
        yield context
        return
    with worker:
        study.reload()
        replaced = renew_identities(study)
        context.worker, context.listener = worker, listener
        context.run_dir = _shared_run_dir(device, worker.run_dir)
        if device.processes == 1:  # another run may have kept a plan meanwhile
            context.plan = saved_plan(study, settings) or context.plan
        context.begin(command)
        context.emit("plan", device=device.name(), precision=device.precision, **_numbers(context, stages))
        for id in replaced:
            context.warn(
                f"The image of case {id} is another one than before: what was made of it is made again.",
                code="image",
                hint="Check that its label, if it has one, was drawn on this image.",
                case=id,
            )
        yield context
        study.reload()
        if listener is not None:
            listener({"event": "finished", "stage": "", "peak_memory_bytes": device.peak_memory()})


def _context(study: Study, settings: Settings, device: Device) -> StageContext:
    """A context that tells nobody yet."""
    from .stages.context import StageContext
    from .stages.survey import plan_for

    return StageContext(study, settings, plan_for(study, settings, device), device, worker=None)


def _shared_run_dir(device: Device, run_dir: Path) -> Path:
    """The run folder of the main process, in every process."""
    if device.processes == 1:
        return run_dir
    from accelerate.utils import broadcast_object_list

    return Path(broadcast_object_list([str(run_dir)])[0])


def _device(settings: Settings) -> Device:
    """The device of the settings; InputError where it is not there."""
    import torch

    from .runtime.devices import choose_device

    kind, _, index = settings.device.partition(":")
    if index and torch.cuda.is_available() and int(index) >= torch.cuda.device_count():
        there = ", ".join(f"{kind}:{number}" for number in range(torch.cuda.device_count()))
        raise InputError(f"There is no GPU '{settings.device}' here.", hint=f"Choose one of: {there}.")
    return choose_device(settings.device, settings.precision)


def _check_outputs(image: Path, outputs: Sequence[Path]) -> None:
    from .volumes.reading import WRITTEN_SUFFIXES

    taken = {image.resolve()}
    for path in outputs:
        if not path.name.lower().endswith(WRITTEN_SUFFIXES):
            raise InputError(
                f"{path} has a file type that volumes are not written in.",
                hint=f"Use one of {', '.join(WRITTEN_SUFFIXES)}.",
            )
        if path.resolve() in taken:
            raise InputError(
                f"{path} is named twice among the volume to predict and the files to write.",
                hint="Give every file that is written a name of its own.",
            )
        taken.add(path.resolve())


def _numbers(context: StageContext, stages: Sequence[str]) -> dict[str, Any]:
    """What the plan event says; predicting alone follows the student's own plan."""
    from .planning import reasons_for

    plan = context.plan
    if tuple(stages) == ("predict",):
        return {"preset": plan.preset, "reasons": []}
    return {
        "reasons": reasons_for(plan, stages, context.settings.input),
        "preset": plan.preset,
        "student": context.student,
        "patch": list(plan.patch),
        "canvas": plan.canvas,
        "zoom": plan.zoom,
        "iterations_finetune": plan.iterations_finetune,
        "iterations_retrain": plan.iterations_retrain,
    }


def _tell_estimate(context: StageContext, stages: tuple[str, ...]) -> None:
    from .stages.estimate import estimate as measured
    from .stages.estimate import is_short, refuse_long

    lengths = (context.plan.iterations_finetune, context.plan.iterations_retrain)
    if is_short(context.settings, stages, lengths):
        return
    found = measured(context, stages)
    context.emit("estimate", **found)
    refuse_long(context, found)


def _check_volume(study: Study, model: Path) -> Any:
    """A preprocessed volume of the study (X, Y, Z) to compare an export with, or None."""
    from .students import load_student
    from .volumes import Preprocessing, VolumeCache

    _, info = load_student(model)
    with TemporaryDirectory() if study.readonly else nullcontext(study.cache_dir) as folder:
        cache = VolumeCache(folder, Preprocessing.from_dict(info["preprocessing"]))
        for case in study.cases.values():
            if case.role != "ignored" and not case.problem:
                with suppress(InputError):  # a volume that has vanished since the run: another one will do
                    return np.array(cache.volume(case.id, study.image_path(case.id)).image)
    return None


def _refuse_in_slicer() -> None:
    slicer = sys.modules.get("slicer")
    if slicer is not None and hasattr(slicer, "app"):
        raise InputError(
            "A run would freeze Slicer, so it is not computed inside it.",
            hint="Use slicer.util.getModuleLogic('SFRSegmentation').start('run'), a background job.",
        )
