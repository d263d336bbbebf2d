"""A run as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from compressor import __version__
from compressor.gate import wording
from compressor.gate.decide import Decision, Verdict
from compressor.ledger import Ledger, StepRecord
from compressor.report import figures, summary, tables, training
from compressor.report.headline import headline
from compressor.report.numbers import estimate, number
from compressor.report.svg import NARROW

PAGES = Path(__file__).with_name("pages")
WIDE = {1: 1140, 2: 556, 3: NARROW}  # pixels of a chart on a wide page, by the columns that it has
TONES = {Verdict.PASS: "good", Verdict.FAIL: "bad", Verdict.INCONCLUSIVE: "open"}


@dataclass(frozen=True)
class _Step:
    """A row in the picture of the flow."""

    name: str
    kind: str
    facts: list[str]


def render(ledger: Ledger, decision: Decision | None = None, blamed: Mapping[str, Any] | None = None) -> str:
    """The report of one run; `blamed` is what `llmc bisect` kept of the decision's reasons."""
    content = {
        "accuracy": figures.accuracy(ledger),
        "audit": ledger.audit,
        "against": [*figures.against_size(ledger), *figures.against_speed(ledger)],
        "gate": None if decision is None else _gate(decision),
        "blamed": blamed,
        "latency": figures.latencies(ledger),
        "layers": figures.layers(ledger),
        "training": training.losses(ledger),
        "written": summary.side_by_side(ledger),
        "remarks": tables.remarks(ledger),
    }
    text = ledger.texts.get("evaluation")
    return page(
        "run.html",
        ledger=ledger,
        name=Path(ledger.model).name,
        target=ledger.artifact.target if ledger.artifact else "no artifact",
        headline=headline(ledger),
        cards=summary.cards(ledger),
        sections=_sections(content),
        flow=[_step(ledger, row) for row in ledger.steps if ", " not in row.name],
        windows=text.windows if text else None,
        marks=tables.AUDIT_MARKS,
        tables=tables.all_tables(ledger),
        recipe=yaml.safe_dump(ledger.recipe, sort_keys=False),
        provenance=_provenance(ledger),
        **content,
    )


def page(template: str, **values: Any) -> str:
    """A template of the folder `pages`, with the style in it."""
    style = Markup((PAGES / "style.css").read_text(encoding="utf-8"))
    return _environment().get_template(template).render(style=style, version=__version__, **values)


@cache
def _environment() -> Environment:
    loader = FileSystemLoader(PAGES)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"breakable": _breakable, "said": _said, "columns": _columns}
    made.globals |= {"NARROW": NARROW, "WIDE": WIDE}
    return made


def _breakable(text: str) -> Markup:
    """A name that a line may end in, behind a sign in it."""
    return Markup(re.sub(r"([./_+,=])(?=\w)", r"\1<wbr>", str(escape(text))))


def _columns(drawn: Sequence[figures.Figure]) -> int:
    """Columns for charts on a wide page: as many as leave the fewest places of the last row empty."""
    return 1 if len(drawn) == 1 else min((3, 2), key=lambda count: -len(drawn) % count)


def _said(text: str) -> Markup:
    """A remark, in which backticks mark code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _sections(content: dict[str, Any]) -> list[tuple[str, str]]:
    """Anchors and titles of what there is."""
    known = [
        ("steps", "Steps", True),
        ("accuracy", "Accuracy", content["accuracy"]),
        ("trade", "Size and speed", content["against"]),
        ("gate", "Gate", content["gate"]),
        ("blamed", "To blame", content["blamed"]),
        ("latency", "Latency", content["latency"]),
        ("layers", "Layers", content["layers"]),
        ("training", "Training", content["training"]),
        ("text", "Text", content["written"]),
        ("calibration", "Calibration text", content["audit"]),
        ("tables", "All figures", True),
        ("remarks", "Remarks", content["remarks"]),
        ("again", "How to reproduce", True),
    ]
    return [(anchor, title) for anchor, title, there in known if there]


def _gate(decision: Decision) -> dict[str, Any]:
    return {
        "word": str(decision.verdict),
        "tone": TONES[decision.verdict],
        "headline": wording.headline(decision),
        "table": wording.table(decision),
        "remarks": wording.remarks(decision),
    }


def _step(ledger: Ledger, row: StepRecord) -> _Step:
    facts = []
    if row.size_bytes:
        bits = "" if row.bits_per_weight is None else f", {row.bits_per_weight:.2f} bits a weight"
        facts.append(tables.size(row.size_bytes) + bits)
    if row.seconds is not None:
        facts.append(f"made in {tables.duration(row.seconds)}, {tables.size(row.peak_rss_bytes)} at most")
    if row.quality is not None:
        facts.append(f"perplexity {estimate(row.quality.perplexity, least=2)}")
    if row.latency:
        facts.append(f"{number(row.latency[0].tokens_per_s.value)} tokens/s in {row.runtime}")
    if row.not_run:
        facts.append(f"not run: {row.not_run}")
    return _Step(row.name, figures.kind_of(ledger, row), facts)


def _provenance(ledger: Ledger) -> list[tuple[str, str]]:
    """What figures depend on, with hashes."""
    facts = ledger.environment
    rows = [
        (f"{role} text", f"{text.source}, {text.windows} × {text.length} tokens, SHA-256 {text.digest[:16]}…")
        for role, text in ledger.texts.items()
    ]
    if ledger.steps and ledger.steps[0].key:
        rows.append(("original", f"digest {ledger.steps[0].key[:16]}…"))
    if ledger.artifact is not None:
        rows.append(("artifact", f"digest {ledger.artifact.digest[:16]}…"))
    machine = f"{facts.get('cpu')}, {facts.get('threads')} threads, {tables.size(facts.get('memory_bytes'))} of memory"
    rows += [("machine", machine), ("platform", str(facts.get("platform"))), ("Python", str(facts.get("python")))]
    rows.append(("packages", ", ".join(f"{name} {version}" for name, version in facts.get("packages", {}).items())))
    return rows
