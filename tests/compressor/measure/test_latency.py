import itertools

import numpy as np
import pytest

from compressor.errors import RunError
from compressor.measure.latency import Workload, measure_latency
from compressor.measure.statistics import interval


class Counter:
    """A session that records how it is called."""

    runtime, longest = "counter", None

    def __init__(self, log, name):
        self.log, self.name = log, name

    def prefill(self, tokens, limit):
        self.log.append((self.name, "prefill", tokens.shape))
        return 5

    def decode(self, token):
        assert token == 5
        self.log.append((self.name, "decode", None))
        return 5


def test_sessions_take_turns_and_the_first_round_is_not_counted():
    log = []
    sessions = {name: Counter(log, name) for name in ("a", "b")}
    result = measure_latency(sessions, Workload(3, 16, 4, 2), np.arange(100), lambda *_: None).found
    prefills = [name for name, what, _ in log if what == "prefill"]
    assert prefills == ["a", "b"] * 3
    assert all(shape == (3, 16) for _, what, shape in log if what == "prefill")
    assert sum(what == "decode" for _, what, _ in log) == 3 * 2 * 3
    assert result["a"].batch == 3
    assert result["a"].turns == result["b"].turns == ["a", "b"]
    assert len(result["a"].repeats["itl_ms"]) == 2
    assert result["a"].ttft_ms["p50"] <= result["a"].ttft_ms["p95"]


@pytest.mark.parametrize(
    ("seconds", "least", "repeats"), [(0.5, 3, 3), (0.5, None, 6), ((0.5, 0.9), 3, 6), ((0.5, 0.51), 2, 3)]
)
def test_turns_end_when_the_intervals_are_narrow(monkeypatch, seconds, least, repeats):
    """0.5 and 0.51 s: with the t of one degree of freedom they are known to 13% only, and with a third one to 3%."""
    steps = itertools.cycle(np.repeat(seconds, 2))  # a repeat takes two: to the first token, and to the second
    clock = itertools.accumulate(itertools.chain.from_iterable((0.0, step) for step in steps))
    monkeypatch.setattr("compressor.measure.latency.time.perf_counter", lambda: float(next(clock)))
    done = []
    workload = Workload(1, 8, 2, 6, warmup=0, least=least)
    found = measure_latency({"a": Counter([], "a")}, workload, np.arange(8), lambda *one: done.append(one)).found["a"]
    assert len(found.repeats["itl_ms"]) == repeats
    assert done[-1] == (6, 6)


def test_tokens_per_second_count_the_whole_batch(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr("compressor.measure.latency.time.perf_counter", lambda: float(next(clock)))
    log = []
    result = measure_latency({"a": Counter(log, "a")}, Workload(4, 8, 3, 2), np.arange(8), lambda *_: None).found["a"]
    assert result.itl_ms == {"p50": 500.0, "p95": 500.0, "p99": 500.0}
    assert result.ttft_ms["p50"] == 500.0
    assert result.tokens_per_s.value == pytest.approx(8.0)
    assert result.tokens_per_s.stderr == pytest.approx(0.0)
    assert result.repeats == {"ttft_ms": [500.0] * 2, "itl_ms": [500.0] * 2, "request_ms": [1500.0] * 2}
    assert result.requests_per_s.value == pytest.approx(4 / 1.5)


def test_a_session_that_dies_keeps_what_it_did_and_the_others_go_on():
    class Dying(Counter):
        def decode(self, token):
            if len([entry for entry in self.log if entry[0] == "dying"]) > 3 * 4:  # warm-up and two repeats
                raise RunError("The server ended with code 9.")
            return super().decode(token)

    log = []
    sessions = {"dying": Dying(log, "dying"), "a": Counter(log, "a")}
    timings = measure_latency(sessions, Workload(1, 4, 4, 5), np.arange(8), lambda *_: None)
    said = "it broke after 2 of 5 repeats (batch 1, 4 + 4 tokens): The server ended with code 9"
    assert timings.broken == {"dying": said}
    assert timings.found["dying"].broke == said
    assert len(timings.found["dying"].repeats["ttft_ms"]) == 2
    assert len(timings.found["a"].repeats["ttft_ms"]) == 5


def test_a_session_that_dies_at_once_has_no_latency():
    class Dead(Counter):
        def prefill(self, tokens, limit):
            raise MemoryError

    timings = measure_latency({"dead": Dead([], "dead")}, Workload(1, 4, 4, 5), np.arange(8), lambda *_: None)
    assert timings.found == {}
    assert "after 0 of 5 repeats" in timings.broken["dead"]


def test_the_interval_is_that_of_scipys_t_test_on_logarithms():
    from scipy import stats

    taken = np.array([10.0, 11.0, 9.5, 12.0])
    expected = np.exp(stats.ttest_1samp(np.log(taken), 0).confidence_interval(0.95))
    assert interval(taken) == pytest.approx(list(expected))
    assert interval(taken[:1]) is None
    assert interval(taken[:2]) is None
    assert interval(taken[:3]) is not None
