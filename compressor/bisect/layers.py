"""The layers to blame: the smallest set that, taken back from the step before, leaves a model that the gate lets pass.

Each trial is a checkpoint made of parameters of both steps, run on the run's evaluation text and judged by its gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from compressor.bisect.kept import KeptScores
from compressor.bisect.passes import FailedGate
from compressor.bisect.search import most_trials, smallest
from compressor.bisect.swapped import Swapped
from compressor.bisect.units import Unit
from compressor.checkpoint import Checkpoint
from compressor.gate.decide import Decision, Verdict, decide
from compressor.gate.evidence import of_tokens
from compressor.gate.subject import TokenPairs
from compressor.ledger import StepRecord
from compressor.measure.accuracy import Reference, TokenScores, checkpoint_scores
from compressor.pass_ import Progress

GOAL = {Verdict.PASS: (Verdict.PASS,), Verdict.INCONCLUSIVE: (Verdict.PASS, Verdict.INCONCLUSIVE)}

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Judge:
    """The gate, for a checkpoint that is no row of the run.

    Attributes:
        reference: the original on the run's evaluation text.
        pairs: those of a row of the run, for the documents that the tokens are of, and for the baseline's losses.
        kept: what has been measured already.
    """

    gate: FailedGate
    reference: Reference
    pairs: TokenPairs
    kept: KeptScores

    def decide(self, checkpoint: Checkpoint, name: str, report: Report) -> tuple[Decision, TokenPairs]:
        """The verdict on a checkpoint, and what it rests on."""
        scores = self.kept.take(checkpoint, lambda: checkpoint_scores(checkpoint, self.reference, report))
        pairs = self._paired(scores)
        limits, judged = self.gate.limits, self.gate.judged
        findings = decide(list(of_tokens(pairs, limits)), limits.alpha)
        return Decision(judged.ledger, name, judged.against, limits.alpha, findings), pairs

    def _paired(self, scores: TokenScores) -> TokenPairs:
        found = replace(
            self.pairs, after_loss=scores.loss.ravel(), after_correct=scores.correct.ravel(), kl=scores.kl.ravel()
        )
        if self.gate.base is not None:
            return found
        return replace(found, before_loss=scores.original_loss.ravel(), before_correct=scores.original_correct.ravel())


@dataclass(frozen=True)
class LayerBlame:
    """The layers to blame.

    Attributes:
        units: in the order of the model.
        decision: the gate's, on the step with these layers as they were before.
        trials: how many models were judged.
        is_minimal: whether every one of the units is needed, as far as that was tried.
    """

    units: list[Unit]
    step: Checkpoint
    before: Checkpoint
    decision: Decision
    trials: int
    is_minimal: bool

    @property
    def linears(self) -> list[str]:
        """Full names of the linears, and of tables."""
        return [name for unit in self.units for name in unit.linears]


@dataclass
class LayerSearch:
    """The search between a step and the one before it.

    Attributes:
        units: what can be taken back, in the order of the model, with errors.
        goal: the verdict of the step before, which no set of layers can be better than on average.
        may_go_on: whether there is time for another trial.
    """

    judge: Judge
    step: Checkpoint
    before: Checkpoint
    row: StepRecord
    units: list[Unit]
    goal: Verdict
    progress: Progress
    may_go_on: Callable[[], bool]
    decisions: dict[frozenset[str], Decision] = field(default_factory=dict)
    _bound: int = 1

    def blame(self) -> LayerBlame | None:
        """The smallest set of units that was found; None where not even all are enough."""
        units = self._likeliest_first()
        self._bound = most_trials(len(units)) + 1
        found, ended = smallest(units, self._is_enough, self.may_go_on) if units else ([], True)
        if not self._is_enough(found):
            return None
        blamed = [unit for unit in self.units if unit in found]
        return LayerBlame(blamed, self.step, self.before, self._decide(blamed), len(self.decisions), ended)

    def _likeliest_first(self) -> list[Unit]:
        """Tables, which have no error, then layers that the pass changed, by theirs."""
        tables = [unit for unit in self.units if unit.error is None]
        return tables + sorted((unit for unit in self.units if unit.error), key=lambda unit: -(unit.error or 0))

    def _is_enough(self, units: Sequence[Unit]) -> bool:
        return self._decide(units).verdict in GOAL[self.goal]

    def _decide(self, units: Sequence[Unit]) -> Decision:
        key = frozenset(unit.name for unit in units)
        if key not in self.decisions:
            layers, done = self.step.architecture.layers, len(self.decisions)

            def report(layer: int, _: int) -> None:
                self.progress("taking layers back", done * layers + layer, self._bound * layers)

            prefixes = [prefix for unit in units for prefix in unit.prefixes]
            swapped = Swapped.of(self.step, self.before, prefixes)
            name = f"{self.row.name} with {len(key)} layers taken back"
            self.decisions[key], _ = self.judge.decide(swapped, name, report)
        return self.decisions[key]
