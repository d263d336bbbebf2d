"""Everything that a run is refused for before any work. A run asks each check, and stops at the first that refuses;
a dry run asks all of them. Each is a function that raises an InputError, so that both say the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import InputError
from compressor.model_path import local_model
from compressor.recipe import Recipe
from compressor.run_folder import LEDGER_FILE, OURS, holds_run, runs_in
from compressor.settings import RunSettings
from compressor.tasks.task import LoadedTask, load_tasks

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint
    from compressor.convert import Outline
    from compressor.plan import Plan
    from compressor.texts import Texts

Check = Callable[[], object]


def problems_of(checks: Iterable[Check]) -> list[InputError]:
    """What stands in the way, by all of the checks."""
    found = []
    for check in checks:
        try:
            check()
        except InputError as error:
            found.append(error)
    return found


def run_folders(recipes: Sequence[Recipe], out: Path) -> list[Path]:
    """The folder of each recipe's run: `out` itself, or one for each target in it."""
    return [out] if len(recipes) == 1 else [out / recipe.target_name for recipe in recipes]


def request_checks(recipes: Sequence[Recipe], settings: RunSettings, texts: Texts) -> list[Check]:
    """What can be said without opening the model, and without importing PyTorch."""
    first = recipes[0]
    return [
        *(recipe.check_names for recipe in recipes),
        lambda: local_model(first.source),
        partial(texts.check_sources, first),
        partial(tasks_of, first),
        partial(check_output, settings, run_folders(recipes, settings.out)),
    ]


def gate_checks(recipes: Sequence[Recipe]) -> list[Check]:
    """Whether the gates of recipes will have what they need."""
    from compressor.plan import check_gate

    return [partial(check_gate, recipe) for recipe in recipes]


def model_checks(
    plans: Sequence[Plan], model: Checkpoint | Outline, texts: Texts, settings: RunSettings, tokenizer: Any
) -> list[Check]:
    """What can be said of plans for a model.

    Args:
        tokenizer: opens the model's tokenizer; None where it has to be converted first.
    """
    from compressor.evaluator import check_workload
    from compressor.forecast import check_room

    recipe, limit = plans[0].recipe, model.architecture.max_positions
    checks: list[Check] = [*(partial(_check_calibration, plan) for plan in plans)]
    checks += [partial(check_lengths, recipe, limit), partial(check_workload, recipe.measure, limit)]
    checks += [partial(check_texts_differ, plans), partial(check_room, plans, model, settings.out)]
    return checks if tokenizer is None else [*checks, partial(_check_windows, plans, texts, tokenizer)]


def tasks_of(recipe: Recipe) -> list[LoadedTask]:
    """The tasks that a recipe asks.

    Raises:
        InputError: one cannot be read, or measuring is switched off.
    """
    if recipe.measure.tasks and recipe.measure.effort == "none":
        raise InputError("There are tasks to score, and measuring is switched off.", "Leave out --measure none.")
    return load_tasks([Path(name) for name in recipe.measure.tasks])


def check_output(settings: RunSettings, folders: Sequence[Path]) -> None:
    """See that the output folder can be made, or holds what is to be resumed.

    Raises:
        InputError: it is neither.
    """
    out = settings.out
    if not os.path.lexists(out):
        check_can_be_made(out)
        return
    if not settings.resume:
        going_on = ", or --resume to go on with the run in it" if holds_run(out) else ""
        raise InputError(f"{out} already exists.", f"Choose another folder{going_on}.")
    if not out.is_dir():
        raise InputError(f"{out} is no folder with a run to resume.", "Choose another folder.")
    if not holds_run(out) and any(not one.name.startswith(OURS) for one in out.iterdir()):
        raise InputError(f"{out} holds other files, and no run to resume.", "Choose another folder.")
    if folders == [out] and runs_in(out):
        names = ", ".join(path.name for path in runs_in(out))
        raise InputError(f"{out} holds runs for several targets: {names}.", "Give these targets, or another folder.")
    if folders != [out] and (out / LEDGER_FILE).is_file():
        raise InputError(f"{out} holds a run for one target.", "Give that target, or another folder.")


def check_can_be_made(out: Path) -> None:
    """See that the nearest folder above `out` that exists is one to write in.

    Raises:
        InputError: it is not.
    """
    above = next(one for one in out.absolute().parents if os.path.lexists(one))
    if not above.is_dir():
        raise InputError(f"{out} cannot be made: {above} is not a folder.", "Choose another folder with -o.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be made: {above} cannot be written to.", "Choose another folder with -o.")


def check_lengths(recipe: Recipe, limit: int) -> None:
    """See that windows are no longer than the model's context of `limit` tokens.

    Raises:
        InputError: they are.
    """
    calibration, measure = recipe.calibration, recipe.measure
    asked = [(calibration.length, "--length")] if calibration else []
    asked += [(measure.length, "--eval-length")] if measure.texts is not None else []
    for length, flag in asked:
        if length > limit:
            raise InputError(f"{length} tokens are longer than the model's context of {limit}.", f"{flag} {limit}")


def check_texts_differ(plans: Sequence[Plan]) -> None:
    """See that nothing is judged by the text that it was calibrated on.

    Raises:
        InputError: it is, and the recipe does not allow it.
    """
    recipe = plans[0].recipe
    calibration, measure = recipe.calibration, recipe.measure
    if calibration is None or not measure.is_judged or measure.allow_same_text:
        return
    if any(plan.calibrated for plan in plans) and _same_source(calibration.texts, str(measure.texts)):
        raise InputError(
            f"{measure.texts} is both the calibration text and the evaluation text, so that quality would look better "
            "than it is.",
            "Give other text to --eval, or --allow-same-text.",
        )


def _same_source(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(other).exists() and Path(one).samefile(other))


def _check_calibration(plan: Plan) -> None:
    if plan.calibrated and plan.recipe.calibration is None:
        raise InputError(
            f"The pass {plan.calibrated[0]} needs calibration text.",
            "Give --calibration FILE (.txt, .csv, .jsonl or .parquet), or use --pass rtn, which needs none.",
        )


def _check_windows(plans: Sequence[Plan], texts: Texts, tokenizer: Callable[[], Any]) -> None:
    calibrated, recipe = any(plan.calibrated for plan in plans), plans[0].recipe
    if recipe.measure.is_judged or (calibrated and recipe.calibration is not None):
        texts.count(recipe, tokenizer(), calibrated)
