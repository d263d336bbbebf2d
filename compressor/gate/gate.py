"""From ledgers to a decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compressor.gate.decide import Decision, decide
from compressor.gate.evidence import Evidence, gather
from compressor.gate.limits import Limits
from compressor.gate.subject import Run, Subject, TokenPairs
from compressor.gate.tasks import TaskPairs


@dataclass(frozen=True)
class Standing:
    """Evidence that was measured once, beside a text that grows; `alpha` is that of all looks together."""

    evidence: Sequence[Evidence]
    alpha: float


def gate(
    run: Run,
    limits: Limits,
    base: Run | None = None,
    row: str | None = None,
    tasks: Sequence[TaskPairs] = (),
    base_row: str | None = None,
    standing: Standing | None = None,
) -> Decision:
    """Judge a row of a run against its original, or against a row of a baseline; by task scores too, if given.

    Args:
        base_row: name of the baseline's row; None is the row of the same name.
        standing: is judged beside what the run has of it; see `compressor.gate.growing`.

    Raises:
        InputError: what a limit needs was not measured, is not there, or was measured on other data.
    """
    subject = Subject.choose(run, base, row, base_row)
    evidence = gather(subject, limits, tasks)
    if standing is None:
        findings = decide(evidence, limits.alpha)
    else:
        evidence += standing.evidence
        findings = decide(evidence, limits.alpha, standing.alpha)
    notes = list(subject.notes)
    if any(one.cluster_unit == "window" for one in evidence):
        notes.append(_on_windows(subject.tokens()))
    if any(one.cluster_unit == "repeat, not in turns" for one in evidence):
        notes.append("Times were not taken in turns: what the machine did meanwhile is part of the difference.")
    return Decision(str(run.file), subject.row.name, subject.against, limits.alpha, findings, notes)


def _on_windows(pairs: TokenPairs) -> str:
    windows = "The text is running text: its windows stand for documents, as if they were independent."
    worse = pairs.after_loss.astype(float) - pairs.before_loss
    means = np.array([worse[pairs.cluster == window].mean() for window in np.unique(pairs.cluster)])
    alike = _neighbours(means)
    if alike > 2 / np.sqrt(len(means)):
        windows += f" Neighbours are alike (correlation {alike:.2f}), so the intervals are too narrow."
    return windows + " Give .jsonl with a document a line where it matters."


def _neighbours(values: np.ndarray) -> float:
    """Correlation of each value with the next one; 0 where they do not vary."""
    if len(values) < 3 or not np.isfinite(values).all() or min(values[:-1].std(), values[1:].std()) == 0:
        return 0.0
    return float(np.corrcoef(values[:-1], values[1:])[0, 1])
