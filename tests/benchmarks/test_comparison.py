from __future__ import annotations

from typing import Any

import comparison
import numpy as np
import pytest
from peer import Peer
from rows import Cost, Judgement, Result, Row, Turns

KIND = "int4"
NOISE = np.random.default_rng(0).normal(scale=0.01, size=24)


def row(name: str, tool: str) -> Row:
    return Row(name, KIND, tool, Peer("", "", ()), {})


def result(name: str, kl: Any, seconds: float, machine: str = "one", peak: int = 100) -> Result:
    windows = np.stack([np.full(24, 3.0), 3.0 + kl + NOISE, kl + NOISE, np.full(24, 0.8)], axis=1)
    cost = Cost(seconds, 2 * seconds, peak, 1.0, 10)
    return Result(name, {}, "", "", "run", machine, 0.0, cost, Judgement("key", windows.tolist()))


ROWS = (
    row("gptq", "llmc"),
    row("tune", "llmc"),
    row("llm-compressor gptq", "llm-compressor"),
    row("llm-compressor gptq static+mse", "llm-compressor"),
    row("llm-compressor awq", "llm-compressor"),
    row("auto-round", "auto-round"),
)


def compared(turns: tuple[Turns, ...] = (), **changed: Result) -> comparison.Comparison:
    results = {
        "gptq": result("gptq", 0.15, 30),
        "tune": result("tune", 0.10, 90),
        "llm-compressor gptq": result("llm-compressor gptq", 0.3, 100),
        "llm-compressor gptq static+mse": result("llm-compressor gptq static+mse", 0.25, 100),
        "llm-compressor awq": result("llm-compressor awq", 0.2, 100),
        "auto-round": result("auto-round", 0.11, 100),
    }
    return comparison.Comparison(
        ROWS, results | {name.replace("_", " "): one for name, one in changed.items()}, turns, "key"
    )


def verdicts(found: comparison.Comparison) -> list[bool | None]:
    return [bar.holds for bar in comparison.accuracy_bars(found, KIND)]


def test_all_bars_clear() -> None:
    bars = list(comparison.accuracy_bars(compared(), KIND))
    assert [bar.holds for bar in bars] == [True, True, True]
    assert "tune" in bars[0].outcome  # our best
    assert "llm-compressor awq" in bars[0].outcome  # their best
    assert bars[2].outcome.startswith("gptq: wall 0.30 ×, CPU 0.30 ×")  # good enough, and the cheapest


def test_a_quick_row_that_is_not_good_enough_does_not_clear_the_bar_of_time() -> None:
    assert verdicts(compared(gptq=result("gptq", 0.17, 30))) == [True, True, False]


def test_worse_than_the_peers_fails() -> None:
    tune, gptq = result("tune", 0.19, 30), result("gptq", 0.2, 30)
    assert verdicts(compared(tune=tune, gptq=gptq)) == [False, False, False]


@pytest.mark.parametrize("missing", comparison.RIVALS)
def test_the_first_bar_needs_every_rival(missing: str) -> None:
    found = compared()
    results = {name: one for name, one in found.results.items() if name != missing}
    assert verdicts(comparison.Comparison(ROWS, results, (), "key")) == [None, True, None]


def test_what_was_judged_on_other_tokens_neither_holds_nor_fails() -> None:
    assert verdicts(comparison.Comparison(ROWS, compared().results, (), "other tokens")) == [None, None, None]


def test_times_of_two_machines_are_not_compared() -> None:
    assert verdicts(compared(gptq=result("gptq", 0.15, 1, machine="two")))[2] is None


def test_turns_go_before_single_runs() -> None:
    yardstick = comparison.YARDSTICK
    costs = {"gptq": [Cost(s, s, 0, 0, 0) for s in (50, 10, 60)], yardstick: [Cost(100, 100, 0, 0, 0)] * 3}
    found = compared(turns=(Turns("run", "one", costs),))
    assert found.cost_ratios("gptq", yardstick) == (comparison.Ratio(0.5, 0.1, 0.6),) * 2
    assert str(comparison.Ratio(0.5, 0.1, 0.6)) == "0.50 (0.10 to 0.60)"
    assert verdicts(found)[2] is False


def test_pairing_takes_out_what_windows_have_in_common() -> None:
    found = compared()
    difference = found.paired("tune", "gptq")
    assert difference.value == pytest.approx(-0.05)
    assert difference.stderr == pytest.approx(0, abs=1e-9)


def test_memory_and_depth() -> None:
    shallow, deep = result("gptq", 0.1, 10, peak=100), result("gptq", 0.1, 41, peak=112)
    bars = list(comparison.depth_bars({"gptq": shallow}, {"gptq": deep}))
    assert [bar.holds for bar in bars] == [False, True]
    theirs = result("llm-compressor gptq", 0.1, 10, peak=400)
    assert comparison.shape_bar({"gptq": deep, "llm-compressor gptq": theirs}).holds
    assert comparison.shape_bar({"gptq": deep}).holds is None
