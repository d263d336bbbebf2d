"""A decision in words and in the cells of a table; terminal, Markdown and JUnit only lay them out."""

from __future__ import annotations

import math

from compressor.gate.decide import Decision, Finding, Verdict
from compressor.gate.statistics import POWER
from compressor.report.tables import MISSING, Table

SUFFIXES = {"share": "%", "points": " points", "nats": " nats"}
NARROW = {"share": "%", "points": " pp", "nats": ""}  # in cells


def headline(decision: Decision) -> str:
    """One line: what is judged, and what decided. The verdict itself is left to the layout."""
    verdict = decision.verdict
    deciding = [sentence(one) for one in decision.findings if one.verdict is verdict]
    return f"{decision.row} against {decision.against}: {'; '.join(deciding)}"


def sentence(one: Finding) -> str:
    """What was found out about one metric."""
    if one.reason is not None:
        return f"{one.title}: {one.reason}"
    allowed = f"{amount(one, one.limit)} allowed"
    if one.verdict is Verdict.PASS:
        return f"{one.title} {_worse(one, one.upper, 'at most')}, {allowed}"
    if one.verdict is Verdict.FAIL:
        return f"{one.title} {_worse(one, one.change)}, {allowed} (p = {p_value(one)})"
    return f"{one.title} {_between(one)}, {allowed}; {_what_would_decide(one)}"


def _worse(one: Finding, change: float | None, bound: str = "") -> str:
    """`at most 1.2% worse`, `1.2% worse`, or `at least 0.3% better` of a negative change."""
    assert change is not None
    if one.unit == "nats":
        return f"is {bound} {amount(one, change)}".replace("  ", " ")
    if change < 0:
        opposite = {"at most": "at least"}.get(bound, bound)
        return f"{opposite} {amount(one, -change)} better".strip()
    return f"{bound} {amount(one, change)} worse".strip()


def _between(one: Finding) -> str:
    worse = "" if one.unit == "nats" else " worse"
    return f"between {amount(one, one.lower)} and {amount(one, one.upper)}{worse}"


def _what_would_decide(one: Finding) -> str:
    unit = one.cluster_unit.partition(",")[0]
    if one.more is None:
        return f"too close to the limit for more {unit}s to tell"
    return f"about {max(1.1, one.more):.2g} times as many {unit}s would tell"


def amount(one: Finding, value: float | None) -> str:
    """A change or a limit in its unit."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "no bound"
    return _number(one, value) + SUFFIXES[one.unit]


def _number(one: Finding, value: float) -> str:
    if one.unit != "nats":
        return f"{100 * value:.3g}"
    return f"{value:.4f}" if round(value, 4) else f"{value:.2g}"


def p_value(one: Finding) -> str:
    """The adjusted p-value, as far as resampling can tell."""
    return f"{one.p_adjusted:.2g}" if one.p_adjusted >= 1e-4 else "0.0001 or less"


def table(decision: Decision) -> Table:
    """One line a metric."""
    interval = f"{100 * (1 - 2 * decision.alpha):g}% interval"
    headers = ("metric", "before", "now", "worse", interval, "limit", "could see", "verdict")
    return Table("Gate", headers, [_cells(one) for one in decision.findings])


def _cells(one: Finding) -> tuple[str, ...]:
    return (
        one.title,
        MISSING if one.before is None else figure(one, one.before),
        figure(one, one.after),
        _cell(one, one.change),
        _interval(one),
        _cell(one, one.limit),
        _cell(one, one.detectable),
        str(one.verdict),
    )


def _interval(one: Finding) -> str:
    if one.lower is None or one.upper is None:
        return MISSING
    lower, upper = (_number(one, bound) if math.isfinite(bound) else "?" for bound in (one.lower, one.upper))
    return f"{lower} to {upper}"


def _cell(one: Finding, value: float | None) -> str:
    return MISSING if value is None else _number(one, value) + NARROW[one.unit]


def figure(one: Finding, value: float) -> str:
    """The metric itself."""
    if one.unit == "points":
        return f"{100 * value:.2f}%"
    return f"{value:.4g}" + (" ms" if one.metric in ("ttft", "itl") else "")


def remarks(decision: Decision) -> list[str]:
    """How to read the table, and what has to be said about the data."""
    sizes = {f"{one.samples} {_samples(one)}" for one in decision.findings}
    count = len(decision.findings)
    adjusted = f", adjusted for {count} metrics (Holm)" if count > 1 else ""
    reading = (
        f"{'; '.join(sorted(sizes))}. PASS: the upper bound is within the limit; FAIL: the change is beyond it; "
        f"each is wrong at most {100 * decision.alpha:g}% of the time{adjusted}. Could see: how far from its limit a "
        f"true change is told from it {100 * POWER:g}% of the time."
    )
    if any(one.unit == "points" for one in decision.findings):
        reading += " pp: percentage points."
    return [*decision.notes, reading]


def _samples(one: Finding) -> str:
    unit, _, how = one.cluster_unit.partition(", ")
    if unit == "repeat":
        return f"repeats, {how}"
    return "samples" if unit == "sample" else f"tokens in {one.clusters} {unit}s"
