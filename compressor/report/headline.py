"""What a run got, in one sentence: size, speed, quality, and what became slower."""

from __future__ import annotations

import math

from compressor.ledger import Ledger
from compressor.measure.latency import Latency
from compressor.report.numbers import estimate, number
from compressor.report.summary import judged_row, speed

SAME = 0.05  # of a time: less is not told as a change of the time to first token
CONFIDENCE = 1.96  # standard errors that a difference from nothing needs


def headline(ledger: Ledger) -> str:
    """For example: "2.4 × smaller, 1.13 × the speed, perplexity within noise of the original's (+0.1 ± 0.1%)"."""
    if ledger.artifact is None:
        return "No artifact was made: the run did not get as far."
    times = speed(ledger)
    got = ", ".join(filter(None, [_size(ledger), _speed(times), _quality(ledger)]))
    said = [got, _first_token(times), _not_run(ledger)]
    sentence = "; ".join(filter(None, said))
    return f"{sentence[0].upper()}{sentence[1:]}."


def _size(ledger: Ledger) -> str:
    sizes = [row.size_bytes for row in ledger.steps if row.size_bytes]
    if len(sizes) < 2:
        return ""
    smaller = sizes[0] / sizes[-1]
    if abs(smaller - 1) < 0.01:
        return "the same size"
    return f"{number(smaller)} × smaller" if smaller > 1 else f"{number(1 / smaller)} × larger"


def _speed(times: tuple[Latency, Latency | None] | None) -> str:
    if times is None or times[1] is None:
        return ""
    return f"{number(times[0].tokens_per_s.value / times[1].tokens_per_s.value)} × the speed"


def _quality(ledger: Ledger) -> str:
    row = judged_row(ledger)
    if row is None or row.quality is None:
        return "quality not measured"
    change = row.quality.perplexity_increase
    shown = estimate(change, percent=True)
    if not math.isfinite(change.value):
        return f"perplexity increase {shown}"
    if change.stderr is None or not abs(change.value) <= CONFIDENCE * change.stderr:
        return f"perplexity {shown.removeprefix('-')} {'lower' if change.value < 0 else 'higher'}"
    sign = "+" if change.value > 0 else ""
    return f"perplexity within noise of the original's ({sign}{shown})"


def _first_token(times: tuple[Latency, Latency | None] | None) -> str:
    if times is None or times[1] is None:
        return ""
    longer = times[0].ttft_ms["p50"] / times[1].ttft_ms["p50"]
    if abs(longer - 1) < SAME:
        return ""
    return f"first token {number(max(longer, 1 / longer))} × {'slower' if longer > 1 else 'faster'}"


def _not_run(ledger: Ledger) -> str:
    why = ledger.steps[-1].not_run if ledger.steps else None
    return f"not run here: {why}" if why else ""
