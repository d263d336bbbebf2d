"""The results of shrinking.py as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from comparison import ERRORS_APART, Bar, Comparison
from pydantic import TypeAdapter
from quantization_report import (
    EVALUATION,
    Evaluation,
    bars_part,
    marked,
    not_run_part,
    original_cells,
    remarks,
    setting,
)
from rows import Row, all_turns, finished

from compressor.errors import InputError, LlmcError
from compressor.measure.accuracy import summarize
from compressor.measure.statistics import Estimate, exponential, mean
from compressor.report.markdown import grid
from compressor.report.tables import MISSING, Table, estimate

HEADERS = (
    *("row", "what", "wall s", "CPU s", "peak MiB", "parameters", "zeros"),
    *("perplexity", "KL", "top-1", "against", "perplexity −", "KL −", "run"),
)
READING = """\
Wall and CPU seconds are those of the row's process after its import: loading, pruning and saving; peak is that of its
process tree. Parameters are millions, a tied head counted once; zeros are those in the decoder's linears, counted in
the folder. KL is KL(original ‖ row) in nats a token. Figures after ± are standard errors over windows; in the last two
columns, of the paired differences from the row that is named: of perplexity in per cent of that row's, and of KL."""


def document(
    out: Path, rows: Sequence[Row], problems: Mapping[str, LlmcError], rivals: Mapping[str, str], bars: Sequence[str]
) -> tuple[str, bool]:
    """All that a benchmark's folder holds, and whether a bar fails or a row broke.

    Args:
        problems: why rows could not be run this time, by name.
        rivals: the row that a row is compared with.
        bars: rows that shall not be worse than their rivals.
    """
    about = TypeAdapter(Evaluation).validate_json((out / EVALUATION).read_bytes())
    found = Comparison(rows, finished(out, rows), all_turns(out), about.key)
    runs = {run: chr(ord("a") + at) for at, run in enumerate(sorted({one.run for one in found.results.values()}))}
    original = original_cells(found, HEADERS)
    table = Table("", HEADERS, [original, *(_cells(found, row, rivals.get(row.name), runs) for row in found.present)])
    judged = [_bar(found, name, rivals[name]) for name in bars]
    parts = [
        "# Smaller and sparser models",
        "Printed by `benchmarks/shrinking.py`. Nothing was trained after pruning.",
        *setting(found, about, runs),
        grid(table),
        "\n".join([READING, *remarks(found)]),
        *not_run_part(problems),
        bars_part(judged),
    ]
    broke = any(not isinstance(problem, InputError) for problem in problems.values())
    return "\n\n".join(parts) + "\n", broke or any(bar.holds is False for bar in judged)


def _cells(found: Comparison, row: Row, rival: str | None, runs: Mapping[str, str]) -> tuple[str, ...]:
    result = found.results[row.name]
    cost, judgement = result.cost, result.judgement
    return (
        marked(found, row),
        row.kind,
        f"{cost.wall_s:.1f}",
        f"{cost.cpu_s:.1f}",
        f"{cost.peak_rss_bytes / 2**20:.0f}",
        f"{judgement.parameters / 1e6:.1f}" if judgement and judgement.parameters else MISSING,
        f"{judgement.zeros:.1%}" if judgement and judgement.zeros is not None else MISSING,
        *_quality_cells(found, row.name),
        *_paired_cells(found, row.name, rival),
        runs[result.run],
    )


def _quality_cells(found: Comparison, name: str) -> Iterator[str]:
    windows = found.windows(name)
    if windows is None:
        yield from (MISSING,) * 3
        return
    quality = summarize(windows)
    yield estimate(quality.perplexity, least=2)
    yield estimate(quality.kl)
    yield estimate(quality.top1, percent=True)


def _paired_cells(found: Comparison, name: str, rival: str | None) -> Iterator[str]:
    if rival is None or found.windows(name) is None or found.windows(rival) is None:
        yield from (MISSING,) * 3
        return
    yield rival
    yield estimate(_perplexity(found, name, rival), percent=True)
    yield estimate(found.paired(name, rival))


def _perplexity(found: Comparison, name: str, rival: str) -> Estimate:
    """How much higher a row's perplexity is than its rival's, in shares of that; paired by windows."""
    one, other = found.windows(name), found.windows(rival)
    assert one is not None
    assert other is not None
    return exponential(mean(one[:, 1] - other[:, 1]), shift=-1.0)


def _bar(found: Comparison, name: str, rival: str) -> Bar:
    claim = f"KL and perplexity of {name} not worse than those of {rival} by {ERRORS_APART} paired standard errors"
    if found.windows(name) is None or found.windows(rival) is None:
        return Bar.open(claim)
    divergence, perplexity = found.paired(name, rival), _perplexity(found, name, rival)
    holds = all(one.value <= ERRORS_APART * (one.stderr or 0.0) for one in (divergence, perplexity))
    return Bar(claim, f"KL {estimate(divergence)}, perplexity {estimate(perplexity, percent=True)}", holds)
