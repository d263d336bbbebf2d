"""`llmc report`: the ledger of a run that is already there."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True, help="Print Markdown, as in report.md.")
@click.option("--json", "as_json", is_flag=True, help="Print the ledger as JSON.")
def report_command(run: Path, markdown: bool, as_json: bool) -> None:
    """Show the ledger of the run in folder RUN (or of a ledger.json); of a run for several targets, all of them."""
    from rich.console import Console

    from compressor.cli import emit_json
    from compressor.ledger import load_ledger, runs_in
    from compressor.report.markdown import render
    from compressor.report.terminal import show

    several = runs_in(run)
    ledgers = [load_ledger(folder) for folder in several or [run]]
    if as_json:
        found = {folder.name: ledger.plain() for folder, ledger in zip(several, ledgers, strict=False)}
        emit_json({"targets": found} if several else ledgers[0].plain())
    elif markdown:
        click.echo(render(ledgers), nl=False)
    else:
        show(ledgers, Console())
