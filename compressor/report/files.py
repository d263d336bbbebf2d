"""The reports that lie in a run's folder: `report.md` and `report.html`."""

from __future__ import annotations

from pathlib import Path

from compressor.bisect import markdown as bisect_markdown
from compressor.bisect.plain import load_shown
from compressor.files import write_whole
from compressor.gate import markdown as gate_markdown
from compressor.gate.decide import Decision, load_decision
from compressor.ledger import load_ledger
from compressor.report import comparison, html, markdown
from compressor.run_folder import runs_in

REPORTS = ("report.md", "report.html")


def render_html(path: Path) -> str:
    """The page of the run in a folder or of a ledger file; of a run for several targets, all of them compared."""
    several = runs_in(path) if path.is_dir() else []
    if several:
        return comparison.render(comparison.open_runs(several))
    folder = path if path.is_dir() else path.parent
    decision = load_decision(folder)
    return html.render(load_ledger(path), decision, load_shown(folder, decision))


def render_markdown(path: Path) -> str:
    """The same in Markdown."""
    several = runs_in(path) if path.is_dir() else []
    folders = several or [path if path.is_dir() else path.parent]
    decisions = [load_decision(folder) for folder in folders]
    ledgers = [load_ledger(folder) for folder in several or [path]]
    gates = [gate_markdown.render(one) for one in decisions if one is not None]
    blamed = [load_shown(folder, decision) for folder, decision in zip(folders, decisions, strict=True)]
    gates += [
        bisect_markdown.laid_out(one["headline"], one["tables"], one["repair"], one["remarks"])
        for one in blamed
        if one is not None
    ]
    return markdown.render(ledgers, gates)


def write_reports(folder: Path) -> None:
    """Write both from the ledger in a run's folder, and from the verdict of its gate where there is one."""
    for name, render in zip(REPORTS, (render_markdown, render_html), strict=True):
        write_whole(folder / name, render(folder))


def keep_decision(folder: Path, decision: Decision) -> None:
    """Keep the verdict on what a run ships in its folder, and write the reports again that show it.

    Raises:
        OSError: the folder cannot be written.
    """
    decision.save(folder)
    write_reports(folder)
    several = folder.resolve().parent
    if folder.resolve() in runs_in(several) and has_reports(several):
        write_reports(several)


def has_reports(folder: Path) -> bool:
    """Whether reports lie there, as `llmc compress` leaves them."""
    return any((folder / name).is_file() for name in REPORTS)
