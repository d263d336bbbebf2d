"""A decision in the terminal: the verdict in the first line."""

from __future__ import annotations

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from compressor.escaping import rich_text
from compressor.gate import wording
from compressor.gate.decide import Decision, Verdict

COLORS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow"}
WIDE = 110  # columns of a terminal that has room for the whole table
LEFT_OUT = ("before", "now")  # where there is none


def show(decision: Decision, console: Console) -> None:
    """Print the verdict, the table, and how to read it."""
    color = COLORS[decision.verdict]
    console.print(f"[bold {color}]{decision.verdict}[/]  {rich_text(wording.headline(decision))}", highlight=False)
    console.print()
    console.print(_table(decision, console.width))
    for remark in wording.remarks(decision):
        console.print(f"[yellow]•[/] {rich_text(remark)}", highlight=False)


def _table(decision: Decision, width: int) -> Table:
    plain = wording.table(decision)
    shown = [at for at in range(len(plain.headers)) if width >= WIDE or plain.headers[at] not in LEFT_OUT]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for at in shown:
        is_text = at in (0, len(plain.headers) - 1)
        justify: JustifyMethod = "left" if is_text else "right"
        table.add_column(
            rich_text(plain.headers[at]), justify=justify, no_wrap=at > 0, min_width=11 if at == 0 else None
        )
    for one, cells in zip(decision.findings, plain.rows, strict=True):
        *others, verdict = (rich_text(cells[at]) for at in shown)
        table.add_row(*others, f"[{COLORS[one.verdict]}]{verdict}[/]")
    return table
