"""Fixtures for tests of the gate: runs whose rows have given scores and times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor.ledger import ArtifactRecord, Ledger, SamplesRecord, StepRecord, TextRecord, Verification, load_ledger
from compressor.measure import samples
from compressor.measure.accuracy import TokenScores
from compressor.measure.latency import Latency
from compressor.measure.statistics import Estimate
from compressor.target import Artifact

WINDOWS, LENGTH = 40, 33
TOKENS = np.random.default_rng(0).integers(0, 256, (WINDOWS, LENGTH))


@pytest.fixture
def scores() -> Callable[..., TokenScores]:
    """`scores(worse=0.0, seed=1)`: a model whose losses are larger by `worse` on average; it is wrong more often
    where the losses say so.
    """
    return _scores


@pytest.fixture
def edit() -> Callable[[Path, Callable[[Ledger], Any]], None]:
    """`edit(out, change)`: the ledger of a run, changed."""

    def run(out: Path, change: Callable[[Ledger], Any]) -> None:
        ledger = load_ledger(out)
        change(ledger)
        ledger.save(out)

    return run


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Makes the folder of a run whose artifact, `onnx-int4`, has these scores."""

    def make(
        name: str = "out",
        found: TokenScores | None = None,
        origins: np.ndarray | None = None,
        milliseconds: float = 100.0,
        **texts: Any,
    ) -> Path:
        out = tmp_path / name
        out.mkdir()
        found = _scores() if found is None else found
        length = texts.pop("length", LENGTH)
        text = TextRecord("eval.txt", len(found.loss), length, texts.pop("digest", "d1"), [])
        same = TokenScores(
            found.original_loss,
            found.original_loss,
            found.kl * 0,
            found.same_top1,
            found.original_correct,
            found.original_correct,
        )
        rows = [
            _timed(_keep(out, "original", same), 100.0, []),
            _timed(_keep(out, "onnx-int4", found, origins), milliseconds, ["original", "onnx-int4"]),
        ]
        rows[0].key = texts.pop("original", "o1")
        verified = Verification("reader", 5, [])
        (out / "artifact").mkdir()
        (out / "artifact" / "model.onnx").write_bytes(b"weights")
        digest = Artifact(out / "artifact", "onnx-int4").digest
        artifact = ArtifactRecord("onnx-int4", "artifact", 1, digest, verified, "run it")
        machine = {"cpu": texts.pop("cpu", "X"), "cores": 2, "threads": 2}
        recipe: dict[str, Any] = {"passes": []}
        Ledger("m", recipe, environment=machine, texts={"evaluation": text}, steps=rows, artifact=artifact).save(out)
        return out

    return make


def _scores(worse: float = 0.0, seed: int = 1) -> TokenScores:
    shape = (WINDOWS, LENGTH - 1)
    original = np.random.default_rng(2).gamma(2.0, 1.0, shape).astype(np.float32)
    loss = (original + np.random.default_rng(seed).normal(worse, 0.1, shape)).astype(np.float32)
    return TokenScores(original, loss, np.abs(loss - original) / 10, np.ones(shape, bool), original < 1, loss < 1)


def _keep(out: Path, name: str, found: TokenScores, origins: np.ndarray | None = None) -> StepRecord:
    path = samples.path_of(name, name)
    digest = samples.write(out / path, samples.table(TOKENS[: len(found.loss)], origins, found))
    row = StepRecord(name, key=name, quality=found.quality, runtime="torch")
    row.samples = SamplesRecord(path.as_posix(), digest, found.loss.size)
    return row


def _timed(row: StepRecord, milliseconds: float, turns: list[str]) -> StepRecord:
    times = {"p50": milliseconds, "p95": milliseconds}
    repeats = [milliseconds * factor for factor in (1.0, 1.01, 0.99, 1.0, 1.01)]
    row.latency = [
        Latency(1, 8, 4, times, times, Estimate(1.0, 0.1), {"ttft_ms": repeats, "itl_ms": repeats[::-1]}, turns)
    ]
    return row
