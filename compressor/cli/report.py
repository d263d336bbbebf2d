"""`llmc report`: the ledger of a run that is already there."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True, help="Print Markdown, as in report.md.")
@click.option("--json", "as_json", is_flag=True, help="Print the ledger as JSON.")
def report_command(run: Path, markdown: bool, as_json: bool) -> None:
    """Show the ledger of the run in folder RUN (or of a ledger.json)."""
    from rich.console import Console

    from compressor.cli import emit_json
    from compressor.ledger import load_ledger
    from compressor.report.markdown import render
    from compressor.report.terminal import show

    ledger = load_ledger(run)
    if as_json:
        emit_json(ledger.plain())
    elif markdown:
        click.echo(render(ledger), nl=False)
    else:
        show(ledger, Console())
