"""Each limit with the evidence for and against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor.gate.limits import Limits
from compressor.gate.statistics import Change, ClusteredChange, MeanChange, PairedProportions
from compressor.gate.subject import LatencyPair, Subject, TokenPairs
from compressor.gate.tasks import ScorePairs, TaskPairs
from compressor.measure.statistics import Estimate, exponential

TIMES = {"ttft_ms": "time to first token", "itl_ms": "time per token"}


@dataclass(frozen=True)
class Evidence:
    """One metric: what it was, what it is, and the change as it is tested.

    Attributes:
        metric: its name in JSON.
        title: its name for people.
        unit: of the limit and of the change: `share` (relative), `points` (of a share) or `nats`.
        before, after: the metric itself; there is nothing before a divergence.
        change: tested on the scale of the test: that of logarithms for a relative change.
        limit: as it was asked for.
        samples: how many; `clusters` of which are independent, counted in `cluster_unit`.
        broken: why the row fails without a test.
        blind: why it cannot pass, whatever a test says.
    """

    metric: str
    title: str
    unit: str
    before: float | None
    after: float
    change: Change | None
    limit: float
    samples: int
    clusters: int
    cluster_unit: str
    broken: str | None = None
    blind: str | None = None

    @property
    def grows(self) -> bool:
        """Whether more of the text adds to it."""
        return self.cluster_unit in ("document", "window")

    def shown(self, tested: float) -> float:
        """A value on the scale of the test as the change that people mean."""
        return float(np.expm1(min(tested, 700.0))) if self.unit == "share" and np.isfinite(tested) else float(tested)

    @property
    def threshold(self) -> float:
        """The limit on the scale of the test."""
        return float(np.log1p(self.limit)) if self.unit == "share" else self.limit


def gather(subject: Subject, limits: Limits, tasks: Sequence[TaskPairs] = ()) -> list[Evidence]:
    """The evidence for every limit that was asked. Accuracy is that of `tasks`, else of the row's own tasks, or
    of the next token without any.

    Raises:
        InputError: something that a limit needs was not measured, or not on the same data.
    """
    found: list[Evidence] = []
    drop = limits.max_accuracy_drop
    if drop is not None and (tasks or subject.row.tasks):
        pairs: Sequence[TaskPairs | ScorePairs] = tasks or [pair.as_counts() or pair for pair in subject.scores()]
        found += [_of_task(one, drop) if isinstance(one, TaskPairs) else _of_scores(one, drop) for one in pairs]
        limits = limits.model_copy(update={"max_accuracy_drop": None})
    if limits.needs_text:
        found += of_tokens(subject.tokens(), limits)
    if limits.max_latency_increase is not None:
        for pair in subject.latencies():
            found += _of_times(pair, limits.max_latency_increase)
    return found


def of_tokens(pairs: TokenPairs, limits: Limits) -> Iterator[Evidence]:
    """The evidence for the limits on what evaluation text tells."""
    if limits.max_perplexity_increase is not None:
        yield _perplexity(pairs, limits.max_perplexity_increase)
    if limits.max_accuracy_drop is not None:
        yield _next_token_accuracy(pairs, limits.max_accuracy_drop)
    if limits.max_kl is not None:
        yield _divergence(pairs, limits.max_kl)


def _perplexity(pairs: TokenPairs, limit: float) -> Evidence:
    change, broken = _clustered(pairs, pairs.after_loss.astype(float) - pairs.before_loss)
    return Evidence(
        metric="perplexity",
        title="perplexity",
        unit="share",
        before=_exponential(pairs.before_loss),
        after=_exponential(pairs.after_loss),
        change=change,
        limit=limit,
        broken=broken,
        **_counts(pairs),
    )


def _next_token_accuracy(pairs: TokenPairs, limit: float) -> Evidence:
    """Share of tokens of the text that are the model's first choice. Not the accuracy of a task."""
    change, broken = _clustered(pairs, pairs.before_correct.astype(float) - pairs.after_correct, grain=1.0)
    return Evidence(
        metric="next_token_accuracy",
        title="next-token accuracy",
        unit="points",
        before=float(pairs.before_correct.mean()),
        after=float(pairs.after_correct.mean()),
        change=change,
        limit=limit,
        broken=broken or _not_finite(pairs.after_loss),  # the first choice among NaN is no choice
        **_counts(pairs),
    )


