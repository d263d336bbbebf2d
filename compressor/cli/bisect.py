"""`llmc bisect`: which pass made the gate fail, which layers of it, and what mends it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.gate import limit_options

if TYPE_CHECKING:
    from compressor.bisect.bisect import Bisection


@click.command("bisect")
@click.argument("ledger", type=click.Path(path_type=Path))
@click.option("--row", metavar="NAME", help="Row that the gate judges.  [default: the artifact's]")
@limit_options
@click.option("--budget", type=click.FloatRange(0), default=30.0, show_default=True, help="Minutes of trying layers.")
@click.option("--original", metavar="MODEL", help="Where the run's model is now.  [default: where it was]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bisect_command(
    ledger: Path, row: str | None, budget: float, original: str | None, as_json: bool, **options: Any
) -> None:
    """Blame the FAIL of the run in folder LEDGER on a pass, then on the fewest layers, and propose a repair.

    \b
    llmc bisect out --max-perplexity-increase 2%

    \b
    Passes are judged by what the run measured of every token; layers by trials: models whose blocks are those of the
    pass's step and of the step before. Without limits here, those of the run's recipe hold.
    """
    from rich.console import Console

    from compressor.bisect.terminal import show
    from compressor.cli import emit_json

    found = _bisect(ledger, row, budget, original, options)
    if as_json:
        emit_json(found.plain())
    else:
        show(found, Console())


def _bisect(ledger: Path, row: str | None, budget: float, model: str | None, options: dict[str, Any]) -> Bisection:
    import tempfile
    import time

    from compressor.bisect.bisect import bisect
    from compressor.cli.gate import first_windows, limits_of
    from compressor.cli.progress import ConsoleProgress
    from compressor.gate.subject import Run
    from compressor.reopen import Reopened

    run, end = Run.open(ledger), time.monotonic() + 60 * budget
    limits = limits_of(options, run.ledger.recipe)
    with tempfile.TemporaryDirectory(prefix="llmc-") as scratch, ConsoleProgress(after=2.0) as progress:
        reopened = Reopened(run, Path(scratch), progress, model)
        return bisect(reopened, limits, row, first_windows, lambda: time.monotonic() < end)
