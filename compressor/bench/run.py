"""Times several folders in turns, workload by workload."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compressor.bench.crossover import Crossover, Ratio, crossover, sentence
from compressor.bench.peak import peak_memory
from compressor.bench.subjects import open_subject
from compressor.environment import environment
from compressor.errors import InputError, RunError
from compressor.ledger import finite
from compressor.measure.latency import Latency, Workload, measure_latency
from compressor.pass_ import Progress
from compressor.target import Session

SCHEMA = 1


@dataclass
class Row:
    """One folder under one workload.

    Attributes:
        latency: None where not one repeat was finished, for the reason in `not_run`.
        peak_bytes: resident memory of a process that opens it and runs this workload once.
    """

    name: str
    runtime: str
    workload: Workload
    latency: Latency | None
    peak_bytes: int | None = None
    not_run: str | None = None


@dataclass(frozen=True)
class Pair:
    """The first folder and another one at one length of prompt and output."""

    first: str
    second: str
    prompt: int
    output: int
    ratios: dict[int, Ratio]
    found: Crossover | None
    sentence: str


@dataclass
class Bench:
    """Everything that was timed."""

    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """As JSON values; `schema` is the version of their layout."""
        return finite({"schema": SCHEMA, **asdict(self)})


def bench(paths: Sequence[Path], workloads: Sequence[Workload], memory: bool, progress: Progress) -> Bench:
    """Time folders in turns; the first is what the others are compared with.

    Args:
        memory: whether each is run once more, in a process of its own, for its peak memory.

    Raises:
        InputError: a folder cannot be timed, or a workload is longer than a model's context.
        RunError: a runtime does not open.
    """
    names = _names(paths)
    found = Bench(environment())
    with ExitStack() as stack:
        sessions, vocabulary = _open(dict(zip(names, paths, strict=True)), workloads, stack, progress)
        alive = dict(sessions)
        for workload in workloads:
            found.rows += _timed(alive, workload, vocabulary, progress)
            alive = {row.name: alive[row.name] for row in found.rows[-len(alive) :] if row.not_run is None}
            if not alive:
                break
    if memory:
        _measure_memory(found.rows, dict(zip(names, paths, strict=True)), progress)
    found.pairs = [
        pair for name in names[1:] for pair in _pairs(found.rows, names[0], name)
    ]  # fmt: skip
    return found


def _names(paths: Sequence[Path]) -> list[str]:
    names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise InputError("A folder is given twice; its two columns could not be told apart.")
    return names


def _open(
    paths: dict[str, Path], workloads: Sequence[Workload], stack: ExitStack, progress: Progress
) -> tuple[dict[str, Session], int]:
    """Open sessions, and the number of token ids that all of them know."""
    longest = max(one.prompt + one.output for one in workloads)
    sessions, vocabulary = {}, []
    for number, (name, path) in enumerate(paths.items()):
        progress("opening", number, len(paths))
        session, shape = open_subject(path)
        stack.callback(session.close)
        if longest > shape.max_positions:
            raise InputError(f"{longest} tokens are longer than the context of {name}, {shape.max_positions}.")
        sessions[name] = session
        vocabulary.append(shape.vocab_size)
    return sessions, min(vocabulary)


def _timed(sessions: dict[str, Session], workload: Workload, vocabulary: int, progress: Progress) -> list[Row]:
    tokens = np.arange(workload.prompt) % vocabulary  # time does not depend on which they are
    timings = measure_latency(sessions, workload, tokens, lambda *done: progress(f"timing {workload}", *done))
    return [
        Row(name, session.runtime, workload, timings.found.get(name), None, timings.broken.get(name))
        for name, session in sessions.items()
    ]


def _measure_memory(rows: Sequence[Row], paths: dict[str, Path], progress: Progress) -> None:
    for number, row in enumerate(rows):
        progress("measuring memory", number, len(rows))
        if row.not_run is None:
            try:
                row.peak_bytes = peak_memory(paths[row.name], row.workload)
            except RunError as error:
                row.not_run = str(error)


def _pairs(rows: Sequence[Row], first: str, second: str) -> list[Pair]:
    """One for each length, over its batch sizes."""
    lengths = dict.fromkeys((row.workload.prompt, row.workload.output) for row in rows)
    return [_pair(rows, (first, second), *length) for length in lengths]


def _pair(rows: Sequence[Row], names: tuple[str, str], prompt: int, output: int) -> Pair:
    known = {
        (row.name, row.workload.batch): row.latency
        for row in rows
        if (row.workload.prompt, row.workload.output) == (prompt, output) and row.latency is not None
    }
    ratios = {}
    for batch in sorted({batch for _, batch in known}):
        both = [known.get((name, batch)) for name in names]
        ratio = Ratio.of(both[0], both[1]) if both[0] and both[1] else None
        if ratio is not None:
            ratios[batch] = ratio
    if not ratios:
        return Pair(*names, prompt, output, {}, None, f"{names[1]} was not timed beside {names[0]}.")
    found = crossover(ratios)
    return Pair(*names, prompt, output, ratios, found, sentence(found, ratios, *names))
