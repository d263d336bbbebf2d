"""The ledger's figures as text cells; the terminal and Markdown only lay them out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.ledger import Ledger, StepRecord
from compressor.measure.latency import Latency
from compressor.report.numbers import estimate
from compressor.tasks.metrics import remark

MISSING = "–"
TENSOR, NUMBER = re.compile(r"\w+(\.\w+){2,}"), re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")  # what notes differ in
AUDIT_MARKS = {"ok": "✓", "warning": "✗", "not checked": "·"}


@dataclass(frozen=True)
class Table:
    """A titled table of cells. The first column is text, the others are figures."""

    title: str
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]


def all_tables(ledger: Ledger) -> list[Table]:
    """The ledger's tables that have rows, in reading order."""
    tables = [quality_table(ledger), *task_tables(ledger), cost_table(ledger), *latency_tables(ledger)]
    return [table for table in tables if table.rows]


def quality_table(ledger: Ledger) -> Table:
    """Accuracy against the original."""
    text = ledger.texts.get("evaluation")
    title = f"Accuracy on {text.windows} × {text.length} evaluation tokens" if text else "Accuracy"
    headers = ("step", "perplexity", "vs original", "KL (nats)", "top-1")
    return Table(title, headers, [_quality_row(row) for row in ledger.steps if row.quality])


def task_tables(ledger: Ledger) -> list[Table]:
    """Scores of each task that a row was asked."""
    found = []
    for name in dict.fromkeys(task.name for row in ledger.steps for task in row.tasks):
        scored = [(row.name, task.metrics) for row in ledger.steps for task in row.tasks if task.name == name]
        metrics = list(dict.fromkeys(metric for _, one in scored for metric in one))
        rows = [
            (step, *(estimate(one[metric], percent=True) if metric in one else MISSING for metric in metrics))
            for step, one in scored
        ]
        counts = {
            task.samples.count for row in ledger.steps for task in row.tasks if task.name == name and task.samples
        }
        samples = f", {counts.pop()} samples" if len(counts) == 1 else ""
        found.append(Table(f"Task {name}{samples}", ("step", *(metric.replace("_", " ") for metric in metrics)), rows))
    return found


def cost_table(ledger: Ledger) -> Table:
    """Size of each step, and what it took to make."""
    headers = ("step", "size", "bits/weight", "time", "peak memory")
    table = Table("Size, and the cost of making it", headers, [_cost_row(row) for row in ledger.steps])
    if all(row.zeros is None for row in ledger.steps):
        return table
    zeros = [MISSING if row.zeros is None else f"{row.zeros:.1%}" for row in ledger.steps]
    return Table(
        table.title, (*headers, "zeros"), [(*cells, share) for cells, share in zip(table.rows, zeros, strict=True)]
    )


def latency_tables(ledger: Ledger) -> list[Table]:
    """One table for each runtime and workload: times of different ones do not compare."""
    headers = ("step", "TTFT p50 / p95", "per token p50 / p95", "tokens/s")
    rows: dict[str, list[tuple[str, ...]]] = {}
    for row in ledger.steps:
        for latency in row.latency:
            workload = f"batch {latency.batch}, {latency.prompt} + {latency.output} tokens"
            title = f"Latency in ms, {row.runtime}: {workload}"
            rows.setdefault(title, []).append(_latency_row(row, latency))
    return [Table(title, headers, lines) for title, lines in rows.items()]


def remarks(ledger: Ledger) -> list[str]:
    """Warnings of the run, notes of its rows, and why something was not run."""
    found = list(ledger.warnings)
    for row in ledger.steps:
        if row.quality is not None and not math.isfinite(row.quality.perplexity.value):
            found.append(
                f"{row.name}: its perplexity is no number: it does not compute this text, and is not to be used"
            )
        broken = (remark(task.name, task.broken, task.samples.count) for task in row.tasks)
        found += [f"{row.name}: {note}" for note in (*one_of_a_kind(row.notes), *filter(None, broken))]
        if row.not_run:
            found.append(f"{row.name}: not run, {row.not_run}")
    return found


def one_of_a_kind(notes: Sequence[str]) -> list[str]:
    """Notes that say the same of many tensors, as one that says it of the first and counts the others."""
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kinds.setdefault(NUMBER.sub("#", TENSOR.sub("·", note)), []).append(note)
    return [
        alike[0] if len(alike) == 1 else f"{alike[0]} (and {len(alike) - 1} more like it)" for alike in kinds.values()
    ]


def verdict(ledger: Ledger) -> str:
    """One sentence on the artifact's verification."""
    if ledger.artifact is None:
        return "No artifact was made."
    checked = ledger.artifact.verified
    state = "bit-identical" if not checked.mismatches else f"{len(checked.mismatches)} DIFFER"
    return f"{checked.weights} weights read back by {checked.reader}: {state}."


def size(count: int | None) -> str:
    """Bytes in the unit that leaves one to four digits."""
    if count is None:
        return MISSING
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] in ("B", "KiB") else f"{value:.1f} {units[0]}"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes and seconds."""
    if seconds is None:
        return MISSING
    return f"{seconds:.1f} s" if seconds < 100 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _quality_row(row: StepRecord) -> tuple[str, ...]:
    quality = row.quality
    assert quality is not None
    if row.name == "original":
        return (row.name, estimate(quality.perplexity, least=2), MISSING, MISSING, MISSING)
    return (
        row.name,
        estimate(quality.perplexity, least=2),
        estimate(quality.perplexity_increase, percent=True),
        estimate(quality.kl),
        estimate(quality.top1, percent=True),
    )


def _cost_row(row: StepRecord) -> tuple[str, ...]:
    bits = MISSING if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}"
    return (row.name, size(row.size_bytes), bits, duration(row.seconds), size(row.peak_rss_bytes))


def _latency_row(row: StepRecord, latency: Latency) -> tuple[str, ...]:
    return (row.name, _pair(latency.ttft_ms), _pair(latency.per_token_ms), estimate(latency.tokens_per_s))


def _pair(times: dict[str, float]) -> str:
    digits = 1 if times["p50"] >= 10 else 2
    return f"{times['p50']:.{digits}f} / {times['p95']:.{digits}f}"
