"""`llmc report`: the ledger of a run that is already there."""

from __future__ import annotations

from pathlib import Path

import click

from compressor.cli.paths import RunPath, UserPath
from compressor.cli.say import say


@click.command("report")
@click.argument("run", type=RunPath(several=True))
@click.option("--markdown", is_flag=True, help="Print Markdown, as in report.md.")
@click.option("--html", type=UserPath(), metavar="FILE", help="Write one HTML file that needs no other.")
@click.option("--json", "as_json", is_flag=True, help="Print the ledger as JSON.")
def report_command(run: Path, markdown: bool, html: Path | None, as_json: bool) -> None:
    """Show the ledger of the run in folder RUN (or of a ledger.json); of a run for several targets, all of them.

    \b
    llmc report out                            # in the terminal
    llmc report out --markdown                 # as in report.md
    llmc report out --html out/report.html     # for a browser, as `llmc compress` writes it
    """
    from rich.console import Console

    from compressor.cli import emit_json
    from compressor.ledger import load_ledger
    from compressor.report.files import render_html, render_markdown
    from compressor.report.terminal import show
    from compressor.run_folder import runs_in

    if html is not None:
        _write(html, render_html(run))
    several = runs_in(run)
    ledgers = [load_ledger(folder) for folder in several or [run]]
    if as_json:
        found = {folder.name: ledger.plain() for folder, ledger in zip(several, ledgers, strict=False)}
        emit_json({"targets": found} if several else ledgers[0].plain())
    elif markdown:
        click.echo(render_markdown(run), nl=False)
    elif html is None:
        show(ledgers, Console())


def _write(path: Path, page: str) -> None:
    from compressor.files import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page)
    say(f"Written: {path}", err=True)
