"""What a report draws of a ledger. Metrics are found by their type, so that new ones need no word here."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np
from markupsafe import Markup

from compressor.ledger import Ledger, SensitivityRecord, StepRecord
from compressor.measure.latency import Latency
from compressor.measure.statistics import Estimate
from compressor.report import charts
from compressor.report.charts import NOWHERE, Mark
from compressor.report.numbers import number
from compressor.report.svg import NARROW

MIB = 1 << 20
PLACE = re.compile(r"\.(\d+)\.(?:.*\.)?([^.]+)$")  # layer and module of a linear's full name


@dataclass(frozen=True)
class Metric:
    """How a measured quantity is shown; larger is better unless `falls`.

    Attributes:
        percent: shown in percent of 1.
        relative: to the original, which therefore has none to show.
    """

    title: str
    falls: bool = False
    percent: bool = False
    relative: bool = False

    @property
    def named(self) -> str:
        """With its unit and its good direction."""
        return f"{self.title}{' in %' * self.percent}, {'lower' if self.falls else 'higher'} is better"

    def shown(self, value: Estimate) -> Estimate:
        """In the unit it is shown in."""
        factor = 100 if self.percent else 1
        return Estimate(factor * value.value, None if value.stderr is None else factor * value.stderr)


KNOWN = {
    "perplexity": Metric("Perplexity", falls=True),
    "perplexity_increase": Metric("Perplexity increase", falls=True, percent=True, relative=True),
    "kl": Metric("KL divergence from the original in nats", falls=True, relative=True),
    "top1": Metric("Same first choice as the original", percent=True, relative=True),
}


@dataclass(frozen=True)
class Figure:
    """A chart with what has to be known to read it.

    Attributes:
        draw: makes the chart, given its `width` in pixels.
    """

    title: str
    draw: Callable[..., Markup]
    caption: str = ""

    @classmethod
    def of(cls, chart: Callable[..., Markup], title: str, *values: Any, caption: str = "") -> Figure:
        """A chart of `compressor.report.charts`, and what it draws."""
        return cls(title, partial(chart, title, *values), caption)

    @property
    def drawing(self) -> Markup:
        """The chart as a telephone shows it."""
        return self.draw(width=NARROW)


def metrics(row: StepRecord) -> dict[str, Estimate]:
    """Everything in a row that was estimated, times apart: its quality, and the metrics of whatever has a name."""
    kept = (getattr(row, part.name) for part in fields(row) if part.name != "latency")
    return {name: value for one in kept for name, value in _estimates(one, "")}


def _estimates(value: Any, name: str) -> Iterator[tuple[str, Estimate]]:
    if isinstance(value, Estimate):
        if math.isfinite(value.value):
            known = value.stderr is None or math.isfinite(value.stderr)
            yield name.strip(), value if known else Estimate(value.value, None)
    elif isinstance(value, list):
        for item in value:
            yield from _estimates(item, "")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _estimates(item, f"{name.rpartition(' ')[0]} {key}")
    elif is_dataclass(value):
        own = getattr(value, "name", "")
        for part in fields(value):
            yield from _estimates(getattr(value, part.name), f"{own} {part.name}")


def metric(name: str) -> Metric:
    """How a metric of this name is shown."""
    return KNOWN.get(name, Metric(name.replace("_", " ")))


def kind_of(ledger: Ledger, row: StepRecord) -> str:
    """Whether a row is an original, the artifact or a step."""
    if row.name.split(", ")[-1] == "original":
        return "original"
    is_last = ledger.artifact is not None and row is ledger.steps[-1]
    return "artifact" if is_last else "step"


def mark(ledger: Ledger, row: StepRecord, y: Estimate, x: Estimate = NOWHERE) -> Mark:
    """A row as a chart shows it."""
    return Mark(row.name, kind_of(ledger, row), y, x)


def headline_metric(rows: Sequence[StepRecord], paired: bool = True) -> str | None:
    """The metric that size and speed are held against: perplexity, else the first that there is.

    Args:
        paired: take its change from the original, which is known more exactly than itself: the text is the same.
    """
    names = [name for row in rows for name in metrics(row)]
    wanted = "perplexity_increase" if paired else "perplexity"
    return wanted if wanted in names else next(iter(names), None)


def accuracy(ledger: Ledger) -> list[Figure]:
    """Each metric of all rows, with its interval."""
    names = dict.fromkeys(name for row in ledger.steps for name in metrics(row))
    return [figure for name in names if (figure := _accuracy(ledger, name)) is not None]


def _accuracy(ledger: Ledger, name: str) -> Figure | None:
    shown = metric(name)
    rows = [row for row in ledger.steps if name in metrics(row)]
    if shown.relative:
        rows = [row for row in rows if row is not ledger.steps[0]]
    marks = [mark(ledger, row, shown.shown(metrics(row)[name])) for row in rows]
    return Figure.of(charts.intervals, shown.named, marks) if marks else None


def against_size(ledger: Ledger) -> list[Figure]:
    """Accuracy of each row against the size of its weights."""
    name = headline_metric(ledger.steps)
    rows = [row for row in ledger.steps if row.size_bytes and name in metrics(row)]
    if name is None or len(rows) < 2:
        return []
    y = metric(name)
    marks = [
        mark(ledger, row, y.shown(metrics(row)[name]), Estimate((row.size_bytes or 0) / MIB, None)) for row in rows
    ]
    return [Figure.of(charts.scatter, f"{y.title} against size", marks, ("size in MiB", y.named))]


def against_speed(ledger: Ledger) -> list[Figure]:
    """Accuracy against speed: a chart for each runtime and workload, since times of different ones do not compare."""
    name = headline_metric(ledger.steps)
    if name is None:
        return []
    found, y = [], metric(name)
    for (runtime, workload), timed in _timed(ledger).items():
        marks = [
            mark(ledger, row, y.shown(metrics(row)[name]), latency.tokens_per_s)
            for row, latency in timed
            if name in metrics(row)
        ]
        if len(marks) > 1:
            title = f"{y.title} against speed, {runtime}, {workload}"
            found.append(Figure.of(charts.scatter, title, marks, ("tokens/s", y.named)))
    return found


def latencies(ledger: Ledger) -> list[Figure]:
    """Every repeat of every row, for each runtime and workload."""
    found = []
    for (runtime, workload), timed in _timed(ledger).items():
        found += repeats([(mark(ledger, row, one.tokens_per_s), one) for row, one in timed], f"{runtime}, {workload}")
    return found


def repeats(timed: Sequence[tuple[Mark, Latency]], where: str) -> list[Figure]:
    """A chart for everything that was taken of each repeat under one workload; `where` tells it from others."""
    titles = {"ttft_ms": "Time to first token", "itl_ms": "Time per token", "request_ms": "Time of a whole request"}
    found = []
    for key in dict.fromkeys(key for _, one in timed for key in one.repeats):
        title = f"{titles.get(key, key.removesuffix('_ms').replace('_', ' '))}, {where}"
        seen = [(shown, one.repeats[key]) for shown, one in timed if one.repeats.get(key)]
        if seen:
            found.append(Figure.of(charts.distributions, title, seen, "ms" if key.endswith("_ms") else ""))
    return found


def _timed(ledger: Ledger) -> dict[tuple[str, str], list[tuple[StepRecord, Latency]]]:
    groups: dict[tuple[str, str], list[tuple[StepRecord, Latency]]] = {}
    for row in ledger.steps:
        for one in row.latency:
            workload = f"batch {one.batch}, {one.prompt} + {one.output} tokens"
            groups.setdefault((str(row.runtime), workload), []).append((row, one))
    return groups


def layers(ledger: Ledger) -> list[Figure]:
    """Errors and sensitivities of decoder layers, of the rows that have them."""
    found = []
    for row in ledger.steps:
        if row.layers:
            title = f"Error of each layer, {row.name}"
            own, drift = [one.own for one in row.layers], [one.drift for one in row.layers]
            found.append(Figure.of(charts.columns, title, own, drift, caption=OWN_AND_DRIFT))
        if row.sensitivity:
            found.append(_sensitivity(row))
    return found


OWN_AND_DRIFT = (
    "Columns: how far a layer's outputs are from what they were on the same inputs, in percent of what it adds. "
    "Line: how far the residual stream behind it has drifted, with all layers before it as they are now. "
    "Medians over tokens of the evaluation text."
)


def _sensitivity(row: StepRecord) -> Figure:
    cells = {_place(one): one for one in row.sensitivity}
    rows = list(dict.fromkeys(module for module, _ in cells))
    count = 1 + max(layer for _, layer in cells)
    table = np.full((len(rows), count), np.nan)
    names = [[""] * count for _ in rows]
    for (module, layer), one in cells.items():
        cost = one.divergence[one.chosen]
        table[rows.index(module), layer] = cost
        names[rows.index(module)][layer] = f"{', '.join(one.linears)}: {number(cost, 2)} nats in {one.chosen}"
    title = f"Sensitivity, {row.name}"
    caption = "What rounding linears so was expected to cost, in nats a token. The stronger the colour, the more."
    return Figure.of(charts.grid, title, rows, table, names, caption=caption)


def _place(one: SensitivityRecord) -> tuple[str, int]:
    """Name of a group's modules, and its layer."""
    found = [match for name in one.linears if (match := PLACE.search(name))]
    modules = "/".join(match[2].removesuffix("_proj") for match in found)
    return modules or ", ".join(one.linears), int(found[0][1]) if found else 0


def pareto(marks: Sequence[Mark], falls: tuple[bool, bool]) -> list[Mark]:
    """The marks that no other is better than in both x and y, in the order of x.

    Args:
        falls: whether lower is better, of x and of y.
    """

    signs = [1 if fall else -1 for fall in falls]
    costs = [(signs[0] * one.x.value, signs[1] * one.y.value) for one in marks]
    unbeaten = [
        one
        for one, (x, y) in zip(marks, costs, strict=True)
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in costs)
    ]
    return sorted(unbeaten, key=lambda one: one.x.value)
