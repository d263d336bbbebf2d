"""How much something got worse, and how sure that is.

Three kinds of evidence, one interface: `Change`. Larger is worse, and tests are one-sided: `bounds(alpha)` are two
one-sided bounds, each missed with probability alpha, and `p_beyond(limit)` is small when the change is beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy import optimize, stats

RESAMPLES = 9999
SEED = 0
ELEMENTS_AT_ONCE = 1 << 22  # of resampled counts held at a time: 32 MiB
POWER = 0.8


class Change(Protocol):
    """A change that was measured; see the module."""

    @property
    def value(self) -> Any: ...
    @property
    def stderr(self) -> Any: ...
    @property
    def freedom(self) -> float:
        """Degrees of freedom that `stderr` has."""
        ...

    def bounds(self, alpha: float) -> tuple[Any, Any]: ...
    def p_beyond(self, limit: float) -> Any: ...


def detectable(change: Change, alpha: float, power: float = POWER) -> float:
    """The distance from a limit at which a true change is told from it with this power, at this number of samples."""
    return float((stats.t.ppf(1 - alpha, change.freedom) + stats.t.ppf(power, change.freedom)) * change.stderr)


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted so that one of several tests is wrong no more often than a single one (Holm 1979)."""
    count = len(p_values)
    adjusted, running = [1.0] * count, 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


# ---- samples in clusters


