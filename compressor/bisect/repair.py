"""What mends a step: the blamed layers left as they were before the pass, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from compressor.bisect.layers import LayerBlame
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gate.decide import Decision
from compressor.pass_ import Pass
from compressor.plan import check_plan
from compressor.recipe import Recipe


@dataclass(frozen=True)
class Repair:
    """Another recipe, and what was measured of it.

    Attributes:
        at: number of the pass that is changed, from 0.
        changed: as it is spelled then.
        passes: of the whole recipe, as it has them.
        decision: the gate's on the step as it is with the change. All other layers are those of the run: a new run
            rounds them again, for inputs that are closer to the original's.
        added_bytes: how much larger the step is.
    """

    at: int
    changed: str
    passes: list[dict[str, Any]]
    decision: Decision
    added_bytes: int


def skipping(recipe: Recipe, at: int, layers: LayerBlame) -> Repair:
    """The repair that leaves the blamed layers out of the pass number `at`.

    Raises:
        InputError: the pass cannot leave these out, or the target does not take what it leaves then.
    """
    passes, modules = recipe.build_passes(), layers.swapped.architecture.modules
    one, tables = passes[at], [name for name in layers.blocks if not name.startswith("layers.")]
    if tables:
        raise InputError(f"{' and '.join(tables)} of {one.name} cannot be skipped by a pattern.", _without(tables[0]))
    if "skip" not in one.options():
        raise InputError(f"{one.name} has no option that leaves layers out.", "Another pass in its place may do.")
    patterns = [f"{modules.block(int(name.removeprefix('layers.')))}*" for name in layers.blocks]
    changed: Pass = replace(one, skip=(*one.options()["skip"], *patterns))  # type: ignore[call-arg, type-var]
    passes[at] = changed
    _check(layers.swapped.before, passes[at:], recipe)
    added = layers.swapped.nbytes - layers.swapped.step.nbytes
    return Repair(at, changed.spelled(), [{each.name: _plain(each)} for each in passes], layers.decision, added)


def _check(before: Checkpoint, passes: list[Pass], recipe: Recipe) -> None:
    try:
        check_plan(before, passes, recipe.build_target())
    except InputError as error:
        raise InputError(f"Leaving these layers out is not possible: {error}", error.hint) from error


def _without(table: str) -> str:
    return {"embedding": "Leave out the pass embeddings.", "head": "lm_head=false leaves the head as it is."}[table]


def _plain(one: Pass) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in one.options().items()}
