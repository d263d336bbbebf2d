"""`llmc compress --dry-run`: does anything stand in the way, and what would be done?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.cli.say import say

if TYPE_CHECKING:
    from compressor.checkpoint import Checkpoint
    from compressor.plan import Plan
    from compressor.recipe import Recipe


def show_plans(recipes: Sequence[Recipe], options: Mapping[str, Any], as_json: bool) -> None:
    """Check the request and print the plan for each target.

    Raises:
        InputError: it cannot be run.
    """
    import tempfile

    from compressor.cli.progress import ConsoleProgress
    from compressor.cli.texts import RecipeTexts
    from compressor.plan import Plan, check_gate, check_of, original_of, tasks_of
    from compressor.source import open_model
    from compressor.texts import RunTexts
    from compressor.tokenizer import tokenizer_of

    for recipe in recipes:
        check_gate(recipe, recipe.build_target())
    tasks_of(recipes[0])
    with tempfile.TemporaryDirectory() as scratch, ConsoleProgress() as progress:
        source = open_model(
            recipes[0].source,
            Path(scratch) / "import",
            allow_pickle=options["allow_pickle"],
            trust_remote_code=options["trust_remote_code"],
            requantize=recipes[0].requantize,
            progress=progress,
            check=check_of(recipes, options["allow_pickle"]),
        )
        plans = [Plan.of(recipe, source.checkpoint, options["allow_pickle"]) for recipe in recipes]
        if recipes[0].calibration is not None and recipes[0].calibration.strict:
            original = original_of(source.checkpoint, plans[0].passes)
            tokenizer = tokenizer_of(original, trust_remote_code=options["trust_remote_code"])
            RunTexts.load(plans, original, tokenizer, RecipeTexts(), progress)
    if as_json:
        _emit(plans, source.checkpoint)
        return
    for plan in plans:
        _show(plan, source.checkpoint)
    if len(plans) > 1:
        from compressor.steps import step_names

        steps = dict.fromkeys(name for names in step_names(plans) for name in names)
        say(f"Steps, each made once: {', '.join(steps) or 'none'}.")
    say("Nothing stands in the way; leave out --dry-run to run it.")


def _emit(plans: Sequence[Plan], checkpoint: Checkpoint) -> None:
    from compressor.cli import emit_json

    found = {
        plan.target.name: {
            "recipe": plan.recipe.written_out(),
            "linears": _linears(plan, checkpoint),
            "chosen_by": plan.choosing,
        }
        for plan in plans
    }
    emit_json({"targets": found} if len(plans) > 1 else found[plans[0].target.name])


def _show(plan: Plan, checkpoint: Checkpoint) -> None:
    say(" -> ".join([plan.recipe.model, *(one.spelled() for one in plan.passes), plan.target.name]))
    for scheme, count in _linears(plan, checkpoint).items():
        say(f"  {scheme}" if plan.choosing else f"  {count:5} linears  {scheme}")
    if plan.choosing:
        say(f"How many linears get which of these is what {plan.choosing[0]} finds out.")
    for note in plan.notes:
        say(note)


def _linears(plan: Plan, checkpoint: Checkpoint) -> Counter[str]:
    """How many linears will have which scheme."""
    architecture = checkpoint.architecture
    for one in plan.passes:
        architecture = one.reshaped(architecture)
    return Counter(
        str(plan.schemes[name]) if name in plan.schemes else "left as it is" for name in architecture.linears()
    )
