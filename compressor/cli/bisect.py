"""`llmc bisect`: which pass made the gate fail, which layers of it, and what mends it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.gate import limit_options
from compressor.cli.paths import RunPath, UserPath
from compressor.cli.say import say
from compressor.errors import InputError, Interrupted
from compressor.escaping import rich_text

if TYPE_CHECKING:
    from compressor.bisect.bisect import Bisection
    from compressor.bisect.passes import FailedGate
    from compressor.gate.decide import Decision
    from compressor.gate.subject import Run
    from compressor.pass_ import Progress


@click.command("bisect")
@click.argument("ledger", type=RunPath())
@click.option("--against", metavar="LEDGER", type=RunPath(), help="Baseline run.  [default: the run's original]")
@click.option("--row", metavar="NAME", help="Row that the gate judges.  [default: the artifact's]")
@limit_options
@click.option(
    "--budget",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Minutes for trials of layers and repairs.",
)
@click.option("--original", metavar="MODEL", help="Where the original model is now.  [default: where it was]")
@click.option("--apply", "out", type=UserPath(), help="New folder for a run with the repair, judged at its end.")
@click.option("--markdown", type=UserPath(), help="Write Markdown here, for a pull request.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bisect_command(
    ledger: Path,
    against: Path | None,
    row: str | None,
    out: Path | None,
    markdown: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Find the pass and the layers that caused a gate failure of the run in folder LEDGER, and propose a repair.

    \b
    llmc bisect out --max-perplexity-increase 2%
    llmc bisect out --max-perplexity-increase 2% --apply mended

    \b
    Passes are judged by what the run measured of every token; layers by trials: models whose layers are those of the
    pass's step or of the step before. More bits for the blamed layers, leaving them out and more calibration text are
    then really made and judged; proposed is the one that adds the fewest bytes. Without limits here, those of the run's
    recipe hold.

    \b
    Exit code 0: something is to blame, or the gate passes and nothing is; 3: the gate cannot tell; 2: something is
    missing. With --apply, the gate's on the repaired run.
    """
    from compressor.bisect.kept import workplace
    from compressor.cli.progress import ConsoleProgress
    from compressor.gate.limits import limits_of
    from compressor.gate.subject import Run

    if out is not None and out.exists():
        raise InputError(f"{out} already exists.", "Choose another folder for the repaired run.")
    run, base = Run.open(ledger), None if against is None else Run.open(against)
    budget, original = options.pop("budget"), options.pop("original")
    limits = limits_of(options, run.ledger.recipe)
    decision = None
    failed, notes = _gate(run, base, limits, row)
    with workplace(run.folder) as scratch:
        with ConsoleProgress(after=2.0) as progress:
            found = _bisect(failed, notes, scratch, (progress, budget, original))
        if row is None:
            _keep(run.folder, found)
        if out is not None and found.rows is not None:
            decision = _apply(run, failed, found, out, original)
    if markdown is not None:
        _write(markdown, found)
    _present(found, out, decision, as_json)
    return found.exit_code if decision is None else decision.verdict.exit_code


def _gate(run: Run, base: Run | None, limits: Any, row: str | None) -> tuple[FailedGate, list[str]]:
    from compressor.bisect.passes import FailedGate, text_only, without_tasks

    run, limits, notes = text_only(run, limits)
    return FailedGate.of(run, limits, None if base is None else without_tasks(base), row), notes


def _bisect(failed: FailedGate, notes: list[str], scratch: Path, how: tuple[Progress, float, str | None]) -> Bisection:
    import time

    from compressor.bisect.bisect import Bisection, Sources, bisect
    from compressor.cli.gate import first_windows
    from compressor.gate.decide import Verdict
    from compressor.gate.growing import Budget
    from compressor.recipe_texts import RecipeTexts
    from compressor.reopen import Reopened

    if failed.judged.verdict is not Verdict.FAIL:
        return Bisection(failed.judged, notes=notes)
    progress, budget, original = how
    reopened = Reopened(failed.run, scratch, progress, original)
    return bisect(reopened, failed, notes, Sources(first_windows, RecipeTexts()), Budget(60 * budget, time.monotonic()))


def _apply(run: Run, failed: FailedGate, found: Bisection, out: Path, model: str | None) -> Decision:
    """Run the repair, and judge what ships then, or the row in the place of the judged one."""
    from compressor.bisect.apply import apply
    from compressor.cli.progress import ConsoleProgress
    from compressor.gate.gate import gate
    from compressor.recipe_texts import RecipeTexts
    from compressor.report.files import keep_decision

    if found.repair is None:
        raise InputError("There is no repair to apply.", found.notes[-1])
    try:
        with ConsoleProgress() as progress:
            repaired = apply(run, found.repair, out, RecipeTexts(), progress, model)
    except KeyboardInterrupt as stopped:
        if not (out / "recipe.yaml").is_file():
            raise
        hint = f"`llmc compress --recipe {out / 'recipe.yaml'} -o {out} --resume` goes on with the repaired run."
        raise Interrupted(hint) from stopped
    decision = gate(repaired, failed.limits, failed.base, base_row=failed.judged.row if failed.base else None)
    keep_decision(out, decision)
    return decision


def _keep(folder: Path, found: Bisection) -> None:
    """Show what is to blame in the run's own reports, where they lie beside the ledger."""
    from compressor.bisect.plain import save
    from compressor.cli.gate import keep
    from compressor.report.files import has_reports

    if found.rows is None or not has_reports(folder):
        return
    try:
        save(found, folder)
    except OSError as error:
        say(f"What is to blame is not kept in {folder}: {error.strerror}.", err=True)
        return
    keep(folder, found.judged)


def _write(path: Path, found: Bisection) -> None:
    from compressor.bisect.markdown import render
    from compressor.files import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, render(found))


def _present(found: Bisection, out: Path | None, decision: Decision | None, as_json: bool) -> None:
    from rich.console import Console

    from compressor.bisect.plain import plain
    from compressor.bisect.terminal import show
    from compressor.cli import emit_json
    from compressor.gate import terminal

    if as_json:
        emit_json(plain(found) | ({} if decision is None else {"applied": decision.plain()}))
        return
    console = Console()
    show(found, console)
    if decision is not None:
        console.print(f"\n{rich_text(out)}:", highlight=False)
        terminal.show(decision, console)
