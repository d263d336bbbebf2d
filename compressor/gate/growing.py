"""Measures more text until a gate can decide, and still is wrong no more often than it says.

Each look at the growing samples has a share of alpha of its own: alpha / (k (k + 1)) for look k, which add up to alpha
over however many looks there are. By the union bound the chance that any look gives a wrong PASS, or a wrong FAIL, is
alpha at most, whatever the looks have in common and whenever they end. It is alpha spending (Lan and DeMets, Biometrika
70, 1983, 659-663) with Bonferroni's bound in the place of the looks' joint distribution, which is not known here. How
much is measured between looks does not hang on what they show: each look has twice as much as the one before.

Times and tasks are judged beside it as they were measured. A row passes only if all metrics do, so that a wrong PASS
needs a wrong PASS of one that is beyond its limit: of one that does not grow this is the same claim at every look, and
has all of alpha. For a FAIL they are among the p-values that each look adjusts and holds against its own share.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.files import write_json
from compressor.gate.decide import Decision, Verdict
from compressor.gate.evidence import Evidence
from compressor.gate.gate import Standing, gate
from compressor.gate.limits import Limits
from compressor.gate.subject import ORIGINAL, Run
from compressor.ledger import SamplesRecord, StepRecord, TextRecord, load_ledger
from compressor.measure import samples
from compressor.measure.accuracy import Reference, Report, TokenScores, checkpoint_scores, session_scores
from compressor.reopen import Reopened
from compressor.run_folder import LEDGER_FILE
from compressor.texts import TokenSet
from compressor.tokenizer import tokenizer_of

FOLDER = "more-samples"  # below the run's own
LOOKS_FILE = "looks.json"
GROWTH = 2

# Of a text that was used, the first windows: as many as are asked for, or all that there are.
FirstWindows = Callable[[TextRecord, Any, int], TokenSet]


def spent(alpha: float, look: int) -> float:
    """The part of alpha that look number `look`, from 1, may spend."""
    return alpha / (look * (look + 1))


@dataclass
class Growing:
    """A run's judged row and its original, on more of the text than the run was measured on.

    What is measured lies in a folder of its own, as a run with two rows: the run itself stays as it is.

    Attributes:
        row: name of the judged row.
        text: gives the run's evaluation text again, through a tokenizer.
    """

    reopened: Reopened
    row: str
    text: FirstWindows

    def __post_init__(self) -> None:
        run = self.reopened.run
        self.folder = run.folder / FOLDER
        self.reopened.scratch.mkdir(parents=True, exist_ok=True)
        record = run.ledger.texts.get("evaluation")
        if record is None:
            raise InputError(f"{run.file} has no evaluation text, so there is nothing more to measure.")
        if self._first(record.windows).digest != record.digest:
            raise InputError(f"The text of {run.file} is another now: {record.source} gives other tokens.")
        if not self._goes_on():
            self._start()

    @property
    def run(self) -> Run:
        """What has been measured so far."""
        return Run.open(self.folder)

    @property
    def windows(self) -> int:
        return self.run.ledger.texts["evaluation"].windows

    @cached_property
    def _original(self) -> Checkpoint:
        return self.reopened.original()

    def _first(self, windows: int) -> TokenSet:
        record = self.reopened.run.ledger.texts["evaluation"]
        return self.text(record, tokenizer_of(self._original), windows)

    def _goes_on(self) -> bool:
        """Whether what lies there was begun from this row as it is now."""
        if not (self.folder / LEDGER_FILE).is_file():
            return False
        ledger, run = load_ledger(self.folder), self.reopened.run
        return [row.key for row in ledger.steps] == [run.row(ORIGINAL).key, run.row(self.row).key]

    def _start(self) -> None:
        run = self.reopened.run
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / samples.SAMPLES_FOLDER).mkdir(parents=True)
        rows = [run.row(ORIGINAL), run.row(self.row)]
        for row in rows:
            if row.samples is None:
                raise InputError(f"{run.file} keeps no results of single tokens for {row.name!r}.")
            samples.read(run.folder, row.samples)  # is it there, and what it was?
            shutil.copyfile(run.folder / row.samples.path, self.folder / row.samples.path)
        kept = [replace(row, latency=[], tasks=[]) for row in rows]
        replace(run.ledger, steps=kept, artifact=None).save(self.folder)

    def grow(self, wanted: int) -> int:
        """Measure up to `wanted` windows in all; how many there are now. The text may have no more."""
        text, known = self._first(wanted), self.windows
        found = len(text.tokens)
        if found > known:
            self._measure(text, known)
        return found

    def _measure(self, text: TokenSet, known: int) -> None:
        ledger = load_ledger(self.folder)
        original = self._original
        store = self.reopened.scratch / "more-states.npy"
        reference = Reference.make(original, text.tokens[known:], store, self._report("running the original on"))
        judged = self._scores(reference)
        itself = checkpoint_scores(original, reference, self._report("judging the original on"))
        for row, scores in zip(ledger.steps, (itself, judged), strict=True):
            self._append(row, text, scores)
        record = ledger.texts["evaluation"]
        documents = None if text.origins is None else len(text.origins.unique())
        ledger.texts["evaluation"] = replace(
            record, windows=len(text.tokens), digest=text.digest, documents=documents, notes=list(text.notes)
        )
        ledger.save(self.folder)

    def _scores(self, reference: Reference) -> TokenScores:
        run, report = self.reopened.run, self._report(f"judging {self.row} on")
        row = run.row(self.row)
        if not self.reopened.is_artifact(row):
            return checkpoint_scores(self.reopened.step(row), reference, report)
        with closing(self.reopened.session()) as session:
            return session_scores(session, reference, report)

    def _append(self, row: StepRecord, text: TokenSet, scores: TokenScores) -> None:
        """The row's samples with those of more windows behind them, and what they add up to."""
        assert row.samples is not None
        before = samples.read(self.folder, row.samples)
        shape = (-1, scores.loss.shape[1])
        whole = TokenScores(
            **{
                one.name: np.concatenate([before[one.name].reshape(shape), getattr(scores, one.name)])
                for one in fields(TokenScores)
            }
        )
        origins = None if text.origins is None else text.origins.int().numpy()
        path = self.folder / row.samples.path
        digest = samples.write(path, samples.table(text.tokens.numpy(), origins, whole))
        row.samples = SamplesRecord(row.samples.path, digest, whole.loss.size)
        row.quality = whole.quality

    def _report(self, what: str) -> Report:
        return lambda done, total: self.reopened.progress(f"{what} more text", done, total)


