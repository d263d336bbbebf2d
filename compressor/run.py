"""One recipe's way: checkpoint, passes, target, artifact, with a ledger row after every step."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from compressor.checkpoint import Checkpoint
from compressor.earlier import EarlierRows
from compressor.environment import environment
from compressor.errors import InputError, RunError
from compressor.evaluator import Evaluator, Standard
from compressor.files import write_whole
from compressor.ledger import Ledger, StepRecord
from compressor.measure.answers import CheckpointAnswerer, SessionAnswerer
from compressor.measure.zeros import share_of_zeros
from compressor.plan import Plan, check_plan, has_rounded_linears
from compressor.probe import open_session
from compressor.shipment import Shipment
from compressor.source import Source
from compressor.stages import Stages
from compressor.steps import Steps
from compressor.target import Artifact
from compressor.tasks.ask import ask
from compressor.texts import RunTexts

BASE = "base, without the adapter"
MERGED = (
    "the model with its adapter, as it was fine-tuned: merged in float32 and not rounded. Everything else is compared "
    "with this, not with the base"
)
RESIZED = "the base alone is not measured: it has another number of tokens than the fine-tuned model"

UNTIMED = "Not timed: {}. In transformers, weights of the original's shapes and dtype take the original's time."

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shared:
    """What runs of the same model share."""

    source: Source
    texts: RunTexts
    steps: Steps
    standard: Standard
    stages: Stages


@dataclass
class Run:
    """The state of one run; `execute` is the way through.

    Attributes:
        step_names: of the folders that the passes leave.
        out: the run's folder.
    """

    plan: Plan
    step_names: list[str]
    out: Path
    shared: Shared
    earlier: EarlierRows
    ledger: Ledger = field(init=False)
    evaluator: Evaluator = field(init=False)
    _untimed: list[str] = field(default_factory=list, init=False)

    def execute(self) -> Ledger:
        """Run the plan and return the ledger, which is on disk too, row by row."""
        self.evaluator = Evaluator(self.shared.standard, self.out)
        self._start_ledger()
        self._record_original()
        self.shared.stages.advance()
        final = self._run_passes()
        if self._untimed:
            self.ledger.warnings.append(UNTIMED.format(", ".join(self._untimed)))
        self._check_outcome(final)
        with closing(Shipment(self.plan.target, final, self.evaluator, self.earlier)) as shipment:
            self.ledger.artifact = shipment.make()
            self.shared.stages.advance()
            for row in shipment.measure():
                self._add(row)
        self._ask_tasks(final)
        self.shared.stages.advance()
        return self.ledger

    def _start_ledger(self) -> None:
        recipe, texts = self.plan.recipe, self.shared.texts.of(self.plan)
        drawn = texts.calibration
        written = (recipe if drawn is None else recipe.with_samples(len(drawn.tokens))).written_out()
        write_whole(self.out / "recipe.yaml", yaml.safe_dump(written, sort_keys=False))
        self.ledger = Ledger(
            recipe.model,
            written,
            environment=environment(),
            texts=texts.records(),
            audit=texts.audit,
            warnings=[*self.plan.notes, *texts.warnings(recipe)],
            revision=self.shared.source.revision,
        )

    def _record_original(self) -> None:
        source, original = self.shared.source, self.shared.standard.original
        merged = original is not source.checkpoint
        resized = source.checkpoint.architecture.vocab_size != original.architecture.vocab_size
        notes = [*source.notes, *self.shared.standard.notes, *[MERGED] * merged, *[RESIZED] * resized]
        size = _size(source.checkpoint)
        self._record(StepRecord("original", key=original.digest, notes=notes, **size), original)
        if merged and not resized and self.shared.standard.tokens is not None:
            # What the model was before its adapter: how much there is to lose.
            self._record(StepRecord(BASE, key=source.checkpoint.digest, **size), source.checkpoint)

    def _run_passes(self) -> Checkpoint:
        checkpoint, steps, sparse = self.shared.source.checkpoint, self.shared.steps, False
        unrounded: Checkpoint | None = None
        for name, one in zip(self.step_names, self.plan.passes, strict=True):
            if not has_rounded_linears(checkpoint.architecture, checkpoint.schemes):
                unrounded = checkpoint
            row = self.earlier.take(StepRecord(one.spelled(), key=steps.key(one, checkpoint, unrounded)))
            before, checkpoint = checkpoint, steps.take(name, one, checkpoint, unrounded, row)
            sparse |= one.zeros == "makes"
            vars(row).update(_size(checkpoint), zeros=share_of_zeros(checkpoint) if sparse else None)
            self.shared.stages.advance()
            row.sensitivity = steps.sensitivity(name)
            rounds = one.zeros == "makes" or before.schemes != checkpoint.schemes
            self._measured(row, checkpoint, before if rounds else None)
            self.shared.stages.advance()
        return checkpoint

    def _check_outcome(self, final: Checkpoint) -> None:
        """Ask the target again: a pass that chooses schemes while it runs may leave what its plan did not show."""
        try:
            check_plan(final, [], self.plan.target)
        except InputError as error:
            raise RunError(str(error), "The steps are kept; another target may take them.") from error

    def _ask_tasks(self, final: Checkpoint) -> None:
        """Ask the original, and the artifact in its runtime or where that is not here the last step."""
        standard, target, rows = self.shared.standard, self.plan.target, self.ledger.steps
        if standard.prompter is None:
            return
        asking = partial(ask, self.out, self.ledger, tasks=standard.tasks, prompter=standard.prompter)
        asking = partial(asking, progress=standard.progress)
        size = standard.settings.batch_size
        asking(rows[0], answerer=lambda: CheckpointAnswerer(standard.original, size))
        if target.why_not_run() is None:
            artifact = Artifact(self.out / "artifact", target.name)
            asking(rows[-1], answerer=lambda: SessionAnswerer(open_session(target, artifact), size))
        elif steps := [row for row in rows[1:-1] if ", " not in row.name]:
            asking(steps[-1], answerer=lambda: CheckpointAnswerer(final, size))

    def _record(self, fresh: StepRecord, checkpoint: Checkpoint) -> None:
        self._measured(self.earlier.take(fresh), checkpoint)

    def _measured(self, row: StepRecord, checkpoint: Checkpoint, before: Checkpoint | None = None) -> None:
        """Add a row, measured unless an earlier run measured it with the same tokens and workload.

        Args:
            before: what a pass made the checkpoint from, where it rounded layers or made zeros of them.
        """
        self._add(row)  # on disk before measuring, so that a killed run keeps the pass's time and memory
        if self.evaluator.standard.enabled and self.evaluator.is_as_fast_as_the_original(checkpoint):
            self._untimed.append(row.name)
        if self.evaluator.has_measured(row):
            LOG.info("%s was measured by an earlier run", row.name)
        else:
            LOG.info("measuring %s", row.name)
            self.evaluator.measure_checkpoint(checkpoint, row)
            if before is not None:
                self.evaluator.measure_layers(before, checkpoint, row)
            self.ledger.save(self.out)

    def _add(self, row: StepRecord) -> None:
        self.ledger.steps.append(row)
        self.ledger.save(self.out)


def _size(checkpoint: Checkpoint) -> dict[str, Any]:
    bits = checkpoint.bits_per_weight
    return {"size_bytes": checkpoint.nbytes, "bits_per_weight": bits.pop("all"), "bits_of": bits}
