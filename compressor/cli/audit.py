"""`llmc audit`: is calibration text fit for its purpose?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compressor.cli.say import say

if TYPE_CHECKING:
    from compressor.ledger import AuditRecord
    from compressor.pass_ import Progress

SAMPLES = 128
COLORS = {"ok": "green", "warning": "red", "not checked": "yellow"}


@click.command("audit")
@click.argument("text", metavar="TEXT")
@click.option("--model", required=True, help="The model to calibrate: a folder, .gguf file or hub id.")
@click.option("--eval", "evaluation", metavar="TEXT", help="The evaluation text.")
@click.option(
    "--samples",
    type=click.IntRange(1),
    help=f"Calibration windows.  [default: {SAMPLES}, or all where there are fewer]",
)
@click.option("--length", type=click.IntRange(8), default=512, show_default=True, help="Tokens of a window.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the calibration draw.")
@click.option(
    "--eval-length", type=click.IntRange(8), default=512, show_default=True, help="Tokens of an evaluation window."
)
@click.option("--strict", is_flag=True, help="Exit with 1 if there is a warning, or something could not be checked.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit_command(text: str, model: str, evaluation: str | None, strict: bool, as_json: bool, **windows: Any) -> int:
    """Check calibration TEXT, as `llmc compress` would draw it: tokens for each layer, duplicates, overlap with the
    evaluation text, languages, chat template.

    \b
    llmc audit train.jsonl --model ./my-model --eval evaluation.jsonl --strict

    \b
    Exit code 0: checked, with or without warnings; 1: with --strict, a warning or something that could not be checked;
    2: the text or the model cannot be read.
    """
    from dataclasses import asdict

    from compressor.cli import emit_json
    from compressor.cli.progress import ConsoleProgress

    with ConsoleProgress(after=2.0) as progress:
        checks = _audit(text, model, evaluation, windows, progress)
    passed = all(check.outcome == "ok" for check in checks)
    if as_json:
        emit_json({"passed": passed, "checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            _show(check)
    return int(strict and not passed)


def _audit(
    text: str, model: str, evaluation: str | None, windows: Mapping[str, Any], progress: Progress
) -> list[AuditRecord]:
    import tempfile

    from calibration.auditor import audit
    from calibration.dataset import load_at_most, load_tokens
    from compressor.source import open_model
    from compressor.tokenizer import load_tokenizer

    samples, length, seed = (windows[name] for name in ("samples", "length", "seed"))
    with tempfile.TemporaryDirectory(prefix="llmc-") as scratch:
        checkpoint = open_model(model, Path(scratch) / "import", progress=progress).checkpoint
        tokenizer = load_tokenizer(checkpoint.root)
        load = load_tokens if samples else load_at_most
        calibration = load(text, tokenizer, samples=samples or SAMPLES, length=length, seed=seed)
        length = windows["eval_length"]
        judged = evaluation and load_tokens(evaluation, tokenizer, samples=None, length=length, seed=None)
        return audit(calibration, judged or None, tokenizer, checkpoint.architecture)


def _show(check: AuditRecord) -> None:
    from compressor.report.tables import AUDIT_MARKS

    say(AUDIT_MARKS[check.outcome], fg=COLORS[check.outcome], nl=False)
    outcome = "not checked: " if check.outcome == "not checked" else ""
    say(f" {check.name:14} {outcome}{check.said}")