@dataclass(frozen=True)
class Budget:
    """Seconds of measuring; what the next batch takes is told from the last one."""

    seconds: float
    started: float

    @property
    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.started)


def until_decided(runs: list[Growing], limits: Limits, budget: Budget, standing: Sequence[Evidence] = ()) -> Decision:
    """Look, measure twice as much, look again: until there is a verdict, or an end of the text or of the budget.

    Args:
        runs: the judged run, and the baseline if there is one; they grow together.
        limits: on what the text tells.
        standing: evidence for the other limits, which does not grow.
    """
    a_window = 0.0
    while True:
        look = _next_look(runs[0])
        at_this_look = limits.model_copy(update={"alpha": spent(limits.alpha, look)})
        base = runs[1].run if len(runs) > 1 else None
        decision = gate(runs[0].run, at_this_look, base, runs[0].row, standing=Standing(standing, limits.alpha))
        known = runs[0].windows
        note = f"Look {look}, at {known} windows: alpha is {at_this_look.alpha:.2g}; all looks together are wrong at "
        decision.notes.append(f"{note}most {100 * limits.alpha:g}% of the time.")
        if decision.verdict is not Verdict.INCONCLUSIVE:
            return decision
        if all(one.verdict is Verdict.PASS for one in decision.findings[: len(decision.findings) - len(standing)]):
            decision.notes.append("The text has told what it can; what is open was measured apart from it.")
            return decision
        if a_window * known * (GROWTH - 1) > budget.left or budget.left <= 0:
            decision.notes.append("The budget is spent; the same command goes on from here.")
            return decision
        start = time.monotonic()
        found = min([one.grow(GROWTH * known) for one in runs])
        if found == known:
            decision.notes.append("The text has no more windows.")
            return decision
        a_window = (time.monotonic() - start) / (found - known)


def _next_look(growing: Growing) -> int:
    """Number of this look, counted on over all commands that have looked."""
    path = growing.folder / LOOKS_FILE
    look = 1 + (json.loads(path.read_text(encoding="utf-8"))["looks"] if path.is_file() else 0)
    write_json(path, {"looks": look})
    return look
