"""Time to first token, time per token, tokens per second.

Sessions take turns, so that a machine whose speed drifts is fair to all of them. Where the number of repeats is left
open, turns end when the 95% intervals of all sessions are within NARROW of their means, after `least` repeats at the
earliest and `repeats` at the latest. Looking after every repeat makes the intervals cover the truth a little less often
than 95%; a gate on latency takes all repeats.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from compressor.errors import BREAKS, first_line
from compressor.measure.statistics import Estimate, interval, mean, percentiles

if TYPE_CHECKING:
    from compressor.target import Session

NARROW = 0.05  # of the mean: how far a 95% interval may reach when turns end early


@dataclass(frozen=True)
class Workload:
    """What is timed: `repeats` generations of `output` tokens after prompts of one length, after `warmup` ones.

    Attributes:
        least: repeats after which turns may end early; None takes all of them.
    """

    batch: int
    prompt: int
    output: int
    repeats: int
    warmup: int = 1
    least: int | None = None

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.prompt} + {self.output} tokens"


@dataclass(frozen=True)
class Latency:
    """Latency of one session under one workload; times in milliseconds.

    Attributes:
        ttft_ms: time to first token (prompt processing), p50, p95 and p99 over the repeats.
        itl_ms: time per further token (inter-token latency), p50, p95 and p99 over all of them.
        tokens_per_s: generated tokens over the batch per second of decoding, with its standard error over repeats.
        repeats: of each repeat, in the order they ran: `ttft_ms`, `itl_ms` as the mean over its further tokens, and
            `request_ms`, from the prompt to the last token.
        turns: names of the rows that took turns, this one among them: repeats of two such rows are pairs.
        requests_per_s: generations of the whole batch, first token and further ones, with its standard error.
        intervals: 95% intervals of the geometric means over the repeats, by the names that these have.
        broke: why there are fewer repeats than were asked for.
    """

    batch: int
    prompt: int
    output: int
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]
    tokens_per_s: Estimate
    repeats: dict[str, list[float]] = field(default_factory=dict)
    turns: list[str] = field(default_factory=list)
    requests_per_s: Estimate | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)
    broke: str | None = None

    @property
    def per_token_ms(self) -> dict[str, float]:
        """Percentiles over the repeats of a repeat's mean time per further token; of single tokens in old ledgers."""
        taken = self.repeats.get("itl_ms")
        return percentiles(taken) if taken else self.itl_ms


@dataclass(frozen=True)
class Timings:
    """Latency of sessions by name, and why those broke that did; one that broke early has no latency."""

    found: dict[str, Latency]
    broken: dict[str, str]


@dataclass
class _Times:
    first: list[float] = field(default_factory=list)
    next: list[list[float]] = field(default_factory=list)


def measure_latency(
    sessions: Mapping[str, Session], workload: Workload, tokens: np.ndarray, progress: Callable[[int, int], None]
) -> Timings:
    """Time every session, one generation each in turn. One that breaks takes no further turns; what it did stays.

    Args:
        tokens: real text to prompt with, int64 [at least workload.prompt].
    """
    prompt = np.tile(tokens[: workload.prompt], (workload.batch, 1))
    times = {name: _Times() for name in sessions}
    broken: dict[str, str] = {}
    for repeat in range(-workload.warmup, workload.repeats):  # those below 0 warm up and are not counted
        for name in [one for one in sessions if one not in broken]:
            try:
                first, following = generate(sessions[name], prompt, workload.output)
            except BREAKS as error:
                broken[name] = _why(error, workload, repeat)
                continue
            if repeat >= 0:
                times[name].first.append(first)
                times[name].next.append(following)
        progress(repeat + workload.warmup + 1, workload.repeats + workload.warmup)
        if workload.least is not None and repeat + 1 >= workload.least and all(map(_is_narrow, times.values())):
            progress(workload.repeats + workload.warmup, workload.repeats + workload.warmup)
            break
    found = {name: _summary(workload, taken, list(sessions)) for name, taken in times.items() if taken.first}
    return Timings({name: replace(one, broke=broken.get(name)) for name, one in found.items()}, broken)


def _is_narrow(times: _Times) -> bool:
    """Whether the means are known well enough; those of a session that broke will not get any better."""
    series = (np.array(times.first), np.array([sum(steps) / len(steps) for steps in times.next]))
    return all(_reach(observed) <= NARROW for observed in series if len(observed) > 1)


def _reach(observed: np.ndarray) -> float:
    """How far above the geometric mean the 95% interval of observations [n] ends, as a share of the mean."""
    found = interval(observed)
    return math.inf if found is None else math.sqrt(found[1] / found[0]) - 1


def _why(error: BaseException, workload: Workload, repeat: int) -> str:
    return f"it broke after {max(repeat, 0)} of {workload.repeats} repeats ({workload}): {first_line(error)}"


def generate(session: Session, prompt: np.ndarray, output: int) -> tuple[float, list[float]]:
    """Seconds to the first token, and to each of the further ones."""
    start = time.perf_counter()
    token = session.prefill(prompt, output)
    first = time.perf_counter() - start
    following = []
    for _ in range(output - 1):
        start = time.perf_counter()
        token = session.decode(token)
        following.append(time.perf_counter() - start)
    return first, following


def _summary(workload: Workload, times: _Times, turns: list[str]) -> Latency:
    speeds = np.array([workload.batch * len(steps) / sum(steps) for steps in times.next])
    repeats = {
        "ttft_ms": [1e3 * seconds for seconds in times.first],
        "itl_ms": [1e3 * sum(steps) / len(steps) for steps in times.next],
        "request_ms": [1e3 * (first + sum(steps)) for first, steps in zip(times.first, times.next, strict=True)],
    }
    known = {name: interval(np.array(taken)) for name, taken in repeats.items()}
    return Latency(
        batch=workload.batch,
        prompt=workload.prompt,
        output=workload.output,
        ttft_ms=percentiles([1e3 * seconds for seconds in times.first]),
        itl_ms=percentiles([1e3 * seconds for steps in times.next for seconds in steps]),
        tokens_per_s=mean(speeds),
        repeats=repeats,
        turns=turns,
        requests_per_s=mean(1e3 * workload.batch / np.array(repeats["request_ms"])),
        intervals={name: found for name, found in known.items() if found is not None},
    )
