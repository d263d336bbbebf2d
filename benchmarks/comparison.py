"""Rows set beside each other: paired differences, ratios of time, and the bars that ours have to clear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rows import Result, Row, Turns

from compressor.measure.statistics import Estimate, mean
from compressor.report.numbers import estimate

PEERS = ("llm-compressor", "auto-round")
YARDSTICK = "llm-compressor gptq"  # of time and memory
RIVALS = (YARDSTICK, "llm-compressor gptq static+mse", "llm-compressor awq")  # of accuracy, all of them
TUNER = "auto-round"  # at its defaults
KL_BAR, COST_BAR, MEMORY_BAR, DEPTH_BAR = 0.8, 1 / 3, 1 / 3, 1.1
ERRORS_APART = 2  # standard errors from which a paired difference counts


@dataclass(frozen=True)
class Bar:
    """A claim, what was measured, and whether it holds; None when what it needs was not measured."""

    claim: str
    outcome: str
    holds: bool | None

    @classmethod
    def open(cls, claim: str) -> Bar:
        return cls(claim, "", None)


@dataclass(frozen=True)
class Comparison:
    """The rows that have a result.

    Attributes:
        rows: all rows, in the order of the table.
        key: of the judgements that count: those on the current evaluation tokens.
    """

    rows: Sequence[Row]
    results: Mapping[str, Result]
    turns: Sequence[Turns]
    key: str

    @property
    def present(self) -> list[Row]:
        return [row for row in self.rows if row.name in self.results]

    def windows(self, name: str) -> np.ndarray | None:
        """What was judged window by window, [windows, 4], or None when the row was not judged."""
        judgement = self.results[name].judgement if name in self.results else None
        if judgement is None or judgement.windows is None or judgement.key != self.key:
            return None
        return np.array(judgement.windows)

    def kl(self, name: str) -> np.ndarray:
        """Divergence from the original, [windows]."""
        windows = self.windows(name)
        assert windows is not None, name
        return windows[:, 2]

    def judged(self, kind: str, tools: Iterable[str]) -> list[str]:
        rows = [row for row in self.present if row.kind == kind and row.tool in tools]
        return [row.name for row in rows if self.windows(row.name) is not None]

    def best(self, kind: str, tools: Iterable[str]) -> str | None:
        """The judged row of these tools with the least divergence."""
        return min(self.judged(kind, tools), key=lambda name: self.kl(name).mean(), default=None)

    def paired(self, name: str, other: str) -> Estimate:
        """Difference of divergence, window by window."""
        return mean(self.kl(name) - self.kl(other))

    def cost_ratios(self, name: str, other: str) -> tuple[Ratio, Ratio] | None:
        """Wall and CPU time next to another row's: of turns, else of single runs on one machine."""
        for turns in reversed(self.turns):
            if {name, other} <= set(turns.costs):
                return Ratio.of(turns, name, other, "wall_s"), Ratio.of(turns, name, other, "cpu_s")
        one, two = self.results.get(name), self.results.get(other)
        if one is None or two is None or one.machine != two.machine:
            return None
        return Ratio.single(one.cost.wall_s / two.cost.wall_s), Ratio.single(one.cost.cpu_s / two.cost.cpu_s)


