"""Several runs on one page: what each gives, which no other beats, and what they were made by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from compressor.gate.decide import Decision, load_decision
from compressor.ledger import Ledger, StepRecord, load_ledger
from compressor.measure.statistics import Estimate
from compressor.report import charts, figures, summary, tables
from compressor.report.charts import Mark
from compressor.report.figures import MIB, Figure
from compressor.report.html import page
from compressor.report.numbers import estimate

LEFT_OUT = ("target", "perplexity", "top-1", "gate")  # where there is little room
KINDS = 6  # of colours for runs
STARS = (
    "★ no other run is both smaller and more accurate; ⚡ none is both faster, in the same runtime under the same "
    "workload, and more accurate."
)


@dataclass(frozen=True)
class Compared:
    """One run among others. `label` tells it from them."""

    label: str
    kind: str
    ledger: Ledger
    decision: Decision | None

    @cached_property
    def row(self) -> StepRecord | None:
        """Where its accuracy stands."""
        return summary.judged_row(self.ledger)

    @property
    def metrics(self) -> dict[str, Estimate]:
        return {} if self.row is None else figures.metrics(self.row)

    @property
    def size_bytes(self) -> int | None:
        last = self.ledger.steps[-1] if self.ledger.steps else None
        return None if last is None else last.size_bytes or (self.row.size_bytes if self.row else None)

    @property
    def text(self) -> str | None:
        """Digest of what it was judged by."""
        found = self.ledger.texts.get("evaluation")
        return found.digest if found else None

    @property
    def original(self) -> str | None:
        """Digest of what it was made from."""
        return self.ledger.steps[0].key if self.ledger.steps else None

    @property
    def workload(self) -> tuple[str, str] | None:
        """Runtime and workload of its speed."""
        found = summary.speed(self.ledger)
        if found is None:
            return None
        one = found[0]
        return str(self.ledger.steps[-1].runtime), f"batch {one.batch}, {one.prompt} + {one.output} tokens"

    @property
    def speed(self) -> Estimate | None:
        found = summary.speed(self.ledger)
        return None if found is None else found[0].tokens_per_s

    @property
    def recipe(self) -> str:
        return str(yaml.safe_dump(self.ledger.recipe, sort_keys=False))

    def mark(self, y: Estimate, x: Estimate = charts.NOWHERE) -> Mark:
        """The run as a chart shows it."""
        return Mark(self.label, self.kind, y, x)


def open_runs(paths: Sequence[Path]) -> list[Compared]:
    """The runs in folders, or of ledger files, under the shortest names that differ.

    Raises:
        InputError: there is no ledger, or what is there cannot be read.
    """
    found = []
    for number, (path, label) in enumerate(zip(paths, _labels(paths), strict=True)):
        folder = path if path.is_dir() else path.parent
        found.append(Compared(label, f"run{number % KINDS + 1}", load_ledger(path), load_decision(folder)))
    return found


def _labels(paths: Sequence[Path]) -> list[str]:
    """Names of the folders, with as many of those above them as it takes."""
    parts = [(path if path.is_dir() else path.parent).resolve().parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


@dataclass(frozen=True)
class Fronts:
    """The runs that no other beats, by what is traded for accuracy."""

    size: list[str]
    speed: list[str]
    figures: list[Figure]


def fronts(runs: Sequence[Compared]) -> Fronts:
    """Accuracy against size, of runs judged by the same text; and against speed, of those timed alike as well."""
    one_original = len({run.original for run in runs}) == 1
    name = figures.headline_metric([run.row for run in runs if run.row], paired=one_original)
    if name is None:
        return Fronts([], [], [])
    metric = figures.metric(name)
    found = Fronts([], [], [])
    judged = [run for run in runs if name in run.metrics]
    for text in dict.fromkeys(run.text for run in judged):
        alike = [run for run in judged if run.text == text]
        sized = [run for run in alike if run.size_bytes]
        marks = [run.mark(run.metrics[name], Estimate((run.size_bytes or 0) / MIB, None)) for run in sized]
        found.size.extend(_add(found, metric, marks, "size in MiB", ""))
        for workload in dict.fromkeys(run.workload for run in alike if run.workload):
            timed = [(run, run.speed) for run in alike if run.workload == workload]
            marks = [run.mark(run.metrics[name], speed) for run, speed in timed if speed is not None]
            found.speed.extend(_add(found, metric, marks, "tokens/s", ", " + ", ".join(workload)))
    return found


def _add(found: Fronts, metric: figures.Metric, marks: list[Mark], x: str, where: str) -> list[str]:
    """Draw a chart where there are two marks to compare, and name those of its front."""
    marks = [Mark(one.label, one.kind, metric.shown(one.y), one.x) for one in marks]
    front = figures.pareto(marks, (x != "tokens/s", metric.falls))
    if len(marks) < 2:
        return []
    title = f"{metric.title} against {'speed' if x == 'tokens/s' else 'size'}{where}"
    found.figures.append(Figure.of(charts.scatter, title, marks, (x, metric.named), front))
    return [one.label for one in front]


def remarks(runs: Sequence[Compared]) -> list[str]:
    """What keeps runs from being compared."""
    said = []
    if len({run.text for run in runs if run.text}) > 1:
        said.append("Not all runs were judged by the same text; only those that were are in one chart.")
    unjudged = [run.label for run in runs if run.row is None]
    if unjudged:
        said.append(f"No accuracy was measured in {', '.join(unjudged)}.")
    if len({run.original for run in runs}) > 1:
        said.append("The runs are of different originals; divergences are from each one's own.")
    machines = {(run.ledger.environment.get("cpu"), run.ledger.environment.get("threads")) for run in runs}
    if len(machines) > 1:
        said.append("The runs were timed on different machines or with different numbers of threads.")
    return said


def overview(runs: Sequence[Compared], narrow: bool = False) -> tables.Table:
    """A line a run; a narrow one with the most telling columns."""
    found = fronts(runs)
    headers = ("run", "target", "perplexity", "vs original", "KL (nats)", "top-1", "size", "tokens/s", "gate", "front")
    rows = [_cells(run, found) for run in runs]
    kept = [at for at, header in enumerate(headers) if not (narrow and header in LEFT_OUT)]
    return tables.Table("Runs", tuple(headers[at] for at in kept), [tuple(row[at] for at in kept) for row in rows])


def _cells(run: Compared, found: Fronts) -> tuple[str, ...]:
    quality = run.row.quality if run.row else None
    judged = (
        (tables.MISSING,) * 4
        if quality is None
        else (
            estimate(quality.perplexity, least=2),
            estimate(quality.perplexity_increase, percent=True),
            estimate(quality.kl),
            estimate(quality.top1, percent=True),
        )
    )
    return (
        run.label,
        run.ledger.artifact.target if run.ledger.artifact else "no artifact",
        *judged,
        tables.size(run.size_bytes),
        tables.MISSING if run.speed is None else estimate(run.speed),
        str(run.decision.verdict) if run.decision else tables.MISSING,
        "★" * (run.label in found.size) + "⚡" * (run.label in found.speed),
    )


def plain(runs: Sequence[Compared]) -> dict[str, Any]:
    """The comparison as JSON values."""
    found = fronts(runs)
    rows = [
        {
            "run": run.label,
            "target": run.ledger.artifact.target if run.ledger.artifact else None,
            "row": run.row.name if run.row else None,
            "metrics": {name: vars(value) for name, value in run.metrics.items()},
            "size_bytes": run.size_bytes,
            "tokens_per_s": vars(run.speed) if run.speed else None,
            "workload": ": ".join(run.workload) if run.workload else None,
            "gate": str(run.decision.verdict) if run.decision else None,
        }
        for run in runs
    ]
    return {"runs": rows, "front": {"size": found.size, "speed": found.speed}, "remarks": remarks(runs)}


def render(runs: Sequence[Compared]) -> str:
    """The page of several runs."""
    found, accuracy, latency = fronts(runs), _accuracy(runs), _latency(runs)
    sections = [("runs", "Runs"), ("fronts", "Fronts"), ("accuracy", "Accuracy"), ("latency", "Latency")]
    empty = {"fronts": not found.figures, "accuracy": not accuracy, "latency": not latency}
    return page(
        "comparison.html",
        count=len(runs),
        models=list(dict.fromkeys(run.ledger.model for run in runs)),
        remarks=remarks(runs),
        sections=[*((key, title) for key, title in sections if not empty.get(key)), ("recipes", "Recipes")],
        overview=overview(runs),
        stars=STARS,
        fronts=found.figures,
        accuracy=accuracy,
        latency=latency,
        runs=runs,
    )


def _accuracy(runs: Sequence[Compared]) -> list[Figure]:
    found = []
    for name in dict.fromkeys(name for run in runs for name in run.metrics):
        shown = figures.metric(name)
        marks = [run.mark(shown.shown(run.metrics[name])) for run in runs if name in run.metrics]
        found.append(Figure.of(charts.intervals, shown.named, marks))
    return found


def _latency(runs: Sequence[Compared]) -> list[Figure]:
    found = []
    for workload in dict.fromkeys(run.workload for run in runs if run.workload):
        timed = [(run, speeds[0]) for run in runs if run.workload == workload and (speeds := summary.speed(run.ledger))]
        taken = [(run.mark(one.tokens_per_s), one) for run, one in timed]
        found += figures.repeats(taken, ", ".join(workload))
    return found
