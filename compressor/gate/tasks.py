"""Task scores sample by sample, from the logs of lm-evaluation-harness (`lm_eval ... --log_samples`).

A log has one line a sample: `doc_id`, hashes of the document, the prompt and the expected answer, and the metrics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.errors import InputError
from compressor.json_lines import json_lines

LOG = re.compile(r"samples_(?P<task>.+?)(_\d{4}-\d\d-\d\dT.*)?\.jsonl")
METRICS = ("acc", "exact_match")  # those that are right or wrong, the first that a task has
EXACT = ("accuracy", "exact_match")  # the same of tasks that `llmc score` asks
HASHES = ("doc_hash", "prompt_hash", "target_hash")


@dataclass(frozen=True)
class TaskPairs:
    """How the same samples of a task were answered before and after."""

    task: str
    metric: str
    samples: int
    before: int  # right
    after: int
    lost: int  # right before, wrong after
    gained: int


@dataclass(frozen=True)
class ScorePairs:
    """Scores of the same samples before and after, larger is better, float64 [samples] each."""

    task: str
    metric: str
    before: np.ndarray
    after: np.ndarray

    def as_counts(self) -> TaskPairs | None:
        """The same as counts, of a metric that says right or wrong of every sample."""
        if self.metric not in EXACT:
            return None
        was, now = self.before == 1, self.after == 1
        counts = map(int, (len(was), was.sum(), now.sum(), (was & ~now).sum(), (now & ~was).sum()))
        return TaskPairs(self.task, self.metric, *counts)


@dataclass(frozen=True)
class _Sample:
    hashes: tuple[str, ...]
    right: bool


def load_pairs(before: Path, after: Path) -> list[TaskPairs]:
    """The tasks of two logs, or folders of logs, sample by sample.

    Raises:
        InputError: a log cannot be read, its scores are not right or wrong, or the two are not of the same samples.
    """
    first, second = _load(before), _load(after)
    if set(first) != set(second):
        odd = sorted(set(first) ^ set(second))[0]
        where = before if odd in first else after
        raise InputError(f"The task {odd[0]} ({odd[1]}) is in the logs of {where} only.")
    return [_pair(key, first[key], second[key], before, after) for key in sorted(first)]


def _pair(
    key: tuple[str, str], before: dict[Any, _Sample], after: dict[Any, _Sample], first: Path, second: Path
) -> TaskPairs:
    task, metric = key
    if before.keys() != after.keys():
        raise InputError(f"{first} and {second} hold other samples of {task}: {len(before)} and {len(after)}.")
    for name, sample in before.items():
        if sample.hashes != after[name].hashes:
            raise InputError(f"Sample {name[0]} of {task} has another text in {first} than in {second}.")
    pairs = [(sample.right, after[name].right) for name, sample in before.items()]
    return TaskPairs(
        task=task,
        metric=metric,
        samples=len(pairs),
        before=sum(was for was, _ in pairs),
        after=sum(now for _, now in pairs),
        lost=sum(was and not now for was, now in pairs),
        gained=sum(now and not was for was, now in pairs),
    )


def _load(path: Path) -> dict[tuple[str, str], dict[Any, _Sample]]:
    """Samples by task and metric, then by number and filter; of several logs of a task, the latest."""
    files = [path] if path.is_file() else sorted(path.rglob("samples_*.jsonl"), key=lambda one: one.name)
    logs = {found["task"]: file for file in files if (found := LOG.fullmatch(file.name))}
    if not logs:
        raise InputError(f"{path} has no samples_TASK.jsonl.", "lm_eval writes them with --log_samples --output_path.")
    tasks: dict[tuple[str, str], dict[Any, _Sample]] = {}
    for task, file in logs.items():
        for number, line in json_lines(file, skip_empty=True):
            metric = next((name for name in METRICS if name in line), None)
            if metric is None or line[metric] not in (0, 1):
                raise InputError(f"{file}:{number} has no score that is right or wrong ({' or '.join(METRICS)}).")
            name = line.get("doc_id"), line.get("filter", "none")
            samples = tasks.setdefault((task, metric), {})
            if name in samples:
                raise InputError(f"{file}:{number} is sample {name[0]} a second time.")
            samples[name] = _Sample(tuple(str(line.get(one)) for one in HASHES), bool(line[metric]))
    if not tasks:
        raise InputError(f"The logs in {path} are empty.")
    return tasks
