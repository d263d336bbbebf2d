"""A bisection in the terminal: what is to blame in the first line."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from compressor.bisect.bisect import Bisection
from compressor.bisect.layers import LayerBlame
from compressor.bisect.passes import RowLoss
from compressor.bisect.repair import Repair
from compressor.gate import wording
from compressor.gate.decide import Decision
from compressor.gate.terminal import COLORS

MIB = 1 << 20


def show(found: Bisection, console: Console) -> None:
    """Print what is to blame, the rows, the layers and the repair."""
    console.print(f"[bold red]TO BLAME[/]  {escape(_headline(found))}", highlight=False)
    console.print()
    console.print(_rows(found.rows.losses))
    for line in [*_layers(found.layers), *_repair(found.repair)]:
        console.print(line, highlight=False)
    for note in found.notes:
        console.print(f"[yellow]•[/] {escape(note)}", highlight=False)


def _headline(found: Bisection) -> str:
    name = found.rows.guilty.row.name
    return name if found.layers is None else f"{', '.join(found.layers.blocks)} of {name}"


def _rows(losses: list[RowLoss]) -> Table:
    """A line a row: the verdict, and of every metric the change and the row's part in what is lost in the end."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("row")
    for one in losses[0].decision.findings:
        table.add_column(escape(one.title), justify="right")
        table.add_column("of the loss", justify="right")
    table.add_column("verdict")
    for loss in losses:
        cells = [cell for one in loss.decision.findings for cell in (
            wording.amount(one, one.change), _percent(loss.shares[one.metric]),
        )]  # fmt: skip
        table.add_row(escape(loss.row.name), *map(escape, cells), _verdict(loss.decision))
    return table


def _layers(layers: LayerBlame | None) -> list[str]:
    if layers is None:
        return []
    known = f"after {layers.trials} trials" + ("" if layers.is_minimal else ", when the budget was spent")
    needed = "none of them can be spared" if layers.is_minimal else "fewer may be enough"
    return [
        f"Taken back from the step before ({known}; {needed}): {_verdict(layers.decision)}  "
        f"{escape('; '.join(wording.sentence(one) for one in layers.decision.findings))}",
        *(f"  {escape(name)}: its outputs are off by {100 * error:.3g}%" for name, error in layers.errors.items()),
    ]


def _repair(repair: Repair | None) -> list[str]:
    if repair is None:
        return []
    return [
        f"[bold]Repair[/]  --pass {escape(repair.changed)}",
        f"  {repair.added_bytes / MIB:+.3g} MiB; measured with all other layers as they are.",
    ]


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.0f}%"


def _verdict(decision: Decision) -> str:
    return f"[{COLORS[decision.verdict]}]{decision.verdict}[/]"
