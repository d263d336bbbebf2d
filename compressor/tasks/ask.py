"""Asks a run's row the tasks that it has not been asked yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from compressor.ledger import Ledger, StepRecord
from compressor.measure.answers import Answerer
from compressor.pass_ import Progress
from compressor.tasks.keep import has_scores, keep
from compressor.tasks.scoring import Prompter, score
from compressor.tasks.task import LoadedTask


def ask(
    folder: Path,
    ledger: Ledger,
    row: StepRecord,
    tasks: Sequence[LoadedTask],
    prompter: Prompter,
    progress: Progress,
    answerer: Callable[[], Answerer],
) -> None:
    """Ask the row of a ledger, which is saved into the run's `folder` after every task.

    Args:
        answerer: opens what the row is of; not called where nothing is left to be asked.

    Raises:
        InputError: a sample does not fit the model, or a package for the metrics is missing.
        RunError: the runtime broke; the tasks before are kept.
    """
    missing = [task for task in tasks if not has_scores(folder, row, task)]
    if not missing:
        return
    with closing(answerer()) as opened:
        for task in missing:
            report = _report(progress, f"asking {row.name} {task.name}")
            keep(folder, row, task, score(task, opened, prompter, report), opened.runtime)
            ledger.save(folder)


def _report(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)
