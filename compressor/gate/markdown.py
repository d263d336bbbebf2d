"""A decision as Markdown, for a pull request."""

from __future__ import annotations

from compressor.escaping import markdown
from compressor.gate import wording
from compressor.gate.decide import Decision, Verdict
from compressor.report.markdown import grid

MARKS = {Verdict.PASS: "✅", Verdict.FAIL: "❌", Verdict.INCONCLUSIVE: "❔"}


def render(decision: Decision) -> str:
    """The verdict, the table, and how to read it."""
    verdict = decision.verdict
    remarks = "\n".join(f"- {markdown(remark)}" for remark in wording.remarks(decision))
    head = f"### {MARKS[verdict]} llmc gate: {verdict}"
    return "\n\n".join([head, markdown(wording.headline(decision)), grid(wording.table(decision)), remarks]) + "\n"
