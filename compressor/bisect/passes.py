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
class RowLoss:
    """What a row lost.

    Attributes:
        decision: the gate's, on the row against the original.
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
    """

    losses: list[RowLoss]
    at: int

    @property
    def guilty(self) -> RowLoss:
        return self.losses[self.at]

    @property
    def before(self) -> RowLoss | None:
        """The row that it was made from; None where that is the original."""
        return self.losses[self.at - 1] if self.at else None


def blame_row(run: Run, limits: Limits, name: str | None = None) -> RowBlame:
    """The first row at which the gate fails, among those that lead to the row `name`, else to what ships.

    Raises:
        InputError: the gate does not fail, or a row was not measured.
    """
    judged = gate(run, limits, None, name)
    if judged.verdict is not Verdict.FAIL:
        raise InputError(
            f"The gate of {run.file} does not fail: {judged.row} is {judged.verdict}. There is nothing to blame.",
            "`llmc gate` shows what it found; tighter limits can be given here.",
        )
    rows = _leading_to(run, Subject.choose(run, None, name).row)
    decisions = [judged if row.name == judged.row else gate(run, limits, None, row.name) for row in rows]
    known = [{one.metric: _additive(one) for one in decision.findings} for decision in decisions]
    earlier = [dict.fromkeys(known[0], 0.0), *known[:-1]]
    losses = [
        RowLoss(row, decision, {metric: _share(now[metric], old[metric], known[-1][metric]) for metric in now})
        for row, decision, now, old in zip(rows, decisions, known, earlier, strict=True)
    ]
    return RowBlame(losses, next(at for at, one in enumerate(decisions) if one.verdict is Verdict.FAIL))


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
            "Passes and layers are blamed by held-out text, and no limit is on what it tells.",
            "Give --max-perplexity-increase, --max-accuracy-drop or --max-kl.",
        )
    if limits.max_accuracy_drop is not None and any(row.tasks for row in run.ledger.steps):
        notes.append("Accuracy is that of the next token, for every row; tasks were asked of some rows only.")
    rows = [replace(row, tasks=[]) for row in run.ledger.steps]
    return replace(run, ledger=replace(run.ledger, steps=rows)), limits, notes


def _leading_to(run: Run, last: StepRecord) -> list[StepRecord]:
    """The rows of passes up to `last`, and itself: neither the original nor baselines, `what, which`."""
    rows = run.ledger.steps[: run.ledger.steps.index(last) + 1]
    return [row for row in rows if row is last or (row.name != ORIGINAL and ", " not in row.name)]


def _additive(one: Finding) -> float:
    """A change on a scale on which those of passes add up: of a perplexity, that of its logarithm."""
    if one.change is None:  # losses that are no numbers
        return math.nan
    return math.log1p(one.change) if one.unit == "share" else one.change


def _share(now: float, before: float, whole: float) -> float | None:
    share = (now - before) / whole if whole > 0 else math.nan
    return share if math.isfinite(share) else None
