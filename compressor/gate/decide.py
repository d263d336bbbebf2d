"""Verdicts. PASS and FAIL are both claims that a test has to support; INCONCLUSIVE is what is left.

A row passes if every metric's upper bound is within its limit: each such claim is wrong with probability alpha at most,
and so is the claim that all of them hold. It fails if one metric is surely beyond its limit: there the chance of being
wrong grows with the number of metrics, so their p-values are adjusted (Holm).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from compressor.errors import InputError
from compressor.files import write_json
from compressor.gate.evidence import Evidence
from compressor.gate.statistics import MeanChange, PairedProportions, detectable, holm
from compressor.ledger import finite

SCHEMA = 1
GATE_FILE = "gate.json"  # in a run's folder: the last verdict on what it ships
FEWEST_CLUSTERS = 20  # below, the bootstrap's own error exceeds alpha by more than a little; see tests/compressor/gate
MOST_SAMPLES = 100.0  # times as many: beyond that, no amount of text is worth naming


class Verdict(StrEnum):
    """What is said about a metric, and about a row."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"

    @property
    def exit_code(self) -> int:
        return {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}[self]


@dataclass(frozen=True)
class Finding:
    """The verdict on one metric. Changes are in the metric's `unit`, and larger is worse.

    Attributes:
        change, lower, upper: the estimate and its one-sided bounds, each missed with probability alpha.
        p_value: of the hypothesis that the change is within the limit; `p_adjusted` for the number of metrics.
        detectable: how far from the limit a true change is told from it with 80% power, with these samples.
        more: how many times as many samples would probably decide; None when decided or out of reach.
        reason: why there is no test, or none that decides.
    """

    metric: str
    title: str
    unit: str
    verdict: Verdict
    before: float | None
    after: float
    change: float | None
    lower: float | None
    upper: float | None
    limit: float
    p_value: float
    p_adjusted: float
    detectable: float | None
    more: float | None
    samples: int
    clusters: int
    cluster_unit: str
    reason: str | None


@dataclass(frozen=True)
class Decision:
    """The verdict on a row."""

    ledger: str
    row: str
    against: str
    alpha: float
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        found = {one.verdict for one in self.findings}
        return next(one for one in (Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS) if one in found)

    def plain(self) -> dict[str, Any]:
        """As JSON values; `schema` is the version of their layout."""
        head = {"schema": SCHEMA, "verdict": self.verdict, "exit_code": self.verdict.exit_code}
        return finite(head | asdict(self))

    def save(self, folder: Path) -> None:
        """Keep it in a run's folder."""
        write_json(folder / GATE_FILE, self.plain())


def load_decision(folder: Path) -> Decision | None:
    """The decision that is kept in a run's folder; None where there is none.

    Raises:
        InputError: it is damaged, or of another schema.
    """
    from pydantic import TypeAdapter, ValidationError

    file = folder / GATE_FILE
    if not file.is_file():
        return None
    try:
        return TypeAdapter(Decision).validate_json(file.read_bytes())
    except ValidationError as error:
        raise InputError(f"{file} is not a gate's decision: {error.errors()[0]['msg']}.") from error


def decide(evidence: list[Evidence], alpha: float, whole: float | None = None) -> list[Finding]:
    """The verdict on each metric; the adjustment is for all of them together.

    Args:
        whole: of a look at text that grows, which has `alpha`: the alpha of all looks together. A PASS of what does
            not grow is one claim however often it is repeated, and has all of it.
    """
    p_values = [_p_value(one) for one in evidence]
    adjusted = holm(p_values)
    return [
        _finding(one, alpha, p, p_adjusted, len(evidence), alpha if one.grows else whole or alpha)
        for one, p, p_adjusted in zip(evidence, p_values, adjusted, strict=True)
    ]


def _p_value(one: Evidence) -> float:
    if one.broken is not None:
        return 0.0
    return 1.0 if one.change is None or _too_few(one) else float(one.change.p_beyond(one.threshold))


def _too_few(one: Evidence) -> bool:
    return one.clusters < FEWEST_CLUSTERS and not isinstance(one.change, MeanChange | PairedProportions)


def _finding(one: Evidence, alpha: float, p_value: float, p_adjusted: float, metrics: int, of_bounds: float) -> Finding:
    change = lower = upper = reach = None
    if one.change is not None:
        change = float(one.change.value)
        lower, upper = map(float, one.change.bounds(of_bounds))
        reach = detectable(one.change, alpha / metrics)
    verdict, reason = _verdict(one, alpha, p_adjusted, upper)
    return Finding(
        metric=one.metric,
        title=one.title,
        unit=one.unit,
        verdict=verdict,
        before=one.before,
        after=one.after,
        change=None if change is None else one.shown(change),
        lower=None if lower is None else one.shown(lower),
        upper=None if upper is None else one.shown(upper),
        limit=one.limit,
        p_value=p_value,
        p_adjusted=p_adjusted,
        detectable=None if reach is None else one.shown(reach),
        more=_more(one, change, reach) if verdict is Verdict.INCONCLUSIVE else None,
        samples=one.samples,
        clusters=one.clusters,
        cluster_unit=one.cluster_unit,
        reason=reason,
    )


def _verdict(one: Evidence, alpha: float, p_adjusted: float, upper: float | None) -> tuple[Verdict, str | None]:
    if one.broken is not None:
        return Verdict.FAIL, one.broken
    if upper is None or _too_few(one):
        units = f"{one.cluster_unit}s" if one.clusters != 1 else one.cluster_unit
        return Verdict.INCONCLUSIVE, f"only {one.clusters} {units}; a verdict needs {FEWEST_CLUSTERS}"
    if p_adjusted <= alpha:
        return Verdict.FAIL, None
    if one.blind is not None:
        return Verdict.INCONCLUSIVE, one.blind
    return (Verdict.PASS if upper <= one.threshold else Verdict.INCONCLUSIVE), None


def _more(one: Evidence, change: float | None, reach: float | None) -> float | None:
    """How many times as many samples are needed if the change stays where it is: errors shrink with their root."""
    few = FEWEST_CLUSTERS / one.clusters if _too_few(one) else 1.0
    if one.blind is not None or change is None or reach is None or change == one.threshold:
        return None
    factor = max(few, (reach / (change - one.threshold)) ** 2)
    return factor if factor <= MOST_SAMPLES else None
