"""From a run whose gate fails to the pass, the layers, and what mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from compressor.bisect.candidates import candidates
from compressor.bisect.kept import KeptScores
from compressor.bisect.layers import Judge, LayerBlame, LayerSearch
from compressor.bisect.passes import FailedGate, RowBlame, RowLoss, blame_row
from compressor.bisect.remade import Workshop
from compressor.bisect.repair import Bench, Failed, Repair, cheapest
from compressor.bisect.units import units_of, with_errors
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gate.decide import Decision
from compressor.gate.growing import Budget, FirstWindows
from compressor.gate.subject import Run
from compressor.ledger import StepRecord
from compressor.measure.accuracy import Reference
from compressor.recipe import make_recipe
from compressor.reopen import Reopened
from compressor.texts import Texts, TokenSet
from compressor.tokenizer import tokenizer_of

WITH_LAYERS = 3  # the ledger's schema from which on it has errors of layers
FOR_LAYERS = 0.5  # of the budget, at least: what candidates are expected to take is kept for them


@dataclass(frozen=True)
class Bisection:
    """What was found; `rows` is None where the gate does not fail, `layers` where `notes` say why there are none.

    Attributes:
        judged: the gate's decision that is explained.
        repairs: every candidate, with what was measured of it.
    """

    judged: Decision
    rows: RowBlame | None = None
    layers: LayerBlame | None = None
    repairs: list[Repair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def repair(self) -> Repair | None:
        """The one that is proposed."""
        return cheapest(self.repairs)

    @property
    def exit_code(self) -> int:
        """0 where something is to blame; else the gate's."""
        return self.judged.verdict.exit_code if self.rows is None else 0


@dataclass(frozen=True)
class Sources:
    """Gives the run's texts again: of the evaluation, windows; for candidates, the calibration's."""

    evaluation: FirstWindows
    texts: Texts


def bisect(reopened: Reopened, failed: FailedGate, notes: list[str], sources: Sources, budget: Budget) -> Bisection:
    """Blame a row of a run whose gate fails, then layers of its step, and try what may mend it.

    Args:
        notes: what was said already.

    Raises:
        InputError: what has to be judged again is not here any more, or is another.
    """
    run, rows = reopened.run, blame_row(failed)
    told = Bisection(failed.judged, rows, notes=notes)
    guilty = rows.guilty.row
    if reopened.is_artifact(guilty):
        return _with_note(told, _on_runtime(rows.guilty, run))
    if not guilty.layers:
        return _with_note(told, _no_layers(rows.guilty, run))
    missing = [row.name for row in _steps_of(reopened, rows) if str(row.key) not in reopened.kept_steps()]
    if missing:
        return _with_note(told, _no_step(missing[0], run))
    return _Trials.start(reopened, failed, rows, sources, budget).told(told)


@dataclass(frozen=True)
class _Trials:
    """What all trials of a bisection have in common."""

    workshop: Workshop
    judge: Judge
    rows: RowBlame
    budget: Budget

    @classmethod
    def start(cls, reopened: Reopened, failed: FailedGate, rows: RowBlame, sources: Sources, budget: Budget) -> _Trials:
        run, original, source = reopened.run, reopened.original(), reopened.source()
        reopened.scratch.mkdir(parents=True, exist_ok=True)

        def report(done: int, total: int) -> None:
            reopened.progress("judging the original", done, total)

        tokens = _held_out(run, original, sources.evaluation).tokens
        reference = Reference.make(original, tokens, reopened.scratch / "reference-states.npy", report)
        kept = KeptScores(reopened.scratch, reference)
        judge = Judge(failed, reference, failed.subject(rows.guilty.row).tokens(), kept)
        return cls(Workshop(reopened, source, original, sources.texts, reopened.kept_steps()), judge, rows, budget)

    def told(self, told: Bisection) -> Bisection:
        bench = self._bench()
        layers = self._layers(bench.failed.seconds)
        if layers is None:
            return _with_note(told, "Taking back every layer that it changed is not enough: it changed more.")
        repairs = bench.repairs(candidates(make_recipe(self._run.ledger.recipe), self.rows.at, layers))
        found = replace(told, layers=layers, repairs=repairs)
        return found if found.repair else _with_note(found, "None of the repairs that were tried lets the gate pass.")

    @property
    def _run(self) -> Run:
        return self.workshop.reopened.run

    def _layers(self, seconds: float) -> LayerBlame | None:
        """The layers to blame; `seconds` is what a candidate will take."""
        reopened, guilty = self.workshop.reopened, self.rows.guilty.row
        recipe, step = make_recipe(self._run.ledger.recipe), reopened.step(guilty)
        before = self.judge.reference.checkpoint if self.rows.before is None else reopened.step(self.rows.before.row)

        def report(done: int, total: int) -> None:
            reopened.progress("measuring layers by themselves", done, total)

        units = units_of(recipe.build_passes()[self.rows.at], recipe.build_target(), before, step)
        units = with_errors(units, before, step, self.judge.reference.tokens, report)
        reserved = min((1 - FOR_LAYERS) * self.budget.seconds, 4 * seconds)  # the last takes twice
        may_go_on: Callable[[], bool] = lambda: self.budget.left > reserved  # noqa: E731
        search = LayerSearch(self.judge, step, before, guilty, units, self.rows.goal, reopened.progress, may_go_on)
        return search.blame()

    def _bench(self) -> Bench:
        steps = _steps_of(self.workshop.reopened, self.rows, whole=True)
        last, seconds = steps[-1], sum(row.seconds or 0.0 for row in steps[self.rows.at :])
        checkpoint, pairs = self.workshop.reopened.step(last), self.judge.gate.subject(last).tokens()
        failed = Failed(checkpoint, pairs, len(steps), seconds)
        return Bench(self.workshop, self.judge, failed, self.rows.goal, self.budget)


def _steps_of(reopened: Reopened, rows: RowBlame, whole: bool = False) -> list[StepRecord]:
    """The rows of passes whose folders are needed: the guilty one and the one before it; the whole way of all."""
    passes = [one.row for one in rows.losses if not reopened.is_artifact(one.row)]
    return passes if whole else [*passes[max(0, rows.at - 1) : rows.at + 1], passes[-1]]


def _with_note(found: Bisection, note: str) -> Bisection:
    return replace(found, notes=[*found.notes, note])


def _held_out(run: Run, original: Checkpoint, text: FirstWindows) -> TokenSet:
    record = run.ledger.texts["evaluation"]
    found = text(record, tokenizer_of(original), record.windows)
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
        f"{guilty.row.name} does more than to change single layers, so those of its step do not fit into the step "
        "before: the pass itself is what can be left out or changed."
    )


def _no_step(name: str, run: Run) -> str:
    return (
        f"The layers to blame cannot be looked for: the step {name} is not in {run.folder} any more. "
        f"`llmc compress --recipe {run.folder / 'recipe.yaml'} -o {run.folder} --resume` makes it again."
    )
