"""A bisection in the terminal: what is to blame in the first line."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table as Grid

from compressor.bisect import wording
from compressor.escaping import rich_text
from compressor.gate.decide import Verdict
from compressor.gate.terminal import COLORS
from compressor.report.tables import Table

if TYPE_CHECKING:
    from compressor.bisect.bisect import Bisection


def show(found: Bisection, console: Console) -> None:
    """Print what is to blame, the rows, the layers, the repairs and the one that is proposed."""
    color = "red" if found.rows else COLORS[found.judged.verdict]
    console.print(f"[bold {color}]TO BLAME[/]  {rich_text(wording.headline(found))}", highlight=False)
    for table in wording.tables(found):
        console.print()
        console.print(_grid(table))
    change = wording.proposal(found)
    if change is not None:
        console.print(f"[bold]Repair[/]  {rich_text(quoted(change))}", highlight=False, soft_wrap=True)
    for remark in wording.remarks(found):
        console.print(f"[yellow]•[/] {rich_text(remark)}", highlight=False)


def quoted(change: str) -> str:
    """A change with its patterns safe from a shell."""
    word, _, spec = change.partition(" ")
    return f"{word} {shlex.quote(spec)}" if word.startswith("--") else change


def _grid(table: Table) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for at, header in enumerate(table.headers):
        grid.add_column(rich_text(header), justify="right" if at and header != "verdict" else "left")
    for row in table.rows:
        grid.add_row(*(_cell(cell) for cell in row))
    return grid


def _cell(cell: str) -> str:
    return f"[{COLORS[Verdict(cell)]}]{cell}[/]" if cell in list(Verdict) else rich_text(cell)
