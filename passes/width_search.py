"""Which of several ways to prune costs least: each is tried on some of the calibration text and judged on other."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from compressor.checkpoint import Checkpoint
from compressor.files import TEMPORARY_PREFIX
from compressor.measure.accuracy import Reference, checkpoint_scores
from compressor.measure.statistics import Estimate
from compressor.pass_ import Pass, PassContext
from compressor.report.numbers import estimate

Way = TypeVar("Way")

# Windows that a way is calibrated on, and that it is judged on: ways are far apart where it matters.
CALIBRATED_ON, JUDGED_ON = 24, 8


def compare(checkpoint: Checkpoint, ways: Mapping[Way, Pass], context: PassContext) -> Way:
    """The way of least divergence from the model as it was; the ledger is told those of all.

    Args:
        ways: each with the pass that goes it. What it leaves is on disk for as long as it is judged.
    """
    assert context.tokens is not None  # `needs` says so
    judged = max(1, min(JUDGED_ON, len(context.tokens) // 4))
    seen, unseen = context.tokens[:-judged][:CALIBRATED_ON], context.tokens[-judged:]
    if not len(seen):  # a single window
        seen = unseen
    found: dict[Way, Estimate] = {}
    with TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=context.out.parent) as name:
        reference = Reference.make(checkpoint, unseen, Path(name) / "reference.npy", _quiet)
        for number, (way, one) in enumerate(ways.items(), start=1):
            trial = replace(context, out=Path(name) / "trial", tokens=seen, notes=[], progress=_silent)
            found[way] = checkpoint_scores(one.apply(checkpoint, trial), reference, _quiet).quality.kl
            shutil.rmtree(trial.out)
            context.progress("comparing splits", number, len(ways))
    listed = "; ".join(f"{way}: {estimate(kl)}" for way, kl in found.items())
    context.notes.append(f"KL in nats on {judged} windows of the calibration text, for each split: {listed}")
    return min(found, key=lambda way: found[way].value)


def _quiet(done: int, total: int) -> None:
    """Progress of a trial, that nobody looks at."""


def _silent(what: str, done: int, total: int) -> None:
    """The same of a pass."""
