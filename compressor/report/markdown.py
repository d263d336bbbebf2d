"""The ledger as Markdown, for pull requests and model cards."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from compressor.escaping import code, fenced, markdown
from compressor.ledger import AuditRecord, Ledger, together
from compressor.report import tables
from compressor.report.headline import headline


def render(ledgers: Sequence[Ledger], gates: Sequence[str] = ()) -> str:
    """The whole report as one Markdown document; of runs for several targets, each row once.

    Args:
        gates: what gates decided, in Markdown.
    """
    ledger = together(ledgers)
    title = f"# {markdown(ledger.model)} → {markdown(', '.join(map(_target, ledgers)))}"
    parts = [title, *(f"**{markdown(headline(one))}**" for one in ledgers)]
    parts += map(_picture, ledgers)
    parts += [*(markdown(tables.verdict(one)) for one in ledgers), *gates]
    parts += [f"## {markdown(table.title)}\n\n{grid(table)}" for table in tables.all_tables(ledger)]
    if ledger.audit:
        parts.append("## Calibration text\n\n" + "\n".join(map(_audited, ledger.audit)))
    remarks = tables.remarks(ledger)
    if remarks:
        parts.append("## Remarks\n\n" + "\n".join(f"- {markdown(remark)}" for remark in remarks))
    commands = [one.artifact.run for one in ledgers if one.artifact is not None]
    if commands:
        parts += ["## Serve it", *(fenced(command, "sh") for command in commands)]
    parts += ["## How this was made", *(fenced(_recipe(one), "yaml") for one in ledgers)]
    parts += [_texts(ledger), _environment(ledger)]
    return "\n\n".join(parts) + "\n"


def _audited(one: AuditRecord) -> str:
    outcome = ", not checked" if one.outcome == "not checked" else ""
    return f"- {tables.AUDIT_MARKS[one.outcome]} {one.name}{outcome}: {markdown(one.said)}"


def _target(ledger: Ledger) -> str:
    return ledger.artifact.target if ledger.artifact else "no artifact"


def _picture(ledger: Ledger) -> str:
    passes = [next(iter(one)) for one in ledger.recipe.get("passes", [])]
    return code(" → ".join([ledger.model, *passes, _target(ledger)]))


def _recipe(ledger: Ledger) -> str:
    return yaml.safe_dump(ledger.recipe, sort_keys=False)


def grid(table: tables.Table) -> str:
    """A table in Markdown."""
    lines = [_row(table.headers), "|---|" + "---:|" * (len(table.headers) - 1)]
    return "\n".join(lines + [_row(row) for row in table.rows])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown, cells)) + " |"


def _texts(ledger: Ledger) -> str:
    return "\n".join(
        f"- {role} text: {markdown(text.source)}, {text.windows} × {text.length} tokens, "
        f"SHA-256 {markdown(text.digest[:16])}…; " + "; ".join(map(markdown, text.notes))
        for role, text in ledger.texts.items()
    )


def _environment(ledger: Ledger) -> str:
    facts = ledger.environment
    packages = ", ".join(markdown(f"{name} {version}") for name, version in facts.get("packages", {}).items())
    memory = tables.size(facts.get("memory_bytes"))
    return (
        f"Measured on {markdown(facts.get('cpu'))}, {markdown(facts.get('threads'))} threads, {memory} of memory, "
        f"Python {markdown(facts.get('python'))}, {packages}, llmc {markdown(facts.get('llmc'))}. "
        "Figures after ± are standard errors: over windows of text for accuracy, over repeats for tokens/s. "
        "KL is KL(original ‖ this) per token. TTFT is the time to the first token."
    )
