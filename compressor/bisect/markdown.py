"""A bisection as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compressor.bisect import wording
from compressor.bisect.terminal import quoted
from compressor.escaping import code, markdown
from compressor.report.markdown import grid
from compressor.report.tables import Table

if TYPE_CHECKING:
    from compressor.bisect.bisect import Bisection


def render(found: Bisection) -> str:
    """What is to blame, the tables, the repair, and how to read it."""
    change = wording.proposal(found)
    return laid_out(wording.headline(found), wording.tables(found), change, wording.remarks(found))


def laid_out(headline: str, tables: Sequence[Table], change: str | None, remarks: Sequence[str]) -> str:
    """The same of what was kept."""
    parts = ["### llmc bisect: to blame", markdown(headline), *map(grid, tables)]
    if change is not None:
        parts.append(f"Repair: {code(quoted(change))}")
    if remarks:
        parts.append("\n".join(f"- {markdown(remark)}" for remark in remarks))
    return "\n\n".join(parts) + "\n"
