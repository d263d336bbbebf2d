"""Rows that need not be made or measured again: of the run that is resumed, and of those beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.ledger import StepRecord, load_ledger
from compressor.measure.samples import SAMPLES_FOLDER
from compressor.run_folder import LEDGER_FILE


@dataclass(frozen=True)
class EarlierRows:
    """Rows by key, each with the folder of its run; `out` is the folder of the run that asks for them."""

    out: Path
    rows: dict[str, tuple[StepRecord, Path]]

    @classmethod
    def of(cls, out: Path, others: Sequence[Path]) -> EarlierRows:
        """What the run in `out` left, then the others."""
        rows: dict[str, tuple[StepRecord, Path]] = {}
        for folder in (out, *others):
            steps = load_ledger(folder).steps if (folder / LEDGER_FILE).is_file() else []
            for row in steps:
                rows.setdefault(str(row.key), (row, folder))
        return cls(out, rows)

    def take(self, fresh: StepRecord) -> StepRecord:
        """The row with the key of `fresh`, its samples in the run's own folder; `fresh` itself where there is none."""
        row, folder = self.rows.get(str(fresh.key), (fresh, self.out))
        for record in (row.samples, *(task.samples for task in row.tasks)):
            if folder != self.out and record is not None and (folder / record.path).is_file():
                (self.out / SAMPLES_FOLDER).mkdir(exist_ok=True)
                shutil.copyfile(folder / record.path, self.out / record.path)
        return row
