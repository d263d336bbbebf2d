"""Time to first token, time per token, tokens per second.

Sessions take turns, so that a machine whose speed drifts is fair to all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from compressor.measure.statistics import Estimate, mean, percentiles
from compressor.target import Session


@dataclass(frozen=True)
class Workload:
    """What is timed: `repeats` generations of `output` tokens after a prompt, for one batch size."""

    batch: int
    prompt: int
    output: int
    repeats: int


@dataclass(frozen=True)
class Latency:
    """Latency of one session under one workload; times in milliseconds.

    Attributes:
        ttft_ms: time to first token (prompt processing), p50 and p95 over the repeats.
        itl_ms: time per further token, p50 and p95 over all of them.
        tokens_per_s: generated tokens over the batch per second of decoding, with its standard error over repeats.
        repeats: of each repeat, in the order they ran: `ttft_ms`, and `itl_ms` as the mean over its further tokens.
        turns: names of the rows that took turns, this one among them: repeats of two such rows are pairs.
    """

    batch: int
    prompt: int
    output: int
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]
    tokens_per_s: Estimate
    repeats: dict[str, list[float]] = field(default_factory=dict)
    turns: list[str] = field(default_factory=list)


@dataclass
class _Times:
    first: list[float] = field(default_factory=list)
    next: list[list[float]] = field(default_factory=list)


def measure_latency(
    sessions: Mapping[str, Session], workload: Workload, tokens: np.ndarray, progress: Callable[[int, int], None]
) -> dict[str, Latency]:
    """Time every session, one generation each in turn.

    Args:
        tokens: real text to prompt with, int64 [at least workload.prompt].
    """
    prompt = np.tile(tokens[: workload.prompt], (workload.batch, 1))
    times = {name: _Times() for name in sessions}
    for repeat in range(-1, workload.repeats):  # repeat -1 warms up and is not counted
        for name, session in sessions.items():
            first, following = _generate(session, prompt, workload.output)
            if repeat >= 0:
                times[name].first.append(first)
                times[name].next.append(following)
        progress(repeat + 2, workload.repeats + 1)
    return {name: _summary(workload, taken, list(sessions)) for name, taken in times.items()}


def _generate(session: Session, prompt: np.ndarray, output: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and to each of the further ones."""
    start = time.perf_counter()
    token = session.prefill(prompt)
    first = time.perf_counter() - start
    following = []
    for _ in range(output - 1):
        start = time.perf_counter()
        token = session.decode(token)
        following.append(time.perf_counter() - start)
    return first, following


def _summary(workload: Workload, times: _Times, turns: list[str]) -> Latency:
    speeds = np.array([workload.batch * len(steps) / sum(steps) for steps in times.next])
    return Latency(
        batch=workload.batch,
        prompt=workload.prompt,
        output=workload.output,
        ttft_ms=percentiles([1e3 * seconds for seconds in times.first]),
        itl_ms=percentiles([1e3 * seconds for steps in times.next for seconds in steps]),
        tokens_per_s=mean(speeds),
        repeats={
            "ttft_ms": [1e3 * seconds for seconds in times.first],
            "itl_ms": [1e3 * sum(steps) / len(steps) for steps in times.next],
        },
        turns=turns,
    )
