"""Keeps a row's scores on a task: every sample in a parquet file beside the ledger, their summary in the row."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor.ledger import SamplesRecord, StepRecord, TaskRecord
from compressor.measure import samples
from compressor.tasks.metrics import TOKENIZERS
from compressor.tasks.scoring import Scores, tokenizers_of
from compressor.tasks.task import LoadedTask

if TYPE_CHECKING:
    import pyarrow

JUDGED = {
    "classification": ("accuracy",),
    "question-answering": ("exact_match", "f1"),
    "generation": ("rougeL", "sentence_bleu"),
}


def table(loaded: LoadedTask, scores: Scores) -> pyarrow.Table:
    """One line a sample: its line in the data, what was right, what was said, and its scores."""
    import pyarrow

    columns = {
        "line": np.array([one.line for one in loaded.samples], np.int32),
        "answers": [_plain(loaded, one.answers) for one in loaded.samples],
        "prediction": scores.predictions,
        **{name: values.astype(np.float32) for name, values in scores.columns.items()},
    }
    if scores.likelihoods is not None:
        columns["likelihoods"] = list(scores.likelihoods.astype(np.float32))
    return pyarrow.table(columns)


def _plain(loaded: LoadedTask, answers: list[str] | int) -> list[str]:
    return answers if isinstance(answers, list) else [loaded.task.choices[answers].strip()]  # type: ignore[union-attr]


def keep(out: Path, row: StepRecord, loaded: LoadedTask, scores: Scores, runtime: str) -> TaskRecord:
    """Write the samples into the run's folder `out`, and put the record into the row, in place of an earlier one."""
    path = out / samples.path_of(f"{row.name}-task-{loaded.name}", f"{row.key} {loaded.name}")
    digest = samples.write(path, table(loaded, scores))
    record = TaskRecord(
        name=loaded.name,
        kind=loaded.task.kind,
        digest=loaded.digest,
        runtime=runtime,
        metrics=scores.metrics,
        judged=list(JUDGED[loaded.task.kind]),
        samples=SamplesRecord(path.relative_to(out).as_posix(), digest, len(loaded.samples)),
        tokenizers=tokenizers_of(loaded),
        broken=scores.broken,
    )
    row.tasks = [one for one in row.tasks if one.name != loaded.name] + [record]
    return record


def has_scores(out: Path, row: StepRecord, loaded: LoadedTask) -> bool:
    """Whether the row has been asked this task already, was scored alike, and its samples are as they were."""
    cut = TOKENIZERS | tokenizers_of(loaded)
    known = [one for one in row.tasks if one.name == loaded.name and one.digest == loaded.digest]
    same = [one for one in known if TOKENIZERS | one.tokenizers == cut]
    return bool(same) and samples.is_intact(out, same[0].samples)
