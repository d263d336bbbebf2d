"""The reports that lie in a run's folder: `report.md` and `report.html`."""

from __future__ import annotations

from pathlib import Path

from compressor.files import write_whole
from compressor.gate import markdown as gate_markdown
from compressor.gate.decide import load_decision
from compressor.ledger import load_ledger, runs_in
from compressor.report import comparison, html, markdown


def render_html(path: Path) -> str:
    """The page of the run in a folder or of a ledger file; of a run for several targets, all of them compared."""
    several = runs_in(path) if path.is_dir() else []
    if several:
        return comparison.render(comparison.open_runs(several))
    return html.render(load_ledger(path), load_decision(path if path.is_dir() else path.parent))


def render_markdown(path: Path) -> str:
    """The same in Markdown."""
    several = runs_in(path) if path.is_dir() else []
    folders = several or [path if path.is_dir() else path.parent]
    decisions = [load_decision(folder) for folder in folders]
    ledgers = [load_ledger(folder) for folder in several or [path]]
    return markdown.render(ledgers, [gate_markdown.render(one) for one in decisions if one is not None])


def write_reports(folder: Path) -> None:
    """Write both from the ledger in a run's folder, and from the verdict of its gate where there is one."""
    write_whole(folder / "report.md", render_markdown(folder))
    write_whole(folder / "report.html", render_html(folder))
