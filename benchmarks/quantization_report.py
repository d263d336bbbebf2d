"""The results of quantization.py as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from comparison import PEERS, YARDSTICK, Bar, Comparison, Ratio, accuracy_bars, depth_bars, shape_bar
from pydantic import TypeAdapter
from rows import Cost, Result, Row, Turns, all_turns, finished

from compressor.errors import InputError, LlmcError
from compressor.ledger import TextRecord
from compressor.measure.accuracy import summarize
from compressor.measure.statistics import Estimate, exponential, mean
from compressor.report.markdown import grid
from compressor.report.tables import MISSING, Table, estimate

EVALUATION = "evaluation.json"
HEADERS = (
    *("row", "weights", "wall s", "CPU s", "CPU ×", "peak MiB", "import s", "bits", "MiB"),
    *("perplexity", "KL", "top-1", "KL − best peer's", "run"),
)
READING = """\
Wall and CPU seconds are those of the row's process after its import: loading, quantizing and saving; peak is that of
its process tree. CPU × is next to llm-compressor gptq on the same machine. Bits are those of the decoder's linears,
scales counted as 16-bit numbers; MiB is all tensors as stored. KL is KL(original ‖ row) in nats a token. Figures after
± are standard errors over windows; in the last column, of the paired differences."""


@dataclass(frozen=True)
class Evaluation:
    """What the rows were calibrated with and are judged on."""

    model: str
    key: str
    calibration: TextRecord
    evaluation: TextRecord


def document(out: Path, rows: Sequence[Row], problems: Mapping[str, LlmcError], kind: str) -> tuple[str, bool]:
    """All that a benchmark's folder holds, and whether a bar fails or a row broke.

    Args:
        problems: why rows could not be run this time, by name.
        kind: of the rows that the bars of accuracy and time are about.
    """
    parts, bars = ["# Quantizers at equal bits", "Printed by `benchmarks/quantization.py`."], []
    if (out / EVALUATION).exists():
        about = TypeAdapter(Evaluation).validate_json((out / EVALUATION).read_bytes())
        comparison = Comparison(rows, finished(out, rows), all_turns(out), about.key)
        parts += _comparison_parts(comparison, about)
        bars += accuracy_bars(comparison, kind)
    for folder in sorted(out.glob("shape-*")):
        results = finished(folder, rows)
        parts.append(_memory_part(f"Random weights, {folder.name.removeprefix('shape-')}", results))
        bars.append(shape_bar(results))
    for shallow, deep in _depths(out / "depth"):
        pair = finished(shallow, rows), finished(deep, rows)
        parts += [
            _memory_part(f"Random weights, depth {f.name}", r) for f, r in zip((shallow, deep), pair, strict=True)
        ]
        bars += depth_bars(*pair)
    parts += not_run_part(problems)
    if bars:
        parts.append(bars_part(bars))
    broke = any(not isinstance(problem, InputError) for problem in problems.values())
    return "\n\n".join(parts) + "\n", broke or any(bar.holds is False for bar in bars)


# ---- the comparison


def _comparison_parts(found: Comparison, about: Evaluation) -> Iterator[str]:
    runs = {run: chr(ord("a") + at) for at, run in enumerate(sorted({one.run for one in found.results.values()}))}
    yield from setting(found, about, runs)
    yield grid(
        Table("", HEADERS, [original_cells(found, HEADERS), *(_cells(found, row, runs) for row in found.present)])
    )
    yield "\n".join([READING, *remarks(found)])
    for turns in found.turns:
        yield f"### In turns, {turns.run}, {turns.machine}\n\n{grid(_turns_table(turns))}"


def setting(found: Comparison, about: Evaluation, runs: Mapping[str, str]) -> Iterator[str]:
    """Model, texts, machine and packages, where runs are called by letters."""
    yield f"Model: {about.model}. {_texts(about)}."
    yield "\n".join([*(f"- run {letter}: {_run(found, run)}" for run, letter in runs.items()), *_packages(found)])


def not_run_part(problems: Mapping[str, LlmcError]) -> list[str]:
    """Why rows were not run, by name, if there are any."""
    lines = [f"- {name}: {why} {why.hint or ''}".rstrip() for name, why in problems.items()]
    return ["## Not run\n\n" + "\n".join(lines)] if lines else []


def bars_part(bars: Iterable[Bar]) -> str:
    """What was claimed, and whether it holds."""
    verdicts = {True: "yes", False: "NO", None: "not measured"}
    rows = [(bar.claim, bar.outcome, verdicts[bar.holds]) for bar in bars]
    return "## Bars\n\n" + grid(Table("", ("claim", "measured", "holds"), rows))


def _texts(about: Evaluation) -> str:
    return "; ".join(
        f"{role}: {text.windows} × {text.length} tokens of {text.source}, SHA-256 {text.digest[:16]}…"
        for role, text in (("calibration", about.calibration), ("evaluation", about.evaluation))
    )


def _run(found: Comparison, run: str) -> str:
    results = [result for result in found.results.values() if result.run == run]
    loads = [result.load for result in results]
    return f"{run}, {results[0].machine}, load average before a row {min(loads)} to {max(loads)}"


def _packages(found: Comparison) -> list[str]:
    pairs = {(row.tool, found.results[row.name].packages) for row in found.present}
    return [f"- {tool}: {packages}" for tool, packages in sorted(pairs)]


def original_cells(found: Comparison, headers: Sequence[str]) -> tuple[str, ...]:
    """The original's row of a table."""
    judged = [windows for row in found.present if (windows := found.windows(row.name)) is not None]
    perplexity = estimate(exponential(mean(judged[0][:, 0])), least=2) if judged else MISSING
    return tuple({"row": "original", "perplexity": perplexity}.get(header, MISSING) for header in headers)


