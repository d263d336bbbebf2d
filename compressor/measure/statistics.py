"""Estimates with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

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
    """Median and 95th percentile."""
    return {"p50": float(np.percentile(observations, 50)), "p95": float(np.percentile(observations, 95))}
