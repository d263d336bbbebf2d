"""The ledger in the terminal."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from compressor.escaping import rich_text
from compressor.ledger import Ledger, together
from compressor.report import tables
from compressor.report.headline import headline


def show(ledgers: Sequence[Ledger], console: Console) -> None:
    """Print tables, remarks and verdict; of runs for several targets, each row once and a verdict for each."""
    ledger = together(ledgers)
    console.print()
    for table in tables.all_tables(ledger):
        console.print(_rich(table))
        console.print()
    for remark in tables.remarks(ledger):
        console.print(f"[yellow]•[/] {rich_text(remark)}", highlight=False)
    console.print()
    for one in ledgers:
        _show_artifact(one, console)


def _show_artifact(ledger: Ledger, console: Console) -> None:
    artifact = ledger.artifact
    console.print(f"[bold]{rich_text(headline(ledger))}[/]", highlight=False)
    passed = artifact is not None and not artifact.verified.mismatches
    console.print(
        f"[{'green' if passed else 'red'}]{'✓' if passed else '✗'}[/] {rich_text(tables.verdict(ledger))}",
        highlight=False,
    )
    if artifact is not None:
        console.print(f"  artifact  {rich_text(artifact.path)}  ({tables.size(artifact.size_bytes)})", highlight=False)
        script = shlex.quote(str(Path(artifact.path).with_name("run.sh")))
        console.print(f"  run it    sh {rich_text(script)}", highlight=False, soft_wrap=True)


def show_table(table: tables.Table, console: Console) -> None:
    """Print one table."""
    console.print(_rich(table))


def _rich(table: tables.Table) -> RichTable:
    drawn = RichTable(
        title=rich_text(table.title),
        title_style="bold",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for number, header in enumerate(table.headers):
        drawn.add_column(rich_text(header), justify="left" if number == 0 else "right", no_wrap=number > 0)
    for row in table.rows:
        drawn.add_row(*map(rich_text, row))
    return drawn
