"""A run at a glance: the row that ships, and its figures next to the original's."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from compressor.ledger import Ledger, StepRecord
from compressor.measure.latency import Latency
from compressor.report import tables
from compressor.report.numbers import estimate, number


@dataclass(frozen=True)
class Card:
    """One figure, and what it is to be held against.

    Attributes:
        error: the standard error of the value.
        tone: `good`, `bad`, `open` or none.
    """

    title: str
    value: str
    detail: str = ""
    tone: str = ""
    error: str = ""

    @classmethod
    def of(cls, title: str, estimated: str, detail: str) -> Card:
        """Of an estimate as `numbers.estimate` writes it."""
        value, _, error = estimated.partition(" ± ")
        unit = "%" if error.endswith("%") else ""
        return cls(title, value + unit, detail, error=error)


def judged_row(ledger: Ledger) -> StepRecord | None:
    """The artifact's row, or where it was not run the last step, whose weights it holds."""
    rows = [row for row in ledger.steps if row.quality is not None and ", " not in row.name]
    return rows[-1] if len(rows) > 1 else None


def cards(ledger: Ledger) -> list[Card]:
    """What a reader wants to know first."""
    row, found = judged_row(ledger), []
    if row is not None and row.quality is not None:
        quality = row.quality
        change = f"{estimate(quality.perplexity_increase, percent=True)} against the original"
        found += [
            Card.of("Perplexity", estimate(quality.perplexity, least=2), change),
            Card.of("KL from the original", estimate(quality.kl), "nats a token"),
            Card.of(
                "Same first choice",
                estimate(quality.top1, percent=True),
                "of tokens have the original's most likely token",
            ),
        ]
    found += [_task(ledger, name) for name in dict.fromkeys(task.name for row in ledger.steps for task in row.tasks)]
    return found + [card for card in (_size(ledger), _speed(ledger), _verified(ledger)) if card is not None]


def _task(ledger: Ledger, name: str) -> Card:
    """The score that the gate judges first, of the row that was asked last, beside the original's."""
    asked = [(row, task) for row in ledger.steps for task in row.tasks if task.name == name]
    (first, known), (last, found) = asked[0], asked[-1]
    metric = found.judged[0]
    beside = f"of {last.name}"
    if first is not last and metric in known.metrics:
        beside += f"; {first.name} {estimate(known.metrics[metric], percent=True)}"
    title = f"{name}, {metric.replace('_', ' ')}"
    return Card.of(title, estimate(found.metrics[metric], percent=True), beside)


def _size(ledger: Ledger) -> Card | None:
    sized = [row for row in ledger.steps if row.size_bytes]
    if not sized:
        return None
    first, last = sized[0], sized[-1]
    share = (last.size_bytes or 0) / (first.size_bytes or 1)
    return Card("Size", tables.size(last.size_bytes), f"{share:.2f} × {tables.size(first.size_bytes)}{_bits(ledger)}")


def _bits(ledger: Ledger) -> str:
    """Bits a weight of the last row that has them, and of what: the embedding often has most of them."""
    counted = [row for row in ledger.steps if row.bits_per_weight is not None]
    if not counted:
        return ""
    parts = next((row.bits_of for row in reversed(counted) if row.bits_of), {})
    said = ", ".join(f"{bits:.1f} in {part}" for part, bits in parts.items())
    return f", {counted[-1].bits_per_weight:.2f} bits a weight" + (f" ({said})" if said else "")


def speed(ledger: Ledger) -> tuple[Latency, Latency | None] | None:
    """The artifact's times under the first workload, and the original's in the same runtime."""
    last = ledger.steps[-1] if ledger.steps else None
    if ledger.artifact is None or last is None or not last.latency:
        return None
    ours = last.latency[0]
    same = [row for row in ledger.steps if row.runtime == last.runtime and row.name.split(", ")[-1] == "original"]
    workload = (ours.batch, ours.prompt, ours.output)
    theirs = (one for row in same for one in row.latency if (one.batch, one.prompt, one.output) == workload)
    return ours, next(theirs, None)


def _speed(ledger: Ledger) -> Card | None:
    found = speed(ledger)
    if found is None:
        return None
    ours, theirs = found
    runtime = str(ledger.steps[-1].runtime)
    beside = (
        f"{ours.tokens_per_s.value / theirs.tokens_per_s.value:.2f} × the original in {runtime}" if theirs else runtime
    )
    return Card("Speed", f"{number(ours.tokens_per_s.value)} tokens/s", beside)


def _verified(ledger: Ledger) -> Card | None:
    if ledger.artifact is None:
        return Card("Artifact", "none", "the run did not get as far", "bad")
    checked = ledger.artifact.verified
    if checked.mismatches:
        return Card("Read back", f"{len(checked.mismatches)} differ", f"of {checked.weights} weights", "bad")
    return Card("Read back", "bit-identical", f"{checked.weights} weights, by {checked.reader}", "good")


# ---- what models write


@dataclass
class Written:
    """One continuation, and all rows that wrote it.

    Attributes:
        same: its start that the original wrote too; `other` is the rest.
    """

    rows: list[str] = field(default_factory=list)
    same: str = ""
    other: str = ""


def side_by_side(ledger: Ledger) -> list[tuple[str, list[Written]]]:
    """For each prompt the different continuations, the original's first."""
    known = [row for row in ledger.steps if row.continuations]
    prompts = [one.prompt for one in known[0].continuations] if known else []
    found = []
    for index, prompt in enumerate(prompts):
        if not prompt.strip():
            continue
        by_text: dict[str, Written] = {}
        for row in known:
            if index < len(row.continuations) and row.continuations[index].prompt == prompt:
                by_text.setdefault(row.continuations[index].text, Written()).rows.append(row.name)
        first = next(iter(by_text))
        for text, written in by_text.items():
            kept = next((at for at, pair in enumerate(zip(first, text, strict=False)) if len({*pair}) > 1), len(text))
            written.same, written.other = _closed_up(text[:kept]), _closed_up(text[kept:])
        found.append((_closed_up(prompt).strip("\n"), list(by_text.values())))
    return found


def _closed_up(text: str) -> str:
    """Text without its empty lines."""
    return re.sub(r"\n\s*\n", "\n", text)
