"""`llmc compress --dry-run`: does anything stand in the way, and what would be done?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from compressor.cli.say import say
from compressor.errors import InputError
from compressor.recipe_texts import RecipeTexts

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint
    from compressor.convert import Outline
    from compressor.plan import Plan
    from compressor.recipe import Recipe
    from compressor.settings import RunSettings


class _Outlined(Exception):  # noqa: N818 -- no fault: what is known is enough
    """Opening a model stops before it is converted."""

    def __init__(self, outline: Outline) -> None:
        super().__init__()
        self.outline = outline


class _CountedTexts(RecipeTexts):
    """Keeps how many windows were counted."""

    def __init__(self) -> None:
        self.windows: dict[str, int] = {}

    def count(self, recipe: Recipe, tokenizer: Any, calibrated: bool) -> dict[str, int]:
        self.windows = super().count(recipe, tokenizer, calibrated)
        return self.windows


@dataclass(frozen=True)
class Preview:
    """What a run would do; `windows` are those of its texts, None where the model has to be converted first."""

    plans: Sequence[Plan]
    model: Checkpoint | Outline
    windows: Mapping[str, int] | None


def show_plans(recipes: Sequence[Recipe], settings: RunSettings, as_json: bool) -> int:
    """Say everything that stands in the way of a run, else what it will do; the exit code."""
    from compressor.checks import problems_of, request_checks

    texts = _CountedTexts()
    problems, preview = problems_of(request_checks(recipes, settings, texts)), None
    if not problems:
        problems, preview = _look_closer(recipes, settings, texts)
    if problems or preview is None:
        return _refuse(problems, as_json)
    if as_json:
        _emit(preview)
    else:
        _show(preview)
    return 0


def _refuse(problems: Sequence[InputError], as_json: bool) -> int:
    from compressor.cli import emit_json, explain

    if as_json:
        emit_json({"problems": [{"problem": str(one), "hint": one.hint} for one in problems]})
        return InputError.exit_code
    for one in problems:
        explain(one)
    return InputError.exit_code


def _look_closer(
    recipes: Sequence[Recipe], settings: RunSettings, texts: _CountedTexts
) -> tuple[list[InputError], Preview | None]:
    """What opening the model shows. Nothing is converted, and nothing is written."""
    from compressor.checks import gate_checks, model_checks, problems_of

    problems = problems_of(gate_checks(recipes))
    try:
        model = _open(recipes[0], settings)
    except InputError as error:
        return [*problems, error], None
    plans: list[Plan] = []
    problems += problems_of(partial(_plan, recipe, model, settings, plans) for recipe in recipes)
    if len(plans) < len(recipes):
        return problems, None
    tokenizer = _tokenizer(model, plans[0], settings)
    problems += problems_of(model_checks(plans, model, texts, settings, tokenizer))
    if not problems and tokenizer is not None:
        problems = problems_of([partial(_check_strictly, plans, model, texts, tokenizer)])
    return problems, Preview(plans, model, None if tokenizer is None else texts.windows)


def _open(recipe: Recipe, settings: RunSettings) -> Checkpoint | Outline:
    """The model as far as it is known before a conversion."""
    from compressor.source import open_model

    def stop(outline: Outline) -> None:
        raise _Outlined(outline)

    try:
        return open_model(
            recipe.source,
            settings.out / "00-import",
            allow_pickle=settings.allow_pickle,
            trust_remote_code=settings.trust_remote_code,
            requantize=recipe.requantize,
            progress=lambda *_: None,
            check=stop,
        ).checkpoint
    except _Outlined as known:
        return known.outline


def _tokenizer(model: Checkpoint | Outline, plan: Plan, settings: RunSettings) -> Callable[[], Any] | None:
    """What opens the tokenizer of the run's original, once; None where the model has to be converted first."""
    from compressor.checkpoint import Checkpoint
    from compressor.plan import original_of
    from compressor.tokenizer import tokenizer_of

    if not isinstance(model, Checkpoint):
        return None
    original = original_of(model, plan.passes)
    return cache(partial(tokenizer_of, original, trust_remote_code=settings.trust_remote_code))


