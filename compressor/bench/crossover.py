"""Up to which batch size the second of two pays: from where on its requests are no longer faster than the first's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compressor.gate.statistics import MeanChange
from compressor.measure.latency import Latency
from compressor.measure.statistics import FEWEST_REPEATS

SIDE = 0.025  # of each side of a 95% interval


@dataclass(frozen=True)
class Ratio:
    """How many times as long a request takes in the second as in the first, with its 95% interval.

    Attributes:
        lower, upper: None where there were too few repeats for an interval.
        in_turns: whether repeats were paired; else the machine's drift is part of the interval.
    """

    batch: int
    value: float
    lower: float | None
    upper: float | None
    in_turns: bool

    @classmethod
    def of(cls, first: Latency, second: Latency) -> Ratio | None:
        """From the repeats of both under the same workload; None where one has fewer than two."""
        before, after = (np.array(one.repeats["request_ms"]) for one in (first, second))
        if min(len(before), len(after)) < 2:
            return None
        paired = len(before) == len(after)
        change = MeanChange.of_times(before, after, paired)
        enough = min(len(before), len(after)) >= FEWEST_REPEATS
        lower, upper = (float(np.exp(one)) if enough else None for one in change.bounds(SIDE))
        return cls(first.batch, float(np.exp(change.value)), lower, upper, paired)

    @property
    def pays(self) -> bool:
        """Whether the second is surely faster."""
        return self.upper is not None and self.upper < 1


@dataclass(frozen=True)
class Crossover:
    """Where the second stops paying.

    Attributes:
        pays_to: largest batch size up to which it is surely faster at every one measured; None: at not even the first.
        ends_at: smallest batch size at which it is not; None: it pays at all that were measured.
        estimate: batch size at which both would take as long, on the line between the two in logarithms; None where
            they do not lie on both sides of it.
    """

    pays_to: int | None
    ends_at: int | None
    estimate: float | None


def crossover(ratios: Mapping[int, Ratio]) -> Crossover | None:
    """Where the second of two stops paying, by ratios at batch sizes; None where one has no interval."""
    if any(one.upper is None for one in ratios.values()):
        return None
    ordered = [ratios[batch] for batch in sorted(ratios)]
    end = next((at for at, one in enumerate(ordered) if not one.pays), len(ordered))
    before = ordered[end - 1] if end else None
    after = ordered[end] if end < len(ordered) else None
    pays_to, ends_at = (None if one is None else one.batch for one in (before, after))
    return Crossover(pays_to, ends_at, _between(before, after))


def _between(before: Ratio | None, after: Ratio | None) -> float | None:
    if before is None or after is None or after.value < 1:
        return None
    low, high = np.log(before.value), np.log(after.value)
    return float(before.batch * (after.batch / before.batch) ** (low / (low - high)))


def sentence(found: Crossover | None, ratios: Mapping[int, Ratio], first: str, second: str) -> str:
    """What was found, in words."""
    if found is None:
        times = ", ".join(f"{one.value:.2f} × at batch {batch}" for batch, one in sorted(ratios.items()))
        return (
            f"{second} takes {times} the time of {first}. These are too few repeats to tell how sure that is: "
            f"--repeats {FEWEST_REPEATS} is the least, and 10 is better."
        )
    if found.ends_at is None:
        return f"{second} pays at every batch size measured, up to {found.pays_to} ({_said(ratios[max(ratios)])})."
    if found.pays_to is None:
        least = ratios[found.ends_at]
        return f"{second} does not pay at batch {least.batch}, the smallest one measured ({_said(least)})."
    where = f"; both would take as long at about {found.estimate:.2g}" if found.estimate else ""
    return (
        f"{second} pays up to batch {found.pays_to} ({_said(ratios[found.pays_to])}) and not surely at {found.ends_at} "
        f"({_said(ratios[found.ends_at])}){where}: × is the time of {first}."
    )


def _said(ratio: Ratio) -> str:
    assert ratio.lower is not None
    assert ratio.upper is not None
    return f"{ratio.value:.2f} ×, {ratio.lower:.2f} to {ratio.upper:.2f}"
