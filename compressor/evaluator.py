"""Measures the rows of a ledger: every step and artifact on the same evaluation tokens and the same workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import BREAKS, InputError, RunError, first_line
from compressor.files import digest_json
from compressor.ledger import SamplesRecord, StepRecord
from compressor.measure import samples
from compressor.measure.accuracy import BrokenOff, Reference, TokenScores, checkpoint_scores, session_scores
from compressor.measure.continuations import Decodes, continuations, prompts
from compressor.measure.latency import Workload, measure_latency
from compressor.measure.layers import layer_errors
from compressor.measure.torch_session import TorchSession
from compressor.pass_ import Progress
from compressor.recipe import MeasureSection
from compressor.target import Session
from compressor.tasks.scoring import Prompter
from compressor.tasks.task import LoadedTask


def check_workload(settings: MeasureSection, limit: int) -> None:
    """See that the timed workload fits into a context of `limit` tokens.

    Raises:
        InputError: it does not.
    """
    longest = settings.latency.prompt + settings.latency.output
    if settings.effort != "none" and longest > limit:
        raise InputError(
            f"The latency workload of {longest} tokens is longer than the model's context of {limit}.",
            "Lower --prompt or --output-tokens.",
        )


@dataclass
class Standard:
    """What every row is measured with and against.

    Attributes:
        original: the model that all quality is relative to.
        tokens: evaluation tokens, int64 [windows, length], or None when there is no text to judge by.
        scratch: folder for the original's hidden states.
        origins: number of the document of each token, int32 [windows, length]; None for running text.
        tokenizer: to show what models write; None leaves it out.
        may_end_early: whether timing ends when its intervals are narrow, where nobody asked for a number of repeats.
        tasks: that the original and the artifact are asked; `prompter` makes their prompts, None without tasks.
        notes: what there is to say of the original.
    """

    original: Checkpoint
    tokens: torch.Tensor | None
    settings: MeasureSection
    scratch: Path
    progress: Progress
    origins: np.ndarray | None = None
    tokenizer: Decodes | None = None
    tasks: Sequence[LoadedTask] = ()
    prompter: Prompter | None = None
    notes: Sequence[str] = ()
    may_end_early: bool = True

    @property
    def enabled(self) -> bool:
        return self.settings.effort != "none"

    @cached_property
    def key(self) -> str:
        """Digest of what decides a measurement, apart from the thing measured."""
        tokens = None if self.tokens is None else sha256(self.tokens.numpy().tobytes()).hexdigest()
        # Tasks have digests of their own.
        settings = self.settings.model_dump(exclude={"tasks", "batch_size", "allow_same_text"})
        measured = {"settings": settings, "tokens": tokens, "original": self.original.digest}
        if self.origins is not None:
            measured["origins"] = sha256(self.origins.tobytes()).hexdigest()
        return digest_json(measured)

    @cached_property
    def reference(self) -> Reference:
        """The original's hidden states, made when first asked for."""
        assert self.tokens is not None
        self.scratch.mkdir(parents=True, exist_ok=True)
        store = self.scratch / "reference-states.npy"
        return Reference.make(self.original, self.tokens, store, self.report("judging the original"))

    def prompt(self) -> np.ndarray:
        """Of the timed workload. Real text where there is enough, else ids in order: time does not depend on them."""
        length = self.settings.latency.prompt
        if self.tokens is not None and self.tokens.numel() >= length:
            return self.tokens.flatten()[:length].numpy()
        return (torch.arange(length) % self.original.architecture.vocab_size).numpy()

    def report(self, what: str) -> Callable[[int, int], None]:
        """Tells the run's progress of something that is being done."""
        return lambda done, total: self.progress(what, done, total)