def _plan(recipe: Recipe, model: Checkpoint | Outline, settings: RunSettings, plans: list[Plan]) -> None:
    from compressor.checkpoint import Checkpoint
    from compressor.plan import Plan

    known = Plan.of if isinstance(model, Checkpoint) else Plan.outlined
    plans.append(known(recipe, model, settings.allow_pickle))  # type: ignore[arg-type]


def _check_strictly(plans: Sequence[Plan], model: Any, texts: RecipeTexts, tokenizer: Callable[[], Any]) -> None:
    """A strict recipe's calibration text is audited, which reads all of it."""
    from compressor.texts import RunTexts

    section = plans[0].recipe.calibration
    if section is not None and section.strict:
        RunTexts.load(plans, model, tokenizer(), texts, lambda *_: None)


def _emit(preview: Preview) -> None:
    from compressor.cli import emit_json
    from compressor.forecast import Forecast, seconds

    forecast = Forecast.of(preview.plans, preview.model)
    found = {
        plan.target.name: {
            "recipe": plan.recipe.written_out(),
            "linears": _linears(plan, preview.model),
            "chosen_by": plan.choosing,
            "artifact_bytes": size,
        }
        for plan, size in zip(preview.plans, forecast.artifact, strict=True)
    }
    room = {
        "windows": preview.windows,
        "steps_bytes": forecast.steps,
        "memory_bytes": forecast.memory,
        "seconds": seconds(preview.plans, preview.model),
    }
    several = len(found) > 1
    emit_json(({"targets": found} if several else found[preview.plans[0].target.name]) | {"forecast": room})


def _show(preview: Preview) -> None:
    for plan in preview.plans:
        _show_plan(plan, preview.model)
    if len(preview.plans) > 1:
        from compressor.steps import step_names

        steps = dict.fromkeys(name for names in step_names(preview.plans) for name in names)
        say(f"Steps, each made once: {', '.join(steps) or 'none'}.")
    _show_texts(preview)
    _show_forecast(preview)
    say("Nothing stands in the way; leave out --dry-run to run it.")


def _show_plan(plan: Plan, model: Checkpoint | Outline) -> None:
    say(" -> ".join([plan.recipe.model, *(one.spelled() for one in plan.passes), plan.target.name]))
    for scheme, count in _linears(plan, model).items():
        say(f"  {scheme}" if plan.choosing else f"  {count:5} linears  {scheme}")
    if plan.choosing:
        say(f"How many linears get which of these is what {plan.choosing[0]} finds out.")
    for note in plan.notes:
        say(note)


def _show_texts(preview: Preview) -> None:
    recipe = preview.plans[0].recipe
    if preview.windows is None:
        say("The model is converted first; whether the texts are long enough is known after that.")
        return
    if (count := preview.windows.get("calibration")) is not None and recipe.calibration is not None:
        few = f", fewer than the default of {recipe.calibration.samples}" if count < recipe.calibration.samples else ""
        say(f"Calibration: {count} windows of {recipe.calibration.length} tokens{few}.")
    if (count := preview.windows.get("evaluation")) is not None:
        least = "all" if recipe.measure.effort == "full" else count
        say(f"Judged by: {least} windows of {recipe.measure.length} tokens.")
    elif recipe.measure.effort != "none":
        say("Perplexity and KL divergence are not measured: there is no evaluation text (--eval).")


def _show_forecast(preview: Preview) -> None:
    from compressor.forecast import Forecast, duration, seconds
    from compressor.report.tables import size

    forecast, (least, most) = Forecast.of(preview.plans, preview.model), seconds(preview.plans, preview.model)
    artifacts = " + ".join(map(size, forecast.artifact))
    say(f"About {artifacts} of artifact, {size(forecast.steps)} of steps; {duration(least)} to {duration(most)}.")


def _linears(plan: Plan, model: Checkpoint | Outline) -> Counter[str]:
    """How many linears will have which scheme."""
    architecture = model.architecture
    for one in plan.passes:
        architecture = one.reshaped(architecture)
    return Counter(
        str(plan.schemes[name]) if name in plan.schemes else "left as it is" for name in architecture.linears()
    )
