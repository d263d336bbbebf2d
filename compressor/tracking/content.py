"""What a tracker gets of a run: parameters, tags, a point of every metric for each row, and files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.gate.decide import GATE_FILE, load_decision
from compressor.ledger import Ledger, StepRecord, load_ledger
from compressor.report.figures import metrics
from compressor.run_folder import LEDGER_FILE

COSTS = ("size_bytes", "bits_per_weight", "seconds", "peak_rss_bytes", "zeros")
FILES = (LEDGER_FILE, GATE_FILE, "recipe.yaml", "report.html", "report.md")


@dataclass(frozen=True)
class Content:
    """A run, flat.

    Attributes:
        parameters: the recipe, with dots between the keys.
        tags: what figures depend on beside it: machine, packages, digests, and the gate's verdict.
        rows: name of each row of the ledger with its metrics, in order. Names of metrics have no spaces.
    """

    name: str
    parameters: dict[str, Any]
    tags: dict[str, str]
    rows: list[tuple[str, dict[str, float]]]
    files: list[Path]

    @classmethod
    def of(cls, path: Path) -> Content:
        """The run in a folder, or of a ledger file.

        Raises:
            InputError: there is no ledger, or what is there cannot be read.
        """
        ledger, folder = load_ledger(path), path if path.is_dir() else path.parent
        tags = dict(_flat(ledger.environment, "environment")) | _digests(ledger)
        decision = load_decision(folder)
        if decision is not None:
            tags["gate"] = str(decision.verdict)
        return cls(
            name=folder.resolve().name,
            parameters=dict(_flat(ledger.recipe, "")),
            tags={key: str(value) for key, value in tags.items()},
            rows=[(row.name, dict(_metrics(row))) for row in ledger.steps],
            files=[folder / name for name in FILES if (folder / name).is_file()],
        )


def _flat(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Leaves of nested mappings and lists, those of lists by their number."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in pairs:
            yield from _flat(item, f"{name}.{key}".lstrip("."))
    elif value is not None:
        yield name, value


def _digests(ledger: Ledger) -> dict[str, str]:
    found = {f"{role}_text": text.digest for role, text in ledger.texts.items()}
    if ledger.steps and ledger.steps[0].key:
        found["original"] = ledger.steps[0].key
    if ledger.artifact is not None:
        found |= {"target": ledger.artifact.target, "artifact": ledger.artifact.digest}
        found["verified"] = str(not ledger.artifact.verified.mismatches).lower()
    return found


def _metrics(row: StepRecord) -> Iterator[tuple[str, float]]:
    """Everything measured of a row that is a finite number; errors have names of their own."""
    values: dict[str, float | None] = {name: getattr(row, name) for name in COSTS}
    for name, estimate in metrics(row).items():
        values |= {name: estimate.value, f"{name}.stderr": estimate.stderr}
    for latency in row.latency:
        workload = f"batch{latency.batch}"
        times = {"ttft_ms": latency.ttft_ms, "itl_ms": latency.itl_ms}
        values |= {f"{workload}.{key}.{at}": value for key, known in times.items() for at, value in known.items()}
        values[f"{workload}.tokens_per_s"] = latency.tokens_per_s.value
    for name, value in values.items():
        if value is not None and math.isfinite(value):
            yield name.replace(" ", "."), float(value)