@dataclass(frozen=True)
class Evaluator:
    """Measures the rows of the run in the folder `out`, where what was measured of every token is kept."""

    standard: Standard
    out: Path

    def has_measured(self, row: StepRecord) -> bool:
        """Whether an earlier run measured this row with the same tokens and workload, and left its samples intact."""
        if row.measured_with != self.standard.key:
            return False
        if self.standard.tokens is None:
            return True
        return row.samples is not None and samples.is_intact(self.out, row.samples)

    def measure_checkpoint(self, checkpoint: Checkpoint, row: StepRecord) -> None:
        """Fill the quality of a step's row, and its latency unless it takes the original's time by construction."""
        row.quality, row.samples, row.latency, row.not_run = None, None, [], None
        row.layers, row.continuations = [], []
        if not self.standard.enabled:
            row.not_run = "measuring was switched off"
            return
        if self.standard.tokens is not None:
            report = self.standard.report(f"judging {row.name}")
            self._judged(row, checkpoint_scores(checkpoint, self.standard.reference, report))
        row.measured_with = self.standard.key
        try:
            with closing(TorchSession.of(checkpoint)) as session:
                self._run({row.name: session}, {row.name: row}, timed=not self.is_as_fast_as_the_original(checkpoint))
        except RunError as error:
            row.not_run = str(error)

    def is_as_fast_as_the_original(self, checkpoint: Checkpoint) -> bool:
        """Whether a model computes in transformers what the original does, with other numbers: it is as fast."""
        original = self.standard.original
        ranks = any(scheme.rank for scheme in checkpoint.schemes.values())
        shapes = checkpoint.architecture == original.architecture and checkpoint.dtype == original.dtype
        return checkpoint.digest != original.digest and shapes and not ranks

    def measure_sessions(self, sessions: Mapping[str, Session], rows: Mapping[str, StepRecord]) -> None:
        """Fill the rows of artifacts in their own runtime; for latency they take turns."""
        for row in rows.values():
            row.quality, row.samples, row.latency, row.not_run = None, None, [], None
            row.continuations, row.measured_with = [], self.standard.key
        if self.standard.tokens is not None:
            sessions = {name: one for name, one in sessions.items() if self._judge_session(one, rows[name])}
        self._run(sessions, rows)

    def measure_layers(self, before: Checkpoint, after: Checkpoint, row: StepRecord) -> None:
        """Fill the layer errors of the row of a pass that changed weights and not what they stand for."""
        same = before.architecture.layers == after.architecture.layers
        if self.standard.enabled and self.standard.tokens is not None and same:
            report = self.standard.report(f"comparing layers, {row.name}")
            row.layers = layer_errors(before, after, self.standard.tokens, report)

    def _judge_session(self, session: Session, row: StepRecord) -> bool:
        """Judge an artifact; False if its runtime breaks, and then what it told is kept and the row says so."""
        reference, report = self.standard.reference, self.standard.report(f"judging {row.name}")
        try:
            self._judged(row, session_scores(session, reference, report))
            return True
        except BrokenOff as broken:
            if broken.scores is not None:
                self._judged(row, broken.scores)
                row.runtime = session.runtime
            row.not_run, row.measured_with = str(broken), None  # so that a resumed run measures it again
            return False

    def _judged(self, row: StepRecord, scores: TokenScores) -> None:
        """Keep the scores of every token beside the ledger, and their summary in the row."""
        assert self.standard.tokens is not None
        path = self.out / samples.path_of(row.name, str(row.key))
        told = len(scores.loss)  # windows: fewer than there are where a runtime broke
        tokens, origins = self.standard.tokens[:told].numpy(), self.standard.origins
        digest = samples.write(path, samples.table(tokens, None if origins is None else origins[:told], scores))
        row.samples = SamplesRecord(path.relative_to(self.out).as_posix(), digest, scores.loss.size)
        row.quality = scores.quality

    def _run(self, sessions: Mapping[str, Session], rows: Mapping[str, StepRecord], timed: bool = True) -> None:
        """Time the sessions, and keep what they write; a row says it where its session breaks."""
        alive = self._time(sessions, rows) if timed else dict(sessions)
        for name, session in alive.items():
            rows[name].runtime = session.runtime
        tokens, tokenizer = self.standard.tokens, self.standard.tokenizer
        if tokens is not None and tokenizer is not None:
            for name, session in alive.items():
                try:
                    rows[name].continuations = continuations(session, prompts(tokens), tokenizer)
                except BREAKS as error:
                    rows[name].not_run = f"it broke when it was let write: {first_line(error)}"
                    rows[name].measured_with = None

    def _time(self, sessions: Mapping[str, Session], rows: Mapping[str, StepRecord]) -> dict[str, Session]:
        """The sessions that did not break."""
        plan, alive = self.standard.settings.latency, dict(sessions)
        for batch in plan.batch:
            workload = Workload(
                batch, plan.prompt, plan.output, plan.repeats, least=plan.least if self.standard.may_end_early else None
            )
            report = self.standard.report(f"timing {', '.join(alive)}")
            timings = measure_latency(alive, workload, self.standard.prompt(), report)
            for name, latency in timings.found.items():
                rows[name].latency.append(latency)
                rows[name].runtime = sessions[name].runtime
            for name, reason in timings.broken.items():
                rows[name].not_run, rows[name].measured_with = reason, None
                del alive[name]
        return alive
