"""The pass to blame: the first row of a run at which its gate fails."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from compressor.errors import InputError
from compressor.gate.decide import Decision, Finding, Verdict
from compressor.gate.gate import gate
from compressor.gate.limits import Limits
from compressor.gate.subject import ORIGINAL, Run, Subject
from compressor.ledger import StepRecord


@dataclass(frozen=True)
class FailedGate:
    """A gate, and its decision on a row.

    Attributes:
        base: the run that it compares with; None is the run's original.
        judged: the decision; only one that is a FAIL has something to blame.
    """

    run: Run
    limits: Limits
    base: Run | None
    judged: Decision

    @classmethod
    def of(cls, run: Run, limits: Limits, base: Run | None, row: str | None) -> FailedGate:
        """The gate on the row of this name; None is what ships."""
        return cls(run, limits, base, gate(run, limits, base, row))

    def on(self, row: StepRecord) -> Decision:
        """The gate on another row, which is compared with the same."""
        return gate(self.run, self.limits, self.base, row.name, base_row=self.judged.row)

    def subject(self, row: StepRecord) -> Subject:
        """A row, and what the gate compares it with."""
        return Subject.choose(self.run, self.base, row.name, self.judged.row)


@dataclass(frozen=True)
class RowLoss:
    """What a row lost.

    Attributes:
        decision: the gate's on the row.
        shares: by metric, the part of the last row's loss that came with this one; None where that lost nothing. Parts
            add up to 1, and are negative for a row that gained.
    """

    row: StepRecord
    decision: Decision
    shares: dict[str, float | None]


@dataclass(frozen=True)
class RowBlame:
    """The verdicts of all rows up to the judged one, which fails.

    Attributes:
        losses: of every pass in order, and of the artifact in its runtime where that is judged.
        at: which of them is the first that fails.
        goal: the verdict on what the guilty row was made from: nothing that is done to it can be hoped to be better.
    """

    losses: list[RowLoss]
    at: int
    goal: Verdict

    @property
    def guilty(self) -> RowLoss:
        return self.losses[self.at]

    @property
    def before(self) -> RowLoss | None:
        """The row that it was made from; None where that is the original."""
        return self.losses[self.at - 1] if self.at else None


def blame_row(failed: FailedGate) -> RowBlame:
    """The first row at which the gate fails, among those that lead to the judged one.

    Raises:
        InputError: a row was not measured, or the original itself fails against the baseline.
    """
    run, judged = failed.run, failed.judged
    rows = _leading_to(run, run.row(judged.row))
    start = None if failed.base is None else failed.on(run.row(ORIGINAL))
    if start is not None and start.verdict is Verdict.FAIL:
        raise InputError(
            f"The original is beyond the limits against {start.against} itself: no pass is to blame.",
            "Without --against, the run is compared with its original.",
        )
    decisions = [judged if row.name == judged.row else failed.on(row) for row in rows]
    known = [_additive(one) for one in decisions]
    earlier = [dict.fromkeys(known[0], 0.0) if start is None else _additive(start), *known[:-1]]
    losses = [
        RowLoss(row, decision, _shares(now, old, known[-1], earlier[0]))
        for row, decision, now, old in zip(rows, decisions, known, earlier, strict=True)
    ]
    at = next(at for at, one in enumerate(decisions) if one.verdict is Verdict.FAIL)
    goal = decisions[at - 1].verdict if at else Verdict.PASS if start is None else start.verdict
    return RowBlame(losses, at, goal)


def text_only(run: Run, limits: Limits) -> tuple[Run, Limits, list[str]]:
    """The run and the limits without what single passes are not measured by, and what was left out.

    Raises:
        InputError: no limit is left.
    """
    notes = []
    if limits.max_latency_increase is not None:
        limits = limits.model_copy(update={"max_latency_increase": None})
        notes.append("The limit on latency is left out: it is no loss of a pass's.")
    if not limits.needs_text:
        raise InputError(
            "Passes and layers are found by metrics of the evaluation text, and no limit is on one of these.",
            "Give --max-perplexity-increase, --max-accuracy-drop or --max-kl.",
        )
    if limits.max_accuracy_drop is not None and any(row.tasks for row in run.ledger.steps):
        notes.append("Accuracy is that of the next token, for every row; tasks were asked of some rows only.")
    return without_tasks(run), limits, notes


def without_tasks(run: Run) -> Run:
    """The run as if no row had been asked a task."""
    return replace(run, ledger=replace(run.ledger, steps=[replace(row, tasks=[]) for row in run.ledger.steps]))


def _leading_to(run: Run, last: StepRecord) -> list[StepRecord]:
    """The rows of passes up to `last`, and itself: neither the original nor baselines, `what, which`."""
    rows = run.ledger.steps[: run.ledger.steps.index(last) + 1]
    return [row for row in rows if row is last or (row.name != ORIGINAL and ", " not in row.name)]


def _additive(decision: Decision) -> dict[str, float]:
    """Changes by metric, on a scale on which those of passes add up: of a perplexity, that of its logarithm."""
    return {one.metric: _on_scale(one) for one in decision.findings}


def _on_scale(one: Finding) -> float:
    if one.change is None:  # losses that are no numbers
        return math.nan
    return math.log1p(one.change) if one.unit == "share" else one.change


def _shares(
    now: dict[str, float], before: dict[str, float], last: dict[str, float], first: dict[str, float]
) -> dict[str, float | None]:
    return {metric: _share(now[metric] - before[metric], last[metric] - first[metric]) for metric in now}


def _share(part: float, whole: float) -> float | None:
    share = part / whole if whole > 0 else math.nan
    return share if math.isfinite(share) else None
