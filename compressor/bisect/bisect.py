"""From a run whose gate fails to the pass, the layers, and what mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from compressor.bisect.layers import Judge, LayerBlame, LayerSearch
from compressor.bisect.passes import RowBlame, RowLoss, blame_row, text_only
from compressor.bisect.repair import Repair, skipping
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gate.decide import Verdict
from compressor.gate.growing import FirstWindows
from compressor.gate.limits import Limits
from compressor.gate.subject import Run, Subject
from compressor.ledger import finite
from compressor.measure.accuracy import Reference
from compressor.recipe import make_recipe
from compressor.reopen import Reopened
from compressor.texts import TokenSet
from compressor.tokenizer import load_tokenizer

SCHEMA = 1
WITH_LAYERS = 3  # the ledger's schema from which on it has errors of layers


@dataclass(frozen=True)
class Bisection:
    """What was found; `layers` and `repair` are None where `notes` say why there is none."""

    rows: RowBlame
    layers: LayerBlame | None
    repair: Repair | None
    notes: list[str]

    def plain(self) -> dict[str, Any]:
        """As JSON values; `schema` is the version of their layout."""
        layers = None if self.layers is None else _plain_layers(self.layers)
        repair = None if self.repair is None else _plain_repair(self.repair)
        head = {"schema": SCHEMA, "ledger": self.rows.guilty.decision.ledger, "blamed": self.rows.guilty.row.name}
        rows = [_plain_row(one) for one in self.rows.losses]
        return finite(head | {"rows": rows, "layers": layers, "repair": repair, "notes": self.notes})


def bisect(
    reopened: Reopened, limits: Limits, row: str | None, text: FirstWindows, may_go_on: Callable[[], bool]
) -> Bisection:
    """Blame a row of a run whose gate fails, then layers of its step.

    Args:
        row: the judged one; None is what ships.
        text: gives the run's evaluation text again.
        may_go_on: whether there is time for another trial.

    Raises:
        InputError: the gate does not fail, or what has to be judged again is not here any more.
    """
    run, limits, notes = text_only(reopened.run, limits)
    reopened = replace(reopened, run=run)
    rows = blame_row(run, limits, row)
    if reopened.is_artifact(rows.guilty.row):
        notes.append(_on_runtime(rows.guilty, run))
        return Bisection(rows, None, None, notes)
    if not rows.guilty.row.layers:
        notes.append(_no_layers(rows.guilty, run))
        return Bisection(rows, None, None, notes)
    layers = _search(reopened, limits, rows, text, may_go_on)
    if layers is None:
        notes.append("Taking back every layer that it rounded is not enough: it changed more than these.")
        return Bisection(rows, None, None, notes)
    try:
        return Bisection(rows, layers, skipping(make_recipe(run.ledger.recipe), rows.at, layers), notes)
    except InputError as error:
        return Bisection(rows, layers, None, [*notes, f"{error} {error.hint or ''}".strip()])


def _search(
    reopened: Reopened, limits: Limits, rows: RowBlame, text: FirstWindows, may_go_on: Callable[[], bool]
) -> LayerBlame | None:
    run, guilty, original = reopened.run, rows.guilty.row, reopened.original()
    step = reopened.step(guilty)
    before = original if rows.before is None else reopened.step(rows.before.row)
    reopened.scratch.mkdir(parents=True, exist_ok=True)

    def report(done: int, total: int) -> None:
        reopened.progress("judging the original", done, total)

    tokens = _held_out(run, original, text).tokens
    reference = Reference.make(original, tokens, reopened.scratch / "reference-states.npy", report)
    judge = Judge(run.file, limits, reference, Subject.choose(run, None, guilty.name).tokens())
    goal = Verdict.PASS if rows.before is None else rows.before.decision.verdict
    return LayerSearch(judge, step, before, guilty, goal, reopened.progress, may_go_on).blame()


def _held_out(run: Run, original: Checkpoint, text: FirstWindows) -> TokenSet:
    record = run.ledger.texts["evaluation"]
    found = text(record, load_tokenizer(original.root), record.windows)
    if found.digest != record.digest:
        raise InputError(f"The text of {run.file} is another now: {record.source} gives other tokens.")
    return found


def _on_runtime(guilty: RowLoss, run: Run) -> str:
    return (
        f"Every pass is within the limits; {guilty.row.name} is not in {guilty.row.runtime}, with the same weights bit "
        f"for bit. `llmc compare --runtimes {run.folder}` tells whether another runtime does better."
    )


def _no_layers(guilty: RowLoss, run: Run) -> str:
    if run.ledger.schema < WITH_LAYERS:
        return (
            "The ledger is of an earlier version, without errors of layers. `llmc compress` into a new folder has them."
        )
    return (
        f"{guilty.row.name} does more than to round layers, so those of its step do not fit into the step before: "
        "the pass itself is what can be left out or changed."
    )


def _plain_row(one: RowLoss) -> dict[str, Any]:
    changes = {found.metric: found.change for found in one.decision.findings}
    return {"name": one.row.name, "verdict": one.decision.verdict, "changes": changes, "shares": one.shares}


def _plain_layers(one: LayerBlame) -> dict[str, Any]:
    return {
        "blocks": one.blocks,
        "errors": one.errors,
        "taken_back": one.decision.plain(),
        "trials": one.trials,
        "minimal": one.is_minimal,
    }


def _plain_repair(one: Repair) -> dict[str, Any]:
    return {
        "pass": one.changed,
        "passes": one.passes,
        "added_bytes": one.added_bytes,
        "measured": one.decision.plain(),
    }
