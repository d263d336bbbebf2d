import math

import numpy as np
import pytest

from compressor.measure.statistics import Estimate, exponential, mean, percentiles


def test_the_standard_error_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        found = mean(generator.normal(3.0, 2.0, size=50))
        covered += abs(found.value - 3.0) <= 1.96 * found.stderr
    assert 0.925 <= covered / 1000 <= 0.965


def test_exponential_carries_the_error():
    assert exponential(Estimate(1.0, 0.1)) == Estimate(math.e, pytest.approx(0.1 * math.e))
    assert exponential(Estimate(0.0, None), shift=-1) == Estimate(0.0, None)


def test_a_loss_beyond_all_bounds_is_an_infinite_perplexity():
    assert exponential(Estimate(1000.0, 1.0)).value == math.inf


def test_percentiles():
    assert percentiles(list(range(101))) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
