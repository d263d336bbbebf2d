"""The ledger as Markdown, for pull requests and model cards."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from compressor.ledger import AuditRecord, Ledger, together
from compressor.report import tables
from compressor.report.headline import headline


def render(ledgers: Sequence[Ledger], gates: Sequence[str] = ()) -> str:
    """The whole report as one Markdown document; of runs for several targets, each row once.

    Args:
        gates: what gates decided, in Markdown.
    """
    ledger = together(ledgers)
    parts = [f"# {ledger.model} → {', '.join(map(_target, ledgers))}", *(f"**{headline(one)}**" for one in ledgers)]
    parts += map(_picture, ledgers)
    parts += [*map(tables.verdict, ledgers), *gates]
    parts += [f"## {table.title}\n\n{grid(table)}" for table in tables.all_tables(ledger)]
    if ledger.audit:
        parts.append("## Calibration text\n\n" + "\n".join(map(_audited, ledger.audit)))
    remarks = tables.remarks(ledger)
    if remarks:
        parts.append("## Remarks\n\n" + "\n".join(f"- {remark}" for remark in remarks))
    commands = [one.artifact.run for one in ledgers if one.artifact is not None]
    if commands:
        parts += ["## Serve it", *(f"```sh\n{command}\n```" for command in commands)]
    parts += ["## How this was made", *(f"```yaml\n{_recipe(one)}```" for one in ledgers)]
    parts += [_texts(ledger), _environment(ledger)]
    return "\n\n".join(parts) + "\n"


def _audited(one: AuditRecord) -> str:
    outcome = ", not checked" if one.outcome == "not checked" else ""
    return f"- {tables.AUDIT_MARKS[one.outcome]} {one.name}{outcome}: {one.said}"


def _target(ledger: Ledger) -> str:
    return ledger.artifact.target if ledger.artifact else "no artifact"


def _picture(ledger: Ledger) -> str:
    passes = [next(iter(one)) for one in ledger.recipe.get("passes", [])]
    return "`" + " → ".join([ledger.model, *passes, _target(ledger)]) + "`"


def _recipe(ledger: Ledger) -> str:
    return yaml.safe_dump(ledger.recipe, sort_keys=False)


def grid(table: tables.Table) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(table.headers) + " |", "|---|" + "---:|" * (len(table.headers) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in table.rows])


def _texts(ledger: Ledger) -> str:
    return "\n".join(
        f"- {role} text: {text.source}, {text.windows} × {text.length} tokens, SHA-256 {text.digest[:16]}…; "
        + "; ".join(text.notes)
        for role, text in ledger.texts.items()
    )


def _environment(ledger: Ledger) -> str:
    facts = ledger.environment
    packages = ", ".join(f"{name} {version}" for name, version in facts.get("packages", {}).items())
    memory = tables.size(facts.get("memory_bytes"))
    return (
        f"Measured on {facts.get('cpu')}, {facts.get('threads')} threads, {memory} of memory, "
        f"Python {facts.get('python')}, {packages}, llmc {facts.get('llmc')}. "
        "Figures after ± are standard errors: over windows of text for accuracy, over repeats for tokens/s. "
        "KL is KL(original ‖ this) per token. TTFT is the time to the first token."
    )
