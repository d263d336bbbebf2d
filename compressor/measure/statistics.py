"""Estimates with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

FEWEST_REPEATS = 3  # below, an interval of the t-distribution is so wide that it says nothing
LARGEST_EXPONENT = 709.0  # exp of more is no float: the loss of a model that is broken


@dataclass(frozen=True)
class Estimate:
    """A measured value and its standard error, None where a single observation tells nothing about it."""

    value: float
    stderr: float | None


def mean(observations: np.ndarray) -> Estimate:
    """Mean of independent observations [n], with the standard error of the mean."""
    count = len(observations)
    error = float(observations.std(ddof=1) / math.sqrt(count)) if count > 1 else None
    return Estimate(float(observations.mean()), error)


def exponential(estimate: Estimate, shift: float = 0.0) -> Estimate:
    """exp(x) + shift of an estimated x, its error by the delta method."""
    value = math.exp(estimate.value) if estimate.value < LARGEST_EXPONENT else math.inf
    return Estimate(value + shift, None if estimate.stderr is None else value * estimate.stderr)


def percentiles(observations: list[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile."""
    return {f"p{share}": float(np.percentile(observations, share)) for share in (50, 95, 99)}


def interval(observations: np.ndarray) -> list[float] | None:
    """95% interval of the geometric mean of independent positive observations [n], by the t-distribution of their
    logarithms; None of fewer than FEWEST_REPEATS.
    """
    from scipy import stats

    logs = np.log(observations)
    if len(logs) < FEWEST_REPEATS:
        return None
    reach = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return [float(np.exp(logs.mean() - reach)), float(np.exp(logs.mean() + reach))]
