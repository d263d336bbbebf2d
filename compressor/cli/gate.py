"""`llmc gate`: is it good enough to ship?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.errors import InputError

if TYPE_CHECKING:
    from compressor.gate.decide import Decision
    from compressor.gate.limits import Limits


@click.command("gate")
@click.argument("ledger", type=click.Path(path_type=Path))
@click.option(
    "--against", metavar="LEDGER", type=click.Path(path_type=Path), help="Baseline run.  [default: the run's original]"
)
@click.option("--row", metavar="NAME", help="Row to judge.  [default: the artifact's]")
@click.option("--max-perplexity-increase", metavar="SHARE", help="Most that perplexity may rise, such as 2%.")
@click.option(
    "--max-accuracy-drop", metavar="SHARE", help="Most that accuracy may fall, in points: 2% lets 71% become 69%."
)
@click.option(
    "--max-latency-increase", metavar="SHARE", help="Most that times to the first token and per token may rise."
)
@click.option("--max-kl", metavar="NATS", help="Most that the KL divergence from the original may be.")
@click.option(
    "--lm-eval",
    nargs=2,
    metavar="BEFORE AFTER",
    type=click.Path(path_type=Path),
    help="Logs of `lm_eval --log_samples`: accuracy is then that of their tasks.",
)
@click.option("--alpha", metavar="SHARE", help="Chance of a wrong PASS, and of a wrong FAIL.  [default: 0.05]")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML here.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write Markdown here, for a pull request.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gate_command(
    ledger: Path,
    against: Path | None,
    row: str | None,
    lm_eval: tuple[Path, Path] | None,
    junit: Path | None,
    markdown: Path | None,
    as_json: bool,
    **limits: Any,
) -> int:
    """Judge the run in folder LEDGER (or of a ledger.json) by tests on what was measured of every token.

    \b
    llmc gate out --max-perplexity-increase 2% --max-accuracy-drop 1%
    llmc gate out --against last-release --max-perplexity-increase 1% --junit gate.xml

    \b
    Exit code 0: PASS; 1: FAIL; 3: INCONCLUSIVE; 2: it cannot be judged. Without limits here, those of the run's
    recipe hold.
    """
    from compressor.gate.gate import gate
    from compressor.gate.subject import Run
    from compressor.gate.tasks import load_pairs

    run = Run.open(ledger)
    base = None if against is None else Run.open(against)
    allowed = _limits(limits, run.ledger.recipe)
    if lm_eval and allowed.max_accuracy_drop is None:
        raise InputError("--lm-eval gives accuracies, and no limit is on them.", "Give --max-accuracy-drop.")
    tasks = load_pairs(*lm_eval) if lm_eval else []
    decision = gate(run, allowed, base, row, tasks)
    write_reports(decision, junit, markdown)
    present(decision, as_json)
    return decision.verdict.exit_code


def _limits(given: dict[str, Any], recipe: dict[str, Any]) -> Limits:
    """The limits of the command line, else the recipe's; `alpha` of the command line goes with either.

    Raises:
        InputError: one cannot be read, or there is none.
    """
    from pydantic import ValidationError

    from compressor.gate.limits import Limits

    given = {name: value for name, value in given.items() if value is not None}
    if not given.keys() - {"alpha"}:
        given = (recipe.get("gate") or {}) | given
    try:
        limits = Limits.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise InputError(
            f"{option} {first['input']} is not allowed. {first['msg'].removeprefix('Value error, ')}."
        ) from error
    if not limits.asked:
        raise InputError(
            "There is no limit to judge by.",
            "Give --max-perplexity-increase, --max-accuracy-drop, --max-latency-increase or --max-kl.",
        )
    return limits


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
