"""Where the second of two stops paying, of times that are made up."""

import numpy as np
import pytest
from scipy import stats

from compressor.bench.crossover import Ratio, crossover, sentence
from compressor.measure.latency import Latency
from compressor.measure.statistics import Estimate


def latency(times, batch=1):
    one = Estimate(1.0, None)
    return Latency(batch, 8, 4, {}, {}, one, {"request_ms": list(times)})


def ratios(values, spread=0.02):
    """At batch sizes 1, 2, 4 ..., these ratios with repeats that differ by the spread."""
    noise = 1 + spread * np.array([-1.0, 0.5, 1.0, -0.5])
    found = [Ratio.of(latency([100.0] * 4, 2**at), latency(100 * value * noise)) for at, value in enumerate(values)]
    return {one.batch: one for one in found}


def test_a_ratio_is_paired_and_has_the_interval_of_the_t_test():
    first, second = np.array([100.0, 150.0, 90.0, 120.0]), np.array([52.0, 74.0, 46.0, 61.0])
    found = Ratio.of(latency(first), latency(second))
    expected = np.exp(stats.ttest_rel(np.log(second), np.log(first)).confidence_interval(0.95))
    assert (found.lower, found.upper) == pytest.approx(tuple(expected))
    assert found.in_turns
    assert found.pays
    assert not Ratio.of(latency(first), latency(second[:3])).in_turns
    assert Ratio.of(latency(first), latency(second[:1])) is None


def test_the_end_is_the_first_batch_at_which_it_is_not_surely_faster():
    known = ratios([0.5, 0.7, 0.9, 1.2])
    found = crossover(known)
    assert (found.pays_to, found.ends_at) == (4, 8)
    # log(1 / 0.9) / log(1.2 / 0.9) of the way from 4 to 8, in logarithms
    assert found.estimate == pytest.approx(4 * 2 ** (np.log(1 / 0.9) / np.log(1.2 / 0.9)), rel=1e-2)
    said = sentence(found, known, "fp16", "int4")
    assert "int4 pays up to batch 4 (0.90 ×" in said
    assert "not surely at 8 (1.20 ×" in said
    assert "at about 5.2: × is the time of fp16." in said


def test_what_is_within_its_error_does_not_pay_and_has_no_crossing():
    found = crossover(ratios([0.5, 0.97, 0.8], spread=0.1))
    assert (found.pays_to, found.ends_at, found.estimate) == (1, 2, None)


def test_always_and_never():
    always, never = ratios([0.5, 0.6]), ratios([1.1, 0.5])
    assert crossover(always).ends_at is None
    assert "pays at every batch size measured, up to 2" in sentence(crossover(always), always, "a", "b")
    assert crossover(never).pays_to is None
    assert "does not pay at batch 1" in sentence(crossover(never), never, "a", "b")


def test_two_repeats_have_no_interval_and_no_verdict():
    found = Ratio.of(latency([100.0, 100.0]), latency([20.0, 180.0]))
    assert found.value == pytest.approx(0.6)
    assert (found.lower, found.upper, found.pays) == (None, None, False)
    assert crossover({1: found}) is None
    said = sentence(crossover({1: found}), {1: found}, "fp16", "int4")
    assert said.startswith("int4 takes 0.60 × at batch 1 the time of fp16. These are too few repeats")
    assert Ratio.of(latency([100.0] * 3), latency([20.0, 180.0, 60.0])).upper > 1
