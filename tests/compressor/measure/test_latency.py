import numpy as np
import pytest

from compressor.measure.latency import Workload, measure_latency


class Counter:
    """A session that records how it is called."""

    runtime = "counter"

    def __init__(self, log, name):
        self.log, self.name = log, name

    def prefill(self, tokens):
        self.log.append((self.name, "prefill", tokens.shape))
        return 5

    def decode(self, token):
        assert token == 5
        self.log.append((self.name, "decode", None))
        return 5


def test_sessions_take_turns_and_the_first_round_is_not_counted():
    log = []
    sessions = {name: Counter(log, name) for name in ("a", "b")}
    result = measure_latency(sessions, Workload(3, 16, 4, 2), np.arange(100), lambda *_: None)
    prefills = [name for name, what, _ in log if what == "prefill"]
    assert prefills == ["a", "b"] * 3
    assert all(shape == (3, 16) for _, what, shape in log if what == "prefill")
    assert sum(what == "decode" for _, what, _ in log) == 3 * 2 * 3
    assert result["a"].batch == 3
    assert result["a"].turns == result["b"].turns == ["a", "b"]
    assert len(result["a"].repeats["itl_ms"]) == 2
    assert result["a"].ttft_ms["p50"] <= result["a"].ttft_ms["p95"]


def test_tokens_per_second_count_the_whole_batch(monkeypatch):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr("compressor.measure.latency.time.perf_counter", lambda: float(next(clock)))
    log = []
    result = measure_latency({"a": Counter(log, "a")}, Workload(4, 8, 3, 2), np.arange(8), lambda *_: None)["a"]
    assert result.itl_ms == {"p50": 500.0, "p95": 500.0}
    assert result.ttft_ms["p50"] == 500.0
    assert result.tokens_per_s.value == pytest.approx(8.0)
    assert result.tokens_per_s.stderr == pytest.approx(0.0)
    assert result.repeats == {"ttft_ms": [500.0, 500.0], "itl_ms": [500.0, 500.0]}
