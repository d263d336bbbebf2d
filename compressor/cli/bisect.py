"""`llmc bisect`: which pass made the gate fail, which layers of it, and what mends it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.gate import limit_options
from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.bisect.bisect import Bisection
    from compressor.gate.decide import Decision


@click.command("bisect")
@click.argument("ledger", type=click.Path(path_type=Path))
@click.option("--row", metavar="NAME", help="Row that the gate judges.  [default: the artifact's]")
@limit_options
@click.option("--budget", type=click.FloatRange(0), default=30.0, show_default=True, help="Minutes of trying layers.")
@click.option("--original", metavar="MODEL", help="Where the run's model is now.  [default: where it was]")
@click.option(
    "--apply", "out", type=click.Path(path_type=Path), help="New folder for a run with the repair, judged at its end."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bisect_command(
    ledger: Path, row: str | None, budget: float, original: str | None, out: Path | None, as_json: bool, **options: Any
) -> int:
    """Blame the FAIL of the run in folder LEDGER on a pass, then on the fewest layers, and propose a repair.

    \b
    llmc bisect out --max-perplexity-increase 2%

    \b
    Passes are judged by what the run measured of every token; layers by trials: models whose blocks are those of the
    pass's step and of the step before. Without limits here, those of the run's recipe hold. With --apply, the exit code
    is that of the gate on the repaired run.
    """
    from rich.console import Console

    from compressor.bisect.terminal import show
    from compressor.cli import emit_json
    from compressor.gate import terminal

    if out is not None and out.exists():
        raise InputError(f"{out} already exists.", "Choose another folder for the repaired run.")
    found = _bisect(ledger, row, budget, original, options)
    decision = None if out is None else _apply(ledger, found, out, original, options)
    if as_json:
        emit_json(found.plain() | ({} if decision is None else {"applied": decision.plain()}))
        return 0 if decision is None else decision.verdict.exit_code
    console = Console()
    show(found, console)
    if decision is None:
        return 0
    console.print(f"\n{out}:", highlight=False)
    terminal.show(decision, console)
    return decision.verdict.exit_code


def _apply(ledger: Path, found: Bisection, out: Path, model: str | None, options: dict[str, Any]) -> Decision:
    """Run the repair, and judge what ships then."""
    from compressor.bisect.apply import apply
    from compressor.cli.gate import limits_of
    from compressor.cli.progress import ConsoleProgress
    from compressor.cli.texts import RecipeTexts
    from compressor.gate.gate import gate
    from compressor.gate.subject import Run
    from compressor.report.files import write_reports

    if found.repair is None:
        raise InputError("There is no repair to apply.", found.notes[-1])
    run = Run.open(ledger)
    with ConsoleProgress() as progress:
        repaired = apply(run, found.repair, out, RecipeTexts(), progress, model)
    write_reports(out)
    return gate(repaired, limits_of(options, run.ledger.recipe))


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