def _cells(found: Comparison, row: Row, runs: Mapping[str, str]) -> tuple[str, ...]:
    result = found.results[row.name]
    cost, judgement = result.cost, result.judgement
    ratios = found.cost_ratios(row.name, YARDSTICK)
    return (
        marked(found, row),
        row.kind,
        f"{cost.wall_s:.1f}",
        f"{cost.cpu_s:.1f}",
        f"{ratios[1].middle:.2f}" if ratios else MISSING,
        f"{cost.peak_rss_bytes / 2**20:.0f}",
        f"{cost.import_s:.1f}",
        f"{judgement.bits:.3f}" if judgement and judgement.bits else MISSING,
        f"{judgement.size_bytes / 2**20:.1f}" if judgement and judgement.size_bytes else MISSING,
        *_quality_cells(found, row),
        runs[result.run],
    )


def _quality_cells(found: Comparison, row: Row) -> tuple[str, ...]:
    windows = found.windows(row.name)
    if windows is None:
        return (MISSING,) * 4
    quality = summarize(windows)
    peer = found.best(row.rivals or row.kind, PEERS)
    return (
        estimate(quality.perplexity, least=2),
        _fine(quality.kl),
        estimate(quality.top1, percent=True),
        _fine(found.paired(row.name, peer)) if peer and peer != row.name else MISSING,
    )


def _fine(divergence: Estimate) -> str:
    """With six decimals where it is small, as that of eight bits is."""
    if not divergence.stderr or divergence.stderr >= 1e-4:
        return estimate(divergence)
    return f"{divergence.value:z.6f} ± {divergence.stderr:.6f}"


def marked(found: Comparison, row: Row) -> str:
    """The row's name, with a mark where it was made by other code than there is now."""
    return row.name + ("†" if _outdated(row, found.results[row.name]) else "")


def remarks(found: Comparison) -> Iterator[str]:
    """What is to be said of the rows of a table."""
    if any(_outdated(row, found.results[row.name]) for row in found.present):
        yield "† was made by an earlier version of our code, or by other pins."
    for row in found.present:
        judgement = found.results[row.name].judgement
        if judgement is not None and judgement.problem is not None:
            yield f"{row.name} could not be judged: {judgement.problem}"
    missing = [row.name for row in found.rows if row.name not in found.results]
    if missing:
        yield f"Without a result: {', '.join(missing)}."


def _outdated(row: Row, result: Result) -> bool:
    try:
        return row.version() != result.version
    except InputError:
        return True


def _turns_table(turns: Turns) -> Table:
    base = YARDSTICK if YARDSTICK in turns.costs else next(iter(turns.costs))
    headers = ("row", "rounds", "wall s", "CPU s", f"wall / {base}", f"CPU / {base}")
    return Table("", headers, [_turns_cells(turns, name, base) for name in turns.costs])


def _turns_cells(turns: Turns, name: str, base: str) -> tuple[str, ...]:
    costs = turns.costs[name]
    return (
        name,
        str(len(costs)),
        f"{np.median([cost.wall_s for cost in costs]):.1f}",
        f"{np.median([cost.cpu_s for cost in costs]):.1f}",
        *(str(Ratio.of(turns, name, base, field)) for field in ("wall_s", "cpu_s")),
    )


# ---- random weights


def _memory_part(title: str, results: Mapping[str, Result]) -> str:
    headers = ("row", "wall s", "CPU s", "peak MiB", "above import", "run")
    rows = [(name, *_memory_cells(result.cost), result.run) for name, result in results.items()]
    machines = "; ".join(sorted({result.machine for result in results.values()}))
    return f"## {title}\n\n{machines}\n\n{grid(Table(title, headers, rows))}"


def _memory_cells(cost: Cost) -> tuple[str, ...]:
    peak, imported = cost.peak_rss_bytes / 2**20, cost.import_rss_bytes / 2**20
    return f"{cost.wall_s:.1f}", f"{cost.cpu_s:.1f}", f"{peak:.0f}", f"{peak - imported:.0f}"


def _depths(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Folders of models of one width, one four times deeper than the other."""
    for shallow in sorted(folder.glob("*-wide-*")):
        layers, _, width = shallow.name.partition("-wide-")
        deep = folder / f"{4 * int(layers)}-wide-{width}"
        if deep.exists():
            yield shallow, deep
