"""A bisection in words and in the cells of tables; terminal, Markdown and HTML only lay them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.bisect.kinds import BITS, SAMPLES, SKIP
from compressor.gate import wording
from compressor.gate.decide import Verdict
from compressor.report.tables import MISSING, Table, duration, estimate, size

if TYPE_CHECKING:
    from compressor.bisect.bisect import Bisection
    from compressor.bisect.candidates import Candidate
    from compressor.bisect.layers import LayerBlame
    from compressor.bisect.passes import RowLoss
    from compressor.bisect.repair import Repair, Trial

NAMES = {BITS: "more bits", SKIP: "left out", SAMPLES: "more text"}
IN_A_LINE, IN_A_TABLE = 3, 16  # layers that are named


def headline(found: Bisection) -> str:
    """What is to blame, in a line."""
    if found.rows is None:
        return {
            Verdict.PASS: f"Nothing: the gate passes. {wording.headline(found.judged)}.",
            Verdict.INCONCLUSIVE: f"Not known: the gate cannot tell. {wording.headline(found.judged)}. "
            "`llmc gate --more-samples` measures more.",
        }[found.judged.verdict]
    name = found.rows.guilty.row.name
    if found.layers is None:
        return name
    names = [unit.name for unit in found.layers.units]
    more = f" and {len(names) - IN_A_LINE} more" if len(names) > IN_A_LINE else ""
    return f"{', '.join(names[:IN_A_LINE])}{more} of {name}"


def tables(found: Bisection) -> list[Table]:
    """The rows with their parts in the loss, the blamed layers, and the repairs that were made."""
    if found.rows is None:
        return []
    shown = [_rows(found.rows.losses)]
    if found.layers is not None:
        shown.append(_layers(found.layers))
    made = [(one, one.trial) for one in found.repairs if one.trial is not None]
    return [*shown, _repairs(made, found.repair)] if made else shown


def proposal(found: Bisection) -> str | None:
    """The change that is proposed, as `llmc compress` would be told."""
    return None if found.repair is None else found.repair.candidate.change


def remarks(found: Bisection) -> list[str]:
    """How to read the tables, what was not tried, and what else has to be said."""
    said = []
    if found.layers is not None:
        said.append(_taken_back(found.layers))
    reasons = [f"{_name(one.candidate)}: {one.reason}" for one in found.repairs if one.reason is not None]
    said += [reason if reason.endswith((".", "!", "?")) else f"{reason}." for reason in reasons]
    if any(one.trial is not None for one in found.repairs):
        said.append(
            "Repairs were made and judged by the same samples; ± is the standard error of the paired difference from "
            "what failed. Each is one look at --alpha: judge what ships by `llmc gate`, on other text where it matters."
        )
    return [*said, *found.notes]


def _rows(losses: list[RowLoss]) -> Table:
    """A line a row: the verdict, and of every metric the change, and the row's part in what is lost in the end."""
    metrics = losses[0].decision.findings
    headers = ("row", "verdict", *(title for one in metrics for title in (one.title, "of the loss")))
    rows = []
    for loss in losses:
        cells = [cell for one in loss.decision.findings for cell in (
            wording.amount(one, one.change), _percent(loss.shares[one.metric]),
        )]  # fmt: skip
        rows.append((loss.row.name, str(loss.decision.verdict), *cells))
    return Table("Rows", headers, rows)


def _layers(layers: LayerBlame) -> Table:
    rows: list[tuple[str, ...]] = [
        (unit.name, MISSING if unit.error is None else _percent(unit.error, 3)) for unit in layers.units
    ]
    if len(rows) > IN_A_TABLE:
        rows = [*rows[: IN_A_TABLE - 1], (f"and {len(rows) - IN_A_TABLE + 1} more", "")]
    return Table("Layers to blame, and how far each puts its block's outputs off", ("layer", "off by"), rows)


def _taken_back(layers: LayerBlame) -> str:
    known = f"after {layers.trials} trials" + ("" if layers.is_minimal else ", when the budget was spent")
    needed = "none of them can be spared" if layers.is_minimal else "fewer may be enough"
    found = "; ".join(wording.sentence(one) for one in layers.decision.findings)
    return f"Taken back from the step before ({known}; {needed}): {layers.decision.verdict}, {found}."


def _repairs(made: list[tuple[Repair, Trial]], proposed: Repair | None) -> Table:
    metrics = made[0][1].decision.findings
    headers = ("repair", "verdict", *(title for one in metrics for title in (one.title, "change")), "size", "made in")
    rows = []
    for repair, trial in made:
        cells = []
        for one in trial.decision.findings:
            effect = trial.effects.get(one.metric)
            shown = MISSING if effect is None else estimate(effect, percent=one.unit != "nats")
            cells += [wording.amount(one, one.change), shown]
        name = _name(repair.candidate) + (", proposed" if repair is proposed else "")
        cost = (_added(trial.added_bytes), duration(trial.made.seconds))
        rows.append((name, str(trial.decision.verdict), *cells, *cost))
    return Table("Repairs", headers, rows)


def _name(one: Candidate) -> str:
    return NAMES[one.kind] + ("" if one.windows is None else f", {one.windows} windows")


def _added(count: int) -> str:
    sign = "+" if count > 0 else "-" if count < 0 else ""
    return sign + size(abs(count))


def _percent(share: float | None, digits: int = 0) -> str:
    if share is None:
        return MISSING
    return f"{100 * share:.{digits}g}%" if digits else f"{100 * share:.0f}%"
