"""`llmc verify`: is an artifact what it was when it was made?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from compressor.cli.engines import engine_option
from compressor.cli.paths import UserPath
from compressor.cli.say import say

if TYPE_CHECKING:
    from compressor.findings import Check, Verdict

SHOWN_FINDINGS = 12  # of one check, for people; --json has all
INCOMPLETE = 5  # exit code
UNITS = {"files": "files", "tokenizer": "texts", "weights": "weights", "generation": "tokens"}


@click.command("verify")
@click.argument("artifact", type=UserPath())
@engine_option
@click.option("--allow-unchecked", is_flag=True, help="Exit with 0 even if some checks could not run.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify_command(artifact: Path, allow_unchecked: bool, as_json: bool) -> int:
    """Check ARTIFACT (its folder, or the folder of its run) against its manifest. It needs no checkpoint.

    \b
    Exit code 0: everything was checked and is as recorded; 1: something is not; 2: there is no artifact; 5: nothing
    wrong was found, and not everything could be checked, such as the tokenizer and the generation where the
    runtime is not here.
    """
    from compressor.audit import audit, find_artifact
    from compressor.cli import emit_json
    from compressor.cli.progress import ConsoleProgress

    with ConsoleProgress(after=2.0) as progress:
        verdict = audit(find_artifact(artifact), progress)
    if as_json:
        emit_json(verdict.plain())
    else:
        _show(verdict)
    if verdict.findings:
        return 1
    return INCOMPLETE if verdict.unchecked and not allow_unchecked else 0


def _show(verdict: Verdict) -> None:
    if verdict.target is not None:
        maker = f", made by llmc {verdict.llmc}" if verdict.llmc else ""
        say(f"{verdict.artifact}: {verdict.target}{maker}")
    for check in verdict.checks:
        _show_check(check)
    count = len(verdict.findings)
    if count:
        say(f"Not as it was made: {count} finding{'s' if count > 1 else ''}.", fg="red", bold=True)
    elif verdict.unchecked:
        names = " and ".join(filter(None, [", ".join(verdict.unchecked[:-1]), verdict.unchecked[-1]]))
        say(f"Nothing wrong was found, but not everything was checked: not {names}.", fg="yellow", bold=True)
    else:
        say("As it was made.", fg="green", bold=True)


def _show_check(check: Check) -> None:
    for finding in check.findings[:SHOWN_FINDINGS]:
        _line("✗", "red", check.name, str(finding))
    if len(check.findings) > SHOWN_FINDINGS:
        _line("✗", "red", check.name, f"and {len(check.findings) - SHOWN_FINDINGS} more")
    if check.not_run is not None:
        _line("·", "yellow", check.name, f"not run: {check.not_run}")
    elif not check.findings:
        amount = f"{check.checked} {UNITS[check.name]} " if check.name in UNITS and check.checked else ""
        _line("✓", "green", check.name, amount + check.passed)
    for remark in check.remarks:
        _line("·", "yellow", check.name, remark)


def _line(mark: str, color: str, name: str, text: str) -> None:
    say(mark, fg=color, nl=False)
    say(f" {name:10} {text}")
