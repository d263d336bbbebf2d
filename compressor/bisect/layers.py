"""The layers to blame: the smallest set that, taken back from the step before, leaves a model that the gate lets pass.

Each trial is a checkpoint made of blocks of both steps, run on the run's held-out text and judged by the run's gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from compressor.bisect.search import most_trials, smallest
from compressor.bisect.swapped import Swapped
from compressor.checkpoint import Checkpoint
from compressor.families import HEAD
from compressor.gate.decide import Decision, Verdict, decide
from compressor.gate.evidence import of_tokens
from compressor.gate.limits import Limits
from compressor.gate.subject import ORIGINAL, TokenPairs
from compressor.ledger import StepRecord
from compressor.measure.accuracy import Reference, TokenScores, checkpoint_scores
from compressor.pass_ import Progress

GOAL = {Verdict.PASS: (Verdict.PASS,), Verdict.INCONCLUSIVE: (Verdict.PASS, Verdict.INCONCLUSIVE)}


@dataclass(frozen=True)
class Judge:
    """The gate, for a checkpoint that is no row of the run.

    Attributes:
        reference: the original on the run's held-out text.
        pairs: those of a row of the run, for the documents that the tokens are of.
    """

    ledger: Path
    limits: Limits
    reference: Reference
    pairs: TokenPairs

    def decide(self, checkpoint: Checkpoint, name: str, report: Callable[[int, int], None]) -> Decision:
        """The verdict on a checkpoint, against the original."""
        evidence = list(of_tokens(self._paired(checkpoint_scores(checkpoint, self.reference, report)), self.limits))
        findings = decide(evidence, self.limits.alpha)
        return Decision(str(self.ledger), name, ORIGINAL, self.limits.alpha, findings)

    def _paired(self, scores: TokenScores) -> TokenPairs:
        return replace(
            self.pairs,
            before_loss=scores.original_loss.ravel(),
            after_loss=scores.loss.ravel(),
            before_correct=scores.original_correct.ravel(),
            after_correct=scores.correct.ravel(),
            kl=scores.kl.ravel(),
        )


@dataclass(frozen=True)
class LayerBlame:
    """The blocks to blame.

    Attributes:
        blocks: by name, in the order of the model: `layers.3`, or `embedding` and `head`.
        errors: of the decoder layers among them, what the pass did to their own outputs, relative; from the ledger.
        decision: the gate's, on the step with these blocks as they were before.
        swapped: that checkpoint.
        trials: how many models were judged.
        is_minimal: whether every one of the blocks is needed, as far as that was tried.
    """

    blocks: list[str]
    errors: dict[str, float]
    decision: Decision
    swapped: Swapped
    trials: int
    is_minimal: bool


@dataclass
class LayerSearch:
    """The search between a step and the one before it.

    Attributes:
        goal: the verdict of the step before, which no set of blocks can be better than on average.
        may_go_on: whether there is time for another trial.
    """

    judge: Judge
    step: Checkpoint
    before: Checkpoint
    row: StepRecord
    goal: Verdict
    progress: Progress
    may_go_on: Callable[[], bool]
    decisions: dict[frozenset[str], Decision] = field(default_factory=dict)
    _bound: int = 1

    def blame(self) -> LayerBlame | None:
        """The smallest set of blocks that was found; None where not even all are enough."""
        units = self._units()
        self._bound = most_trials(len(units)) + 1
        found, ended = smallest(units, self._is_enough, self.may_go_on) if units else ([], True)
        if not self._is_enough(found):
            return None
        blocks = [name for name in self.step.block_names if name in found]
        return LayerBlame(
            blocks=blocks,
            errors={name: error for name, error in self._errors().items() if name in blocks},
            decision=self._decide(blocks),
            swapped=Swapped.of(self.step, self.before, blocks),
            trials=len(self.decisions),
            is_minimal=ended,
        )

    def _units(self) -> list[str]:
        """The blocks that the pass rounded, likeliest first: tables, which have no error in the ledger, then decoder
        layers by what it did to their own outputs.
        """
        tables = {"embedding": self.step.architecture.embedding, "head": HEAD}
        rounded = [
            unit for unit, name in tables.items() if self.step.schemes.get(name) != self.before.schemes.get(name)
        ]
        errors = self._errors()
        return rounded + sorted((name for name in errors if errors[name] != 0), key=lambda name: -errors[name])

    def _errors(self) -> dict[str, float]:
        return {f"layers.{one.layer}": one.own for one in self.row.layers}

    def _is_enough(self, blocks: Sequence[str]) -> bool:
        return self._decide(blocks).verdict in GOAL[self.goal]

    def _decide(self, blocks: Sequence[str]) -> Decision:
        key = frozenset(blocks)
        if key not in self.decisions:
            layers, done = self.step.architecture.layers, len(self.decisions)

            def report(layer: int, _: int) -> None:
                self.progress("taking layers back", done * layers + layer, self._bound * layers)

            swapped = Swapped.of(self.step, self.before, blocks)
            self.decisions[key] = self.judge.decide(
                swapped, f"{self.row.name} with {len(key)} blocks taken back", report
            )
        return self.decisions[key]
