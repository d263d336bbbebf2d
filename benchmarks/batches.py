"""What it gives to ask a runtime several texts at once.

    python benchmarks/batches.py FOLDER ... --task FILE ... [--batch-size 8] [--turns 5]

Scores tasks of folders (model folders, steps, artifacts) one text at a time and in batches, in turns, and prints as
Markdown the CPU seconds of the answers, their ratio, and how many were others. Each folder is opened once a size.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.environment import environment
from compressor.measure import BATCH_SIZE
from compressor.measure.answers import Answerer, CheckpointAnswerer
from compressor.measure.statistics import mean
from compressor.open_folder import open_folder
from compressor.report.markdown import grid
from compressor.report.tables import Table, estimate
from compressor.tasks.scoring import Prompter, score
from compressor.tasks.task import Classification, LoadedTask, load_tasks

HEADERS = ("runtime", "task", "samples", "batch", "CPU s one at a time", "CPU s in batches", "ratio", "other answers")


def main() -> None:
    """Print the page."""
    given = _arguments()
    torch.set_num_threads(1)
    tasks, rows = load_tasks(given.tasks), []
    for folder in given.folders:
        with ExitStack() as stack:
            asked = {size: _open(folder, size, stack) for size in (1, *given.sizes)}
            is_step = isinstance(asked[1][0], CheckpointAnswerer)
            fitting = [task for task in tasks if not (is_step and isinstance(task.task, Classification))]
            rows += [_row(asked, task, size, given.turns) for task in fitting for size in given.sizes]
    print("# Texts in batches\n\nPrinted by `benchmarks/batches.py`: tasks scored one text at a time and in batches,")
    print(f"in {given.turns} turns. {environment()['cpu']}.\n")
    print(grid(Table("", HEADERS, rows)))
    print("\nThe ratio is the mean over turns ± its standard error; below 1, batches take less. Choices of a step go")
    print("through it block by block in either case, and are left out.")


Asked = tuple[Answerer, Prompter]


class Timed:
    """An answerer and the CPU seconds that its answers took: scoring them takes the same in either case."""

    def __init__(self, answerer: Answerer) -> None:
        self.runtime, self.longest, self.close = answerer.runtime, answerer.longest, answerer.close
        self.likelihoods, self.generate = self._timed(answerer.likelihoods), self._timed(answerer.generate)
        self.seconds = 0.0

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*words: Any) -> Any:
            start = time.process_time()
            found = method(*words)
            self.seconds += time.process_time() - start
            return found

        return timed


def _open(folder: Path, size: int, stack: ExitStack) -> Asked:
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    answerer, prompter = open_folder(folder, scratch, _quiet, size)
    return stack.enter_context(closing(answerer)), prompter


def _row(asked: Mapping[int, Asked], task: LoadedTask, size: int, turns: int) -> tuple[str, ...]:
    alone, together = (score(task, *asked[one], _silent).predictions for one in (1, size))  # warms up, too
    spent: dict[int, list[float]] = {1: [], size: []}
    for turn in range(turns):
        for one in (1, size)[:: 1 if turn % 2 else -1]:
            timed = Timed(asked[one][0])
            score(task, timed, asked[one][1], _silent)
            spent[one].append(timed.seconds)
    once, batches = np.array(spent[1]), np.array(spent[size])
    differ = sum(one != other for one, other in zip(alone, together, strict=True))
    return (
        asked[1][0].runtime,
        task.name,
        str(len(task.samples)),
        str(size),
        f"{once.mean():.2f}",
        f"{batches.mean():.2f}",
        estimate(mean(batches / once), least=2),
        str(differ),
    )


def _quiet(what: str, done: int, total: int) -> None: ...


def _silent(done: int, total: int) -> None: ...


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--task", dest="tasks", action="append", type=Path, required=True)
    parser.add_argument("--batch-size", dest="sizes", action="append", type=int)
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    given.sizes = given.sizes or [BATCH_SIZE]
    return given


if __name__ == "__main__":
    main()
