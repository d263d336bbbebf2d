"""A bisection as JSON values."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.bisect import wording
from compressor.files import write_json
from compressor.gate.decide import Decision
from compressor.ledger import finite
from compressor.report.tables import Table

if TYPE_CHECKING:
    from compressor.bisect.bisect import Bisection
    from compressor.bisect.layers import LayerBlame
    from compressor.bisect.passes import RowLoss
    from compressor.bisect.repair import Repair

SCHEMA = 2
FILE = "bisect.json"  # in a run's folder: what is to blame for the verdict of its gate


def plain(found: Bisection) -> dict[str, Any]:
    """Everything that was found; `schema` is the version of the layout."""
    judged, rows = found.judged, [] if found.rows is None else found.rows.losses
    return finite(
        {
            "schema": SCHEMA,
            "ledger": judged.ledger,
            "against": judged.against,
            "gate": judged.plain(),
            "blamed": None if found.rows is None else found.rows.guilty.row.name,
            "rows": [_row(one) for one in rows],
            "layers": None if found.layers is None else _layers(found.layers),
            "repairs": [_repair(one) for one in found.repairs],
            "repair": None if found.repair is None else _repair(found.repair),
            "notes": found.notes,
        }
    )


def save(found: Bisection, folder: Path) -> None:
    """Keep it in a run's folder, with what reports show of it."""
    shown = {
        "headline": wording.headline(found),
        "tables": [asdict(table) for table in wording.tables(found)],
        "repair": wording.proposal(found),
        "remarks": wording.remarks(found),
    }
    write_json(folder / FILE, plain(found) | {"shown": shown})


def load_shown(folder: Path, decision: Decision | None) -> dict[str, Any] | None:
    """What reports show of a bisection that explains this decision; None where there is none."""
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    explains = decision is not None and kept.get("gate") == json.loads(json.dumps(decision.plain()))
    shown = kept.get("shown") if explains and kept.get("schema") == SCHEMA else None
    return None if shown is None else shown | {"tables": [Table(**table) for table in shown["tables"]]}


def _row(one: RowLoss) -> dict[str, Any]:
    changes = {found.metric: found.change for found in one.decision.findings}
    return {"name": one.row.name, "verdict": one.decision.verdict, "changes": changes, "shares": one.shares}


def _layers(one: LayerBlame) -> dict[str, Any]:
    return {
        "units": [{"name": unit.name, "linears": list(unit.linears), "error": unit.error} for unit in one.units],
        "taken_back": one.decision.plain(),
        "trials": one.trials,
        "minimal": one.is_minimal,
    }


def _repair(one: Repair) -> dict[str, Any]:
    candidate, trial = one.candidate, one.trial
    recipe = None if candidate.recipe is None else candidate.recipe.model_dump(mode="json", exclude_none=True)
    head = {"kind": candidate.kind, "change": candidate.change, "mends": one.mends, "reason": one.reason}
    if trial is None:
        return head | {"added_bytes": None, "seconds": None, "measured": None, "effects": {}, "recipe": recipe}
    return head | {
        "added_bytes": trial.added_bytes,
        "seconds": trial.made.seconds,
        "measured": trial.decision.plain(),
        "effects": {metric: asdict(effect) for metric, effect in trial.effects.items()},
        "recipe": recipe,
    }
