"""`llmc gate`: is it good enough to ship?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.engines import engine_option
from compressor.cli.paths import RunPath, UserPath
from compressor.cli.say import say
from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.gate.decide import Decision
    from compressor.gate.limits import Limits
    from compressor.gate.subject import Run
    from compressor.ledger import TextRecord
    from compressor.texts import TokenSet


LIMITS = (
    ("--max-perplexity-increase", "SHARE", "Largest rise of perplexity, such as 2%."),
    ("--max-accuracy-drop", "SHARE", "Largest drop of accuracy, in points: 2% lets 71% become 69%."),
    ("--max-latency-increase", "SHARE", "Largest rise of the time to first token and per token."),
    ("--max-kl", "NATS", "Largest KL divergence from the original."),
    ("--alpha", "SHARE", "Probability of a wrong PASS, and of a wrong FAIL.  [default: 0.05]"),
)


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a verb the limits of a gate; `gate.limits.limits_of` reads them."""
    for name, metavar, said in reversed(LIMITS):
        command = click.option(name, metavar=metavar, help=said)(command)
    return command


@click.command("gate")
@click.argument("ledger", type=RunPath())
@click.option("--against", metavar="LEDGER", type=RunPath(), help="Baseline run.  [default: the run's original]")
@click.option("--row", metavar="NAME", help="Row to judge.  [default: the artifact's]")
@limit_options
@click.option(
    "--lm-eval",
    nargs=2,
    metavar="BEFORE AFTER",
    type=UserPath(),
    help="Logs of `lm_eval --log_samples`, to judge accuracy by their tasks.",
)
@click.option(
    "--more-samples", is_flag=True, help="If INCONCLUSIVE, measure more of the run's text until there is a verdict."
)
@click.option("--budget", type=click.FloatRange(0), default=30.0, show_default=True, help="Minutes for --more-samples.")
@click.option("--original", metavar="MODEL", help="Where the original model is now.  [default: where it was]")
@engine_option
@click.option("--junit", type=UserPath(), help="Write JUnit XML here.")
@click.option("--markdown", type=UserPath(), help="Write Markdown here, for a pull request.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gate_command(
    ledger: Path,
    against: Path | None,
    row: str | None,
    lm_eval: tuple[Path, Path] | None,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Judge the run in folder LEDGER (or a ledger.json) against limits, by statistical tests on every token.

    \b
    llmc gate out --max-perplexity-increase 2% --max-accuracy-drop 1%
    llmc gate out --against last-release --max-perplexity-increase 1% --junit gate.xml

    \b
    Exit code 0: PASS; 1: FAIL; 3: INCONCLUSIVE; 2: it cannot be judged: something is missing, or the artifact is not
    the one that was measured (its digest is compared first). Without limits here, those of the run's recipe hold. The
    verdict on what ships, without --row, goes into the reports in the run's folder.
    """
    from compressor.gate.limits import limits_of
    from compressor.gate.subject import Run

    run = Run.open(ledger)
    base = None if against is None else Run.open(against)
    more = {name: options.pop(name) for name in ("more_samples", "budget", "original")}
    allowed = limits_of(options, run.ledger.recipe)
    if lm_eval and allowed.max_accuracy_drop is None:
        raise InputError("--lm-eval gives accuracies, and no limit is on them.", "Give --max-accuracy-drop.")
    if more["more_samples"]:
        decision = _decide_with_more((run, base), row, allowed, lm_eval, more)
    else:
        decision = _decide((run, base), row, allowed, lm_eval)
    write_reports(decision, junit, markdown)
    if row is None:
        keep(run.folder, decision)
    present(decision, as_json)
    return decision.verdict.exit_code


def keep(folder: Path, decision: Decision) -> None:
    """Show the verdict on what ships in the run's own reports, where they lie beside the ledger."""
    from compressor.report.files import has_reports, keep_decision

    if not has_reports(folder):
        return
    try:
        keep_decision(folder, decision)
    except OSError as error:
        say(f"The reports in {folder} stay as they are: {error.strerror}.", err=True)


def _decide(
    runs: tuple[Run, Run | None], row: str | None, limits: Limits, lm_eval: tuple[Path, Path] | None
) -> Decision:
    from compressor.gate.gate import gate
    from compressor.gate.tasks import load_pairs

    return gate(runs[0], limits, runs[1], row, load_pairs(*lm_eval) if lm_eval else [])


def _decide_with_more(
    runs: tuple[Run, Run | None],
    row: str | None,
    limits: Limits,
    lm_eval: tuple[Path, Path] | None,
    how: dict[str, Any],
) -> Decision:
    """Judge, and measure more text where that cannot tell; `how` has the budget and the place of the model.

    Raises:
        InputError: no limit is on what more text tells, or something that was measured is not here any more.
    """
    import tempfile
    import time
    from contextlib import ExitStack

    from compressor.cli.progress import ConsoleProgress
    from compressor.gate.evidence import gather
    from compressor.gate.growing import Budget, Growing, until_decided
    from compressor.gate.subject import Subject
    from compressor.gate.tasks import load_pairs
    from compressor.only_one import only_one
    from compressor.reopen import Reopened

    subject = Subject.choose(*runs, row)
    tasks = load_pairs(*lm_eval) if lm_eval else []
    of_text, others = limits.split(has_tasks=bool(tasks or subject.row.tasks))
    if not of_text.asked:
        raise InputError(
            "--more-samples measures more text, but no limit is on a metric of the text.",
            "Give --max-perplexity-increase or --max-kl too, or leave out --more-samples.",
        )
    standing = gather(subject, others, tasks)
    with ExitStack() as stack:
        for folder in {run.folder.resolve() for run in runs if run is not None}:
            stack.enter_context(only_one(folder))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="llmc-"))
        progress = stack.enter_context(ConsoleProgress(after=2.0))
        places = [Path(scratch) / str(number) for number in range(len(runs))]
        growing = [
            Growing(Reopened(run, place, progress, how["original"]), subject.row.name, first_windows)
            for run, place in zip(runs, places, strict=True)
            if run is not None
        ]
        decision = until_decided(growing, of_text, Budget(60 * how["budget"], time.monotonic()), standing)
    decision.notes[:0] = subject.notes
    return decision


def first_windows(text: TextRecord, tokenizer: Any, windows: int) -> TokenSet:
    """The first windows of a text that a run was measured on, from its file."""
    from calibration.dataset import load_tokens

    return load_tokens(text.source, tokenizer, samples=windows, length=text.length, seed=None, allow_network=False)


def write_reports(decision: Decision, junit: Path | None, markdown: Path | None) -> None:
    """Write the files that were asked for, whole or not at all."""
    from compressor.files import write_whole
    from compressor.gate import junit as junit_xml
    from compressor.gate import markdown as pull_request

    for path, render in ((junit, junit_xml.render), (markdown, pull_request.render)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, render(decision))


def present(decision: Decision, as_json: bool) -> None:
    """Print a decision, as JSON or for people."""
    from rich.console import Console

    from compressor.cli import emit_json
    from compressor.gate.terminal import show

    if as_json:
        emit_json(decision.plain())
    else:
        show(decision, Console())