@dataclass(frozen=True)
class ClusteredChange:
    """A mean over samples that come in clusters, by the studentized bootstrap of whole clusters.

    The mean is that over samples: sum of `sums` / sum of `sizes`. Samples of one cluster may depend on each other in
    any way, since clusters are drawn whole; studentizing makes up for few clusters and for skew (Hall, The Bootstrap
    and Edgeworth Expansion, 1992, 3.5). Trailing dimensions, where there are any, are as many data sets.

    Attributes:
        value, stderr: estimate and its standard error, linearized over clusters, [...].
        clusters: how many there are.
        pivots: (resampled - estimate) / resampled standard error, sorted, [resamples, ...].
    """

    value: np.ndarray
    stderr: np.ndarray
    clusters: int
    pivots: np.ndarray

    @classmethod
    def of(cls, sums: np.ndarray, sizes: np.ndarray, grain: float = 0.0, resamples: int = RESAMPLES) -> ClusteredChange:
        """Estimate from clusters.

        Args:
            sums: of each cluster's samples, [clusters, ...].
            sizes: samples of each cluster, [clusters, ...].
            grain: what one sample more or less would change in a sum; no standard error is finer. Counts need it:
                where few samples differ, a resample may miss them all.
        """
        clusters = len(sums)
        moments = np.stack([sums, sizes, sums * sums, sums * sizes, sizes * sizes])
        value, stderr = _ratio(moments.sum(axis=1), clusters, grain)
        pivots = np.concatenate(
            [_pivots(counts, moments, value, grain) for counts in _resampled_counts(clusters, resamples)]
        )
        pivots.sort(axis=0)
        return cls(value, stderr, clusters, pivots)

    @property
    def freedom(self) -> float:
        return self.clusters - 1

    def bounds(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        rank = max(1, int(alpha * (len(self.pivots) + 1) + 1e-9))
        with np.errstate(over="ignore"):
            lower = self.value - self.stderr * _finite(self.pivots[-rank])
            upper = self.value - self.stderr * _finite(self.pivots[rank - 1])
        return lower, upper

    def p_beyond(self, limit: float) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            pivot = (self.value - limit) / self.stderr
        larger = (self.pivots >= np.where(np.isnan(pivot), -np.inf, pivot)).sum(axis=0)
        return (1 + larger) / (len(self.pivots) + 1)


def _resampled_counts(clusters: int, resamples: int) -> list[np.ndarray]:
    """How often each cluster is drawn, float64 [resamples, clusters] in pieces; the same for as many clusters."""
    generator = np.random.default_rng(SEED)
    piece = max(1, ELEMENTS_AT_ONCE // clusters)
    even = np.full(clusters, 1 / clusters)
    return [
        generator.multinomial(clusters, even, size=min(piece, resamples - start)).astype(np.float64)
        for start in range(0, resamples, piece)
    ]


def _pivots(counts: np.ndarray, moments: np.ndarray, value: np.ndarray, grain: float) -> np.ndarray:
    drawn = np.stack([np.tensordot(counts, moment, axes=1) for moment in moments])
    resampled, error = _ratio(drawn, counts.shape[1], grain)
    with np.errstate(divide="ignore", invalid="ignore"):
        pivots = (resampled - value) / error
    return np.where(np.isnan(pivots), 0.0, pivots)  # no difference, and no error in it


def _ratio(moments: np.ndarray, clusters: int, grain: float) -> tuple[np.ndarray, np.ndarray]:
    """Ratio of two sums and its linearized standard error, from sums of d, w, d², dw and w² over clusters."""
    sums, sizes, squares, products, sizes_squared = moments
    value = sums / sizes
    residuals = np.maximum(squares - 2 * value * products + value**2 * sizes_squared, 0.0)
    return value, np.sqrt(clusters / (clusters - 1) * residuals + grain**2) / sizes


def _finite(pivots: np.ndarray) -> np.ndarray:
    """Infinite pivots as numbers, so that no error times infinity is no error and not nothing."""
    return np.nan_to_num(pivots, posinf=np.finfo(np.float64).max, neginf=np.finfo(np.float64).min)


# ---- samples that are right or wrong, independent of each other


@dataclass(frozen=True)
class PairedProportions:
    """How much smaller the share of right answers became, in independent samples that both were asked.

    Bounds are Tango's score interval (Statistics in Medicine 17, 1998, 891-908). A drop is certain only if McNemar's
    exact test finds one too.

    Attributes:
        samples: how many both were asked.
        lost: right before, wrong now.
        gained: wrong before, right now.
    """

    samples: int
    lost: int
    gained: int

    @property
    def value(self) -> float:
        return (self.lost - self.gained) / self.samples

    @property
    def stderr(self) -> float:
        """From the discordant pairs, of which there is taken to be one at least."""
        squares = max(self.lost + self.gained - self.samples * self.value**2, 1.0)
        return float(np.sqrt(squares)) / self.samples

    @property
    def freedom(self) -> float:
        return np.inf

    def bounds(self, alpha: float) -> tuple[float, float]:
        z = float(stats.norm.ppf(1 - alpha))
        edge = 1 - 1e-12
        lower = optimize.brentq(lambda drop: self._score(drop) - z, -edge, self.value) if self.value > -1 else -1.0
        upper = optimize.brentq(lambda drop: self._score(drop) + z, self.value, edge) if self.value < 1 else 1.0
        return float(lower), float(upper)

    def p_beyond(self, limit: float) -> float:
        return max(float(stats.norm.sf(self._score(limit))), self.mcnemar)

    @cached_property
    def mcnemar(self) -> float:
        """p-value of McNemar's exact test, one-sided: as many lost or more, if gaining were as likely."""
        return float(stats.binom.sf(self.lost - 1, self.lost + self.gained, 0.5))

    def _score(self, drop: float) -> float:
        """Tango's statistic: distance from a true drop, in standard errors under it."""
        n, lost, gained = self.samples, self.lost, self.gained
        b = -lost - gained + (2 * n - lost + gained) * drop
        c = -gained * drop * (1 - drop)
        gaining = (np.sqrt(b * b - 8 * n * c) - b) / (4 * n)
        variance = n * (2 * gaining + drop * (1 - drop))
        distance = lost - gained - n * drop
        if variance <= 0:
            return 0.0 if distance == 0 else float(np.copysign(np.inf, distance))
        return float(distance / np.sqrt(variance))


# ---- times


@dataclass(frozen=True)
class MeanChange:
    """A mean that is t-distributed around the truth: of few repeats, whose logarithms are taken to be normal."""

    value: float
    stderr: float
    freedom: float

    @classmethod
    def of_times(cls, before: np.ndarray, after: np.ndarray, paired: bool) -> MeanChange:
        """Mean log ratio of times, [repeats] each: over pairs that were taken in turns, else by Welch's test."""
        before, after = np.log(before), np.log(after)
        if paired:
            ratios = after - before
            return cls(float(ratios.mean()), float(ratios.std(ddof=1) / np.sqrt(len(ratios))), len(ratios) - 1)
        parts = [logs.var(ddof=1) / len(logs) for logs in (before, after)]
        total = sum(parts)
        spread = sum(part**2 / (len(logs) - 1) for part, logs in zip(parts, (before, after), strict=True))
        freedom = total**2 / spread if spread else np.inf
        return cls(float(after.mean() - before.mean()), float(np.sqrt(total)), float(freedom))

    def bounds(self, alpha: float) -> tuple[float, float]:
        reach = float(stats.t.ppf(1 - alpha, self.freedom)) * self.stderr
        return self.value - reach, self.value + reach

    def p_beyond(self, limit: float) -> float:
        if self.stderr == 0:
            return float(self.value <= limit)
        return float(stats.t.sf((self.value - limit) / self.stderr, self.freedom))
