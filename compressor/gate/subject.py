"""What is judged and what it is compared with: two rows that were measured on the same data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compressor.errors import InputError, nearest
from compressor.gate.shipped import check_shipped
from compressor.gate.tasks import ScorePairs
from compressor.ledger import Ledger, StepRecord, TaskRecord, load_ledger
from compressor.measure import samples
from compressor.measure.latency import Latency
from compressor.run_folder import LEDGER_FILE
from compressor.tasks.metrics import TOKENIZERS

ORIGINAL = "original"
MACHINE = ("cpu", "cores", "threads")


@dataclass(frozen=True)
class Run:
    """A ledger, and the folder that its samples are in."""

    folder: Path
    ledger: Ledger

    @classmethod
    def open(cls, path: Path) -> Run:
        """The run in a folder, or of a ledger file.

        Raises:
            InputError: there is no ledger, or it is of another version.
        """
        return cls(path if path.is_dir() else path.parent, load_ledger(path))

    @property
    def file(self) -> Path:
        return self.folder / LEDGER_FILE

    def row(self, name: str) -> StepRecord:
        """The row of a name.

        Raises:
            InputError: there is none, or several are called so.
        """
        names = [row.name for row in self.ledger.steps]
        if name not in names:
            raise InputError(f"{self.file} has no row {name!r}; {nearest(name, names)}")
        if names.count(name) > 1:
            raise InputError(f"{names.count(name)} rows of {self.file} are called {name!r}; they cannot be told apart.")
        return self.ledger.steps[names.index(name)]

    def is_artifact(self, row: StepRecord) -> bool:
        """Whether a row is that of the artifact as it ships."""
        artifact = self.ledger.artifact
        return artifact is not None and row is self.ledger.steps[-1] and row.name == artifact.target

    def tokens(self, row: StepRecord) -> dict[str, np.ndarray]:
        """What was measured of every token of a row; see `samples.read`.

        Raises:
            InputError: nothing was, or it is not there any more.
        """
        if row.samples is not None:
            self._check_whole(row, row.samples.count)
            return samples.read(self.folder, row.samples)
        if row.quality is not None:
            raise InputError(
                f"{self.file} keeps no results of single tokens for {row.name!r}: it is of an earlier version.",
                "`llmc compress --resume` measures them.",
            )
        reason = row.not_run or "no evaluation text was given"
        raise InputError(f"The accuracy of {row.name!r} was not measured in {self.file}: {reason}.")

    def _check_whole(self, row: StepRecord, tokens: int) -> None:
        """A runtime that broke has judged less than the others, and is not fit to ship whatever it told before."""
        text = self.ledger.texts.get("evaluation")
        # None at all is told when they are read.
        if text is not None and 0 < tokens < text.windows * (text.length - 1):
            why = f": {row.not_run}" if row.not_run else ""
            raise InputError(
                f"{row.name!r} of {self.file} was judged on a part of the text only{why}.",
                "`llmc compress --resume` measures it again.",
            )


@dataclass(frozen=True)
class TokenPairs:
    """Every predicted token under both, [tokens] each. `cluster` says which of them may depend on each other."""

    before_loss: np.ndarray
    after_loss: np.ndarray
    before_correct: np.ndarray
    after_correct: np.ndarray
    kl: np.ndarray
    cluster: np.ndarray
    unit: str


@dataclass(frozen=True)
class LatencyPair:
    """One workload under both; `in_turns` when each repeat of one was followed by one of the other."""

    before: Latency
    after: Latency
    in_turns: bool

    @property
    def workload(self) -> str:
        return f"batch {self.after.batch}, {self.after.prompt} + {self.after.output} tokens"


@dataclass(frozen=True)
class Subject:
    """The row that is judged, what with, and what has to be said about it.

    Attributes:
        base_name: of the baseline's row that it is compared with; None is the row of the same name.
    """

    run: Run
    row: StepRecord
    base: Run | None
    notes: list[str] = field(default_factory=list)
    base_name: str | None = None

    @classmethod
    def choose(cls, run: Run, base: Run | None, name: str | None, base_name: str | None = None) -> Subject:
        """The row called `name`, else the artifact's, else where that was not run the step it was made from.

        Raises:
            InputError: there is no such row, its artifact is not the one that was measured, or the baseline was
                measured on other data.
        """
        notes: list[str] = []
        row = _shipped(run, notes) if name is None else run.row(name)
        if name is None or run.is_artifact(row):
            check_shipped(run.folder, run.ledger)
        if run.ledger.digest is None:
            notes.append(f"{run.file} is of an earlier version and has no digest of itself: a change would not show.")
        if base is None and row.name == ORIGINAL:
            raise InputError("The original is what rows are compared with.", "Name another with --row, or --against.")
        if base is not None:
            _check_same_data(run, base)
        return cls(run, row, base, notes, base_name)

    @property
    def against(self) -> str:
        return ORIGINAL if self.base is None else f"{self.base_name or self.row.name} of {self.base.folder}"

    def _base_row(self, base: Run) -> StepRecord:
        return base.row(self.base_name or self.row.name)

    def tokens(self) -> TokenPairs:
        """The samples of both, pair by pair.

        Raises:
            InputError: one has none, or they are not of the same tokens.
        """
        after = self.run.tokens(self.row)
        if self.base is None:
            loss, correct = after["original_loss"], after["original_correct"]
        else:
            before = self.base.tokens(self._base_row(self.base))
            if any(not np.array_equal(before[name], after[name]) for name in ("window", "document", "token")):
                raise InputError(f"The samples of {self.base.file} are of other tokens than those of {self.run.file}.")
            loss, correct = before["loss"], before["correct"]
        if not np.isfinite(loss).all():
            raise InputError(f"{self.against} has losses that are not finite; nothing can be compared with it.")
        known = bool((after["document"] >= 0).all())
        cluster, unit = (after["document"], "document") if known else (after["window"], "window")
        return TokenPairs(loss, after["loss"], correct, after["correct"], after["kl"], cluster, unit)

    def scores(self) -> list[ScorePairs]:
        """Scores of the tasks that the row was asked, sample by sample; none where it was asked none.

        Raises:
            InputError: what it is compared with was not asked the same.
        """
        run, row = (self.run, self.run.row(ORIGINAL)) if self.base is None else (self.base, self._base_row(self.base))
        return [pair for task in self.row.tasks for pair in _score_pairs(task, (run, row), self.run)]

    def latencies(self) -> list[LatencyPair]:
        """The workloads that both were timed with, in the same runtime on the same machine.

        Raises:
            InputError: there is none.
        """
        if not self.row.latency:
            reason = self.row.not_run or "it computes as the original does, or measuring was switched off"
            raise InputError(f"{self.row.name!r} was not timed: {reason}.")
        before = self._same_runtime() if self.base is None else _same_machine(self.row, self.run, self.base)
        known = {(one.batch, one.prompt, one.output): one for one in before.latency}
        pairs = [
            LatencyPair(found, one, self.base is None and before.name in one.turns)
            for one in self.row.latency
            if (found := known.get((one.batch, one.prompt, one.output)))
        ]
        if not pairs:
            raise InputError(f"{self.row.name!r} and {self.against} were timed with no workload in common.")
        if any(len(one.repeats.get("ttft_ms", [])) < 2 for pair in pairs for one in (pair.before, pair.after)):
            raise InputError(
                "The ledger keeps no times of single repeats: it is of an earlier version.",
                "Measure again: `llmc compress --resume` with another --output-tokens.",
            )
        for one in (one for pair in pairs for one in (pair.before, pair.after)):
            times = np.array([one.repeats[name] for name in ("ttft_ms", "itl_ms")])
            if not (np.isfinite(times) & (times > 0)).all():
                raise InputError(f"{self.row.name!r} or {self.against} has times that are no positive numbers.")
        return pairs

    def _same_runtime(self) -> StepRecord:
        """The original in the runtime that this row was timed in."""
        rows = self.run.ledger.steps
        originals = [row for row in rows if row.name == ORIGINAL or row.name.endswith(f", {ORIGINAL}")]
        found = [row for row in originals if row.latency and row.runtime == self.row.runtime and row is not self.row]
        if not found:
            raise InputError(f"The original was not timed in {self.row.runtime}, as {self.row.name!r} was.")
        return found[-1]


def _score_pairs(task: TaskRecord, before: tuple[Run, StepRecord], run: Run) -> list[ScorePairs]:
    base, row = before
    known = next((one for one in row.tasks if one.name == task.name), None)
    if known is None:
        raise InputError(f"{row.name!r} of {base.file} was not asked the task {task.name}.", "`llmc score` asks it.")
    if known.digest != task.digest:
        raise InputError(f"The task {task.name} is another in {base.file} than in {run.file}: the digests differ.")
    if TOKENIZERS | known.tokenizers != TOKENIZERS | task.tokenizers:
        raise InputError(
            f"The answers to {task.name} were cut into words in another way in {base.file} than in {run.file}.",
            "`llmc score` scores them again.",
        )
    first = samples.columns(base.folder, known.samples, ["line", *task.judged])
    second = samples.columns(run.folder, task.samples, ["line", *task.judged])
    if not np.array_equal(first["line"], second["line"]):
        raise InputError(f"The samples of the task {task.name} in {base.file} are others than those in {run.file}.")
    return [ScorePairs(task.name, one, first[one].astype(float), second[one].astype(float)) for one in task.judged]


def _shipped(run: Run, notes: list[str]) -> StepRecord:
    """The artifact's row; the last step's where the artifact was not run, since it has the same weights bit for bit."""
    artifact = run.ledger.artifact
    if artifact is None or not run.ledger.steps:
        raise InputError(f"The run of {run.file} did not get as far as an artifact.", "Name a step with --row.")
    row = run.ledger.steps[-1]
    if _is_judged(row):
        return row
    steps = [one for one in run.ledger.steps[1:] if _is_judged(one) and ", " not in one.name]
    if not steps or artifact.verified.mismatches:
        return row
    notes.append(
        f"{row.name} was not run here ({row.not_run}): judged is {steps[-1].name}, which it holds bit for bit; "
        "how its runtime computes is not."
    )
    return steps[-1]


def _is_judged(row: StepRecord) -> bool:
    return row.quality is not None or bool(row.tasks)


def _check_same_data(run: Run, base: Run) -> None:
    """A baseline is of use only if all but the compression is the same; hashes say so."""
    texts = [one.ledger.texts.get("evaluation") for one in (run, base)]
    if texts == [None, None] and all(any(row.tasks for row in one.ledger.steps) for one in (run, base)):
        _check_same_original(run, base)  # there are tasks, whose digests are compared one by one
        return
    for one, text in zip((run, base), texts, strict=True):
        if text is None or not one.ledger.steps:
            raise InputError(f"{one.file} was not measured on evaluation text.")
    ours, theirs = texts
    assert ours is not None
    assert theirs is not None
    if ours.length != theirs.length:
        raise InputError(
            f"{base.file} was measured on windows of {theirs.length} tokens, {run.file} of {ours.length}.",
            f"Measure both with --eval-length {ours.length}.",
        )
    if ours.digest != theirs.digest:
        amounts = f"{theirs.windows} windows of {theirs.source}", f"{ours.windows} of {ours.source}"
        raise InputError(
            f"{base.file} was measured on other data than {run.file}: {amounts[0]}, {amounts[1]}; "
            f"SHA-256 {theirs.digest[:12]}… and {ours.digest[:12]}….",
            "Measure both on the same text, with the same tokenizer and --measure.",
        )
    _check_same_original(run, base)


def _check_same_original(run: Run, base: Run) -> None:
    if base.ledger.steps[0].key != run.ledger.steps[0].key:
        raise InputError(f"{base.file} is of another original than {run.file}: the digests of their weights differ.")


def _same_machine(row: StepRecord, run: Run, base: Run) -> StepRecord:
    before = base.row(row.name)
    if before.runtime != row.runtime or not before.latency:
        raise InputError(f"{base.file} timed {row.name!r} in {before.runtime}, {run.file} in {row.runtime}.")
    for name in MACHINE:
        theirs, ours = (one.ledger.environment.get(name) for one in (base, run))
        if theirs != ours:
            raise InputError(f"{base.file} was timed on another machine: its {name} is {theirs}, here {ours}.")
    return before
