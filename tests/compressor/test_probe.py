from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from compressor.errors import RunError
from compressor.probe import Position, compare, open_session, record
from compressor.target import Artifact, Tolerance

TOLERANCE = Tolerance(0.01, "a reason")
VOCABULARY = 32
SHAPE = SimpleNamespace(vocab_size=VOCABULARY, max_positions=512)


class FakeSession:
    """A model whose logits depend on the last token only; `changed` is done to each row of them."""

    runtime = "fake 1"

    def __init__(self, changed=lambda row: row):
        table = np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32) * 3
        self._table = np.stack([changed(row.copy()) for row in table])

    def logits(self, tokens):
        for start in range(0, len(tokens), 5):  # chunks that do not end where the prompt does
            yield start, self._table[tokens[start : start + 5]]

    def prefill(self, tokens, limit):
        assert tokens.shape == (1, 16)
        return int(self._table[tokens[0, -1]].argmax())

    def decode(self, token):
        return int(self._table[token].argmax())


@pytest.fixture
def probe():
    return record(FakeSession(), SHAPE, TOLERANCE)


def test_what_is_recorded_is_what_the_session_said(probe):
    assert probe.prompt == list(range(1, VOCABULARY, 2))
    table = FakeSession()._table
    last = probe.prompt[-1]
    for token, position in zip(probe.continuation, probe.positions, strict=True):
        assert token == position.tokens[0] == table[last].argmax()
        assert position.logits == pytest.approx(sorted(table[last], reverse=True)[:8], abs=1e-5)
        assert position.normalizer == pytest.approx(float(np.log(np.exp(table[last]).sum())), abs=1e-4)
        last = token


def test_the_same_session_differs_in_nothing(probe):
    outcome = compare(probe, FakeSession())
    assert (outcome.differences, outcome.remarks) == ([], [])
    assert outcome.distance < 1e-5


def test_logits_within_the_tolerance_pass_and_beyond_it_do_not(probe):
    assert compare(probe, FakeSession(lambda row: row + 0.009)).differences == []
    (difference,) = compare(probe, FakeSession(lambda row: row + 0.02)).differences
    assert difference == (
        "the logits of token 1 are 0.02 from the recorded ones, which is more than the tolerance of 0.01 (a reason)"
    )


def test_logits_that_are_not_kept_count_through_the_normalizer(probe):
    def raise_the_least(row):
        row[row.argsort()[:-8]] += 1
        return row

    assert len(compare(probe, FakeSession(raise_the_least)).differences) == 1


def test_nan_is_a_difference(probe):
    assert any("nan" in difference for difference in compare(probe, FakeSession(lambda row: row * np.nan)).differences)


def test_another_token_is_a_difference(probe):
    def swap(row):
        first, second = row.argsort()[-2:][::-1]
        row[[first, second]] = row[[second, first]]
        return row

    assert "of the greedy generation is" in compare(probe, FakeSession(swap)).differences[0]


def test_a_tie_that_falls_the_other_way_is_a_remark():
    def tied(row):
        row[row.argsort()[-2]] = row.max() - 0.001
        return row

    def other_way(row):
        second = row.argsort()[-2]
        row[second] = row.max() + 0.001
        return row

    recorded = record(FakeSession(tied), SHAPE, TOLERANCE)
    outcome = compare(recorded, FakeSession(other_way))
    assert outcome.differences == []
    assert "equally likely" in outcome.remarks[0]


def test_a_token_outside_of_the_largest_is_no_tie_with_a_clear_winner():
    position = Position.of(np.arange(20, dtype=np.float32))
    assert not position.is_tie(19, 3, tolerance=1.0)
    assert position.is_tie(19, 3, tolerance=4.0), "all that is kept of it is that it is at most the eighth"


def test_a_short_context_is_not_exceeded():
    class Short(FakeSession):
        def prefill(self, tokens, limit):
            assert tokens.shape == (1, 5)
            return 1

    probe = record(Short(), SimpleNamespace(vocab_size=VOCABULARY, max_positions=10), TOLERANCE)
    assert len(probe.prompt) == len(probe.continuation) == len(probe.positions) == 5


def test_what_does_not_fit_in_memory_is_not_opened(tmp_path, monkeypatch):
    (tmp_path / "large").write_bytes(bytes(700))
    target = SimpleNamespace(why_not_run=lambda: None, open=lambda artifact: pytest.fail("opened"))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(RunError, match="GiB of memory are free"):
        open_session(target, Artifact(tmp_path, "hf"))


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_one_logit_that_is_no_number_is_noticed(odd):
    def damaged(row):
        row[17] = odd
        return row

    assert not record(FakeSession(damaged), SHAPE, TOLERANCE).is_finite


def test_tokens_that_a_runtime_does_not_tell_are_no_damage(probe):
    def likeliest(row):
        row[row < np.sort(row)[-4]] = -np.inf
        return row

    assert probe.is_finite
    assert record(FakeSession(likeliest), SHAPE, TOLERANCE).is_finite
