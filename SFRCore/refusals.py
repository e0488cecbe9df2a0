"""What is refused before a run begins: whatever can be known to fail later, when hours were spent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import InputError, command_line

if TYPE_CHECKING:
    from .stages.context import StageContext

UNUSED_WITHOUT = {
    "pseudo_labels": frozenset({"pseudolabel"}),
    "pseudo_weight": frozenset({"pseudolabel", "selective"}),
    "pseudo_schedule": frozenset({"pseudolabel", "selective"}),
}
"""Settings that change nothing in a recipe with none of these stages."""


def refuse_early(context: StageContext, stages: Sequence[str], *, newest: bool = False) -> None:
    """Raise InputError where the stages cannot come to their end with this study and these settings.

    ``newest``: predict may take the student that was trained last, whatever its recipe and method.
    """
    from .stages.lineage import foundation_identity, recipe_options, tuned_foundation
    from .stages.predict import student_for

    recipe_options(context)
    if {"finetune", "retrain", "selective"} & set(stages):
        _refuse_unlabeled_study(context)
    if {"finetune", "pseudolabel"} & set(stages):
        context.layout()
    if "prompt" in stages and context.settings.input != "stitched":
        raise InputError(
            f"The recipe {context.settings.recipe} shows SAM one slice at a time, so it takes no --input.",
            hint="Leave --input out, or choose the recipe 'sfr'.",
        )
    if {"finetune", "prompt"} & set(stages):
        foundation_identity(context.settings.foundation)
        _refuse_without_checkpoint(context, stages)
    elif "pseudolabel" in stages:
        tuned_foundation(context)
    if {"pseudolabel", "refine"} & set(stages) and not context.study.unlabeled_cases():
        raise _none_left(context)
    if {"retrain", "selective"} & set(stages):
        _refuse_without_effect(context)
        _refuse_stage(context, stages)
        _refuse_method(context)
    elif "predict" in stages:
        student_for(context, newest=newest)


def _refuse_unlabeled_study(context: StageContext) -> None:
    if not context.study.labeled_cases():
        give = command_line("sfr", "review", context.study.root, "--label", "CASE=FILE")
        raise InputError(
            "No labeled case is in the study, so there is nothing to learn from.",
            hint=f"Give at least one case its label:  {give}",
        )


def _refuse_without_checkpoint(context: StageContext, stages: Sequence[str]) -> None:
    """Raise InputError where a known foundation is still to be tuned and is not downloaded."""
    from .foundation.checkpoints import downloaded
    from .foundation.download import CHECKPOINTS
    from .stages.aslseg_models import prompted_lineage
    from .stages.lineage import foundation_lineage

    lineage = (foundation_lineage if "finetune" in stages else prompted_lineage)(context)
    if context.settings.foundation in CHECKPOINTS and not lineage.is_done():
        downloaded(context.settings.foundation)


def _refuse_without_effect(context: StageContext) -> None:
    """Raise InputError for options of pseudo-labels where the recipe makes none, or in its own way."""
    from .settings import Settings

    settings = context.settings
    given = [name for name in UNUSED_WITHOUT if getattr(settings, name) != getattr(Settings(), name)]
    unused = ["--" + name.replace("_", "-") for name in given if not takes(settings.recipe, name)]
    if unused:
        raise InputError(
            f"The recipe {settings.recipe} makes no use of {' and '.join(unused)}.",
            hint="Leave it out, or choose the recipe 'sfr'.",
        )


def takes(recipe: str, option: str) -> bool:
    """Whether a setting of :data:`UNUSED_WITHOUT` changes anything in a recipe."""
    from .recipes import get_recipe

    return not UNUSED_WITHOUT[option].isdisjoint(get_recipe(recipe).stages)


def _refuse_stage(context: StageContext, stages: Sequence[str]) -> None:
    """Raise InputError where the recipe trains its student in another stage, or without what it selects."""
    from .recipes import get_recipe
    from .stages.lineage import uses_pseudo_labels

    name = context.settings.recipe
    of_recipe = get_recipe(name).stages
    if "retrain" in stages and ("retrain" not in of_recipe or {"refine"} & set(of_recipe) - set(stages)):
        run = command_line("sfr", "run", context.study.root, "--recipe", name)
        raise InputError(
            f"The recipe {name} does not train its student by the stage retrain alone.",
            hint=f"Run the recipe, which skips what is done:  {run}",
        )
    if {"selective", "pseudolabel"} & set(stages) and not uses_pseudo_labels(context):
        raise InputError(
            f"The recipe {name} is about pseudo-labels, and their weight is 0.",
            hint="Leave --pseudo-weight out, or choose the recipe 'baseline'.",
        )


def _refuse_method(context: StageContext) -> None:
    """Raise InputError where method, student, patch and recipe do not fit, or unlabeled cases are lacking."""
    from .stages.lineage import unlabeled_for_training, uses_pseudo_labels
    from .stages.retrainer import make_method

    method = make_method(context, uses_pseudo_labels(context))
    wanted = any(phase.unlabeled for phase in method.plan(context.plan.iterations_retrain))
    if wanted and not unlabeled_for_training(context):
        raise _none_left(context)


def _none_left(context: StageContext) -> InputError:
    root, settings = context.study.root, context.settings
    rejected = len(context.study.unlabeled_cases())
    why = "every other result was rejected" if rejected else "none of its cases is unlabeled"
    alone = command_line("sfr", "run", root, "--recipe", "baseline", "--ssl", "supervised")
    return InputError(
        f"The study has no unlabeled volume left to learn from ({why}), and the recipe {settings.recipe} "
        f"with the method {settings.ssl} needs some.",
        hint=f"Add volumes with  {command_line('sfr', 'add', root, 'IMAGES')}  or train on the labels "
        f"alone:  {alone}",
        code="no_unlabeled",
    )
