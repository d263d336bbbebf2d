"""A decision in the terminal: the verdict in the first line."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compressor.gate import wording
from compressor.gate.decide import Decision, Verdict

COLORS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}


def show(decision: Decision, console: Console) -> None:
    """Print the verdict, the table, and how to read it."""
    color = COLORS[decision.verdict]
    console.print(f"[bold {color}]{decision.verdict}[/]  {escape(wording.headline(decision))}", highlight=False)
    console.print()
    console.print(_table(decision))
    for remark in wording.remarks(decision):
        console.print(f"[yellow]•[/] {escape(remark)}", highlight=False)


def _table(decision: Decision) -> Table:
    plain = wording.table(decision)
    table = Table(box=box.SIMPLE_HEAD)
    for number, header in enumerate(plain.headers):
        table.add_column(escape(header), justify="right" if 0 < number < len(plain.headers) - 1 else "left")
    for one, cells in zip(decision.findings, plain.rows, strict=True):
        *others, verdict = map(escape, cells)
        table.add_row(*others, f"[{COLORS[one.verdict]}]{verdict}[/]")
    return table