@dataclass(frozen=True)
class Ratio:
    """A cost next to another row's, round by round: the median and what it lies between."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, turns: Turns, name: str, other: str, field: str) -> Ratio:
        pairs = zip(turns.costs[name], turns.costs[other], strict=True)
        ratios = [getattr(one, field) / getattr(two, field) for one, two in pairs]
        return cls(float(np.median(ratios)), min(ratios), max(ratios))

    @classmethod
    def single(cls, ratio: float) -> Ratio:
        return cls(ratio, ratio, ratio)

    def __str__(self) -> str:
        spread = f" ({self.least:.2f} to {self.most:.2f})" if self.least < self.most else ""
        return f"{self.middle:.2f}{spread}"


def accuracy_bars(found: Comparison, kind: str) -> Iterator[Bar]:
    """Our best row's divergence next to the peers', and the time of the cheapest of ours that is good enough."""
    ours, judged = found.best(kind, ["llmc"]), found.judged(kind, PEERS)
    theirs = min(RIVALS, key=lambda name: found.kl(name).mean()) if set(RIVALS) <= set(judged) else None
    yield _divergence_bar(found, ours, theirs)
    yield _not_worse_bar(found, ours, TUNER if TUNER in judged else None)
    yield _cost_bar(found, kind, theirs)


def shape_bar(results: Mapping[str, Result]) -> Bar:
    """Peak memory of our GPTQ next to llm-compressor's."""
    claim = f"peak memory of gptq at most 1/3 of {YARDSTICK}'s"
    if not {"gptq", YARDSTICK} <= set(results):
        return Bar.open(claim)
    ratio = results["gptq"].cost.peak_rss_bytes / results[YARDSTICK].cost.peak_rss_bytes
    return Bar(claim, f"{ratio:.2f} ×", ratio <= MEMORY_BAR)


def depth_bars(shallow: Mapping[str, Result], deep: Mapping[str, Result]) -> Iterator[Bar]:
    """Four times the depth: the same memory, four times the time at most."""
    for name in shallow.keys() & deep.keys():
        one, two = shallow[name], deep[name]
        memory, wall = two.cost.peak_rss_bytes / one.cost.peak_rss_bytes, two.cost.wall_s / one.cost.wall_s
        same = one.machine == two.machine
        yield Bar(
            f"{name} four times as deep: peak memory at most {DEPTH_BAR} ×", f"{memory:.3f} ×", memory <= DEPTH_BAR
        )
        claim = f"{name} four times as deep: wall time at most {4 * DEPTH_BAR} ×"
        yield Bar(claim, f"{wall:.2f} ×", wall <= 4 * DEPTH_BAR) if same else Bar.open(claim)


def _divergence_bar(found: Comparison, ours: str | None, theirs: str | None) -> Bar:
    claim = f"KL of our best at most {KL_BAR} × the best of {', '.join(RIVALS)}"
    if ours is None or theirs is None:
        return Bar.open(claim)
    one, two = found.kl(ours).mean(), found.kl(theirs).mean()
    return Bar(claim, f"{ours} {one:.4f}, {theirs} {two:.4f}: {one / two:.2f} ×", bool(one <= KL_BAR * two))


def _not_worse_bar(found: Comparison, ours: str | None, theirs: str | None) -> Bar:
    claim = f"KL of our best not worse than auto-round's by {ERRORS_APART} paired standard errors"
    if ours is None or theirs is None:
        return Bar.open(claim)
    difference = found.paired(ours, theirs)
    holds = difference.value <= ERRORS_APART * (difference.stderr or 0.0)
    return Bar(claim, f"{ours} − {theirs}: {estimate(difference)}", holds)


def _cost_bar(found: Comparison, kind: str, theirs: str | None) -> Bar:
    claim = f"wall and CPU time of our cheapest that clears the first bar at most 1/3 of {YARDSTICK}'s"
    ours = found.judged(kind, ["llmc"])
    if theirs is None or not ours:
        return Bar.open(claim)
    limit = KL_BAR * found.kl(theirs).mean()
    good = {name: found.cost_ratios(name, YARDSTICK) for name in ours if found.kl(name).mean() <= limit}
    if not good:
        return Bar(claim, "none clears it", False)
    costs = {name: ratios for name, ratios in good.items() if ratios is not None}
    if not costs:
        return Bar.open(claim)
    cheapest, (wall, cpu) = min(costs.items(), key=lambda item: max(ratio.middle for ratio in item[1]))
    holds = max(wall.middle, cpu.middle) <= COST_BAR
    if not holds and len(costs) < len(good):
        return Bar.open(claim)  # a row that cannot be compared may be cheaper
    return Bar(claim, f"{cheapest}: wall {wall} ×, CPU {cpu} ×", holds)