def _divergence(pairs: TokenPairs, limit: float) -> Evidence:
    change, broken = _clustered(pairs, pairs.kl.astype(float))
    return Evidence(
        metric="kl",
        title="KL from the original",
        unit="nats",
        before=None,
        after=float(pairs.kl.mean(dtype=float)),
        change=change,
        limit=limit,
        broken=broken,
        **_counts(pairs),
    )


def _exponential(losses: np.ndarray) -> float:
    return exponential(Estimate(float(losses.mean(dtype=float)), None)).value


def _counts(pairs: TokenPairs) -> dict[str, Any]:
    clusters = len(np.unique(pairs.cluster))
    return {"samples": len(pairs.cluster), "clusters": clusters, "cluster_unit": pairs.unit}


def _clustered(pairs: TokenPairs, worse: np.ndarray, grain: float = 0.0) -> tuple[ClusteredChange | None, str | None]:
    broken = _not_finite(worse)
    _, cluster = np.unique(pairs.cluster, return_inverse=True)
    sizes = np.bincount(cluster).astype(float)
    if broken or len(sizes) < 2:
        return None, broken
    return ClusteredChange.of(np.bincount(cluster, weights=worse), sizes, grain), None


def _not_finite(values: np.ndarray) -> str | None:
    bad = int((~np.isfinite(values)).sum())
    return f"{bad} of {len(values)} tokens have no finite loss" if bad else None


def _of_task(pairs: TaskPairs, limit: float) -> Evidence:
    return Evidence(
        metric=f"task:{pairs.task}",
        title=f"{pairs.task} ({pairs.metric})",
        unit="points",
        before=pairs.before / pairs.samples,
        after=pairs.after / pairs.samples,
        change=PairedProportions(pairs.samples, pairs.lost, pairs.gained),
        limit=limit,
        samples=pairs.samples,
        clusters=pairs.samples,
        cluster_unit="sample",
        blind=_blind(pairs.before == 0, pairs.lost == pairs.gained == 0 and pairs.before == pairs.samples),
    )


def _of_scores(pairs: ScorePairs, limit: float) -> Evidence:
    """Of scores that are no mere right or wrong, such as ROUGE: samples are drawn as documents are."""
    count = len(pairs.before)
    worse = pairs.before - pairs.after
    return Evidence(
        metric=f"task:{pairs.task}:{pairs.metric}",
        title=f"{pairs.task} ({pairs.metric})",
        unit="points",
        before=float(pairs.before.mean()),
        after=float(pairs.after.mean()),
        change=ClusteredChange.of(worse, np.ones(count), float(np.abs(worse).max())) if count > 1 else None,
        limit=limit,
        samples=count,
        clusters=count,
        cluster_unit="sample",
        blind=_blind(not pairs.before.any(), pairs.before.std() == pairs.after.std() == 0),
    )


def _blind(nothing: bool, alike: bool) -> str | None:
    """Why a task cannot tell that nothing was lost."""
    if nothing:
        return "the original scores 0 on every sample, so that there is nothing to lose"
    return "all samples have the same score, before and now, and tell nothing of how sure it is" if alike else None


def _of_times(pair: LatencyPair, limit: float) -> Iterator[Evidence]:
    for key, title in TIMES.items():
        before, after = (np.array(one.repeats[key]) for one in (pair.before, pair.after))
        paired = pair.in_turns and len(before) == len(after)
        yield Evidence(
            metric=key.removesuffix("_ms"),
            title=f"{title} ({pair.workload})",
            unit="share",
            before=float(np.exp(np.log(before).mean())),
            after=float(np.exp(np.log(after).mean())),
            change=MeanChange.of_times(before, after, paired),
            limit=limit,
            samples=len(after),
            clusters=len(after),
            cluster_unit="repeat, in turns" if paired else "repeat, not in turns",
        )
