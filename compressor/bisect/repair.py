"""Repairs: each candidate really made and judged by the failed gate's own samples; the cheapest that mends."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compressor.bisect.candidates import MORE_TEXT, Candidate, said
from compressor.bisect.layers import GOAL, Judge
from compressor.bisect.remade import Made, Workshop
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, RunError, TooFewWindows
from compressor.files import digest_json
from compressor.gate.decide import Decision, Verdict
from compressor.gate.evidence import Evidence, of_tokens
from compressor.gate.growing import Budget
from compressor.gate.limits import Limits
from compressor.gate.subject import TokenPairs
from compressor.measure.statistics import Estimate
from compressor.recipe import Recipe


@dataclass(frozen=True)
class Trial:
    """What was measured of a candidate.

    Attributes:
        decision: the gate's.
        effects: by metric, its change from what failed, token by token, with the standard error over documents;
            negative is better. Relative for perplexity.
        added_bytes: how much larger than what failed its weights are.
        made: its steps.
    """

    decision: Decision
    effects: dict[str, Estimate]
    added_bytes: int
    made: Made


@dataclass(frozen=True)
class Repair:
    """A candidate, and what became of it.

    Attributes:
        trial: None where it was not made, for this `reason`.
        mends: whether the gate lets it pass, as far as it lets pass what the blamed row was made from.
    """

    candidate: Candidate
    trial: Trial | None = None
    reason: str | None = None
    mends: bool = False


@dataclass(frozen=True)
class Failed:
    """What failed: the last step that leads to the judged row.

    Attributes:
        pairs: its samples.
        passes: how many passes lead to it.
        seconds: what the passes took from the blamed one on.
    """

    checkpoint: Checkpoint
    pairs: TokenPairs
    passes: int
    seconds: float


@dataclass(frozen=True)
class Bench:
    """Tries candidates.

    Attributes:
        goal: the verdict on what the blamed row was made from.
        budget: no candidate is begun that would probably end after it.
    """

    workshop: Workshop
    judge: Judge
    failed: Failed
    goal: Verdict
    budget: Budget

    def repairs(self, candidates: Sequence[Candidate]) -> list[Repair]:
        """All of them, made one after the other; of more text twice as much each time, until it is enough or the text
        ends. The folders of those that are not the best are taken away again.
        """
        tried: list[Repair] = []
        waiting = list(candidates)
        while waiting:
            tried.append(last := self._tried(waiting.pop(0)))
            self._keep_only(cheapest(tried), tried)
            if last.candidate.windows is not None and last.trial is not None and not last.mends:
                waiting.insert(0, last.candidate.with_windows(MORE_TEXT * last.candidate.windows))
        return tried

    def _keep_only(self, best: Repair | None, tried: Sequence[Repair]) -> None:
        for repair in tried:
            if repair is not best and repair.candidate.recipe is not None:
                shutil.rmtree(self._place(repair.candidate.recipe), ignore_errors=True)

    def _place(self, recipe: Recipe) -> Path:
        return self.workshop.reopened.scratch / f"repair-{digest_json(recipe.model_dump(mode='json'))[:8]}"

    def _tried(self, one: Candidate) -> Repair:
        if one.recipe is None:
            return Repair(one, reason=one.reason)
        expected = self.failed.seconds * self._times_the_text(one)
        if expected >= self.budget.left:
            left = f"{max(0.0, self.budget.left):.0f} s of --budget are left"
            return Repair(one, reason=f"not tried: it takes about {expected:.0f} s, and {left}")
        try:
            made = self.workshop.make(one.recipe, self._count(one), self._place(one.recipe))
        except TooFewWindows as error:
            return self._with_all_text(one, error)
        except InputError as error:
            return Repair(one, reason=said(error))
        except RunError as error:
            return Repair(one, reason=f"it broke: {error}")
        trial = self._measured(one, made)
        return Repair(one, trial, mends=trial.decision.verdict in GOAL[self.goal])

    def _with_all_text(self, one: Candidate, error: TooFewWindows) -> Repair:
        """The repair where the text has less than was asked: all that it has, if that is more than was tried before."""
        assert one.windows is not None
        if error.windows * MORE_TEXT > one.windows:
            return self._tried(one.with_windows(error.windows))
        return Repair(one, reason=f"the text has no more than {error.windows} windows")

    def _times_the_text(self, one: Candidate) -> float:
        used = self.workshop.reopened.run.ledger.texts.get("calibration")
        return 1.0 if used is None or one.windows is None else one.windows / used.windows

    def _count(self, one: Candidate) -> int:
        """How many of its passes lead to where the failed one is: one fewer where it leaves a pass out."""
        assert one.recipe is not None
        before, now = self.workshop.reopened.run.ledger.recipe["passes"], one.recipe.passes
        return self.failed.passes + len(now or []) - len(before)

    def _measured(self, one: Candidate, made: Made) -> Trial:
        final = made.steps[-1][1] if made.steps else self.workshop.source

        def report(done: int, total: int) -> None:
            self.workshop.reopened.progress(f"judging a repair ({one.kind})", done, total)

        decision, pairs = self.judge.decide(final, one.change, report)
        effects = _effects(pairs, self.failed.pairs, self.judge.gate.limits)
        return Trial(decision, effects, final.nbytes - self.failed.checkpoint.nbytes, made)


def cheapest(repairs: Sequence[Repair]) -> Repair | None:
    """Of those that mend, the one that adds the fewest bytes; of equal ones, the one that is made fastest."""
    mending = [(one.trial.added_bytes, one.trial.made.seconds, number) for number, one in enumerate(repairs)
               if one.mends and one.trial is not None]  # fmt: skip
    return repairs[min(mending)[2]] if mending else None


def _effects(now: TokenPairs, failed: TokenPairs, limits: Limits) -> dict[str, Estimate]:
    pairs = replace(
        now, before_loss=failed.after_loss, before_correct=failed.after_correct, kl=now.kl.astype(float) - failed.kl
    )
    return {one.metric: estimate for one in of_tokens(pairs, limits) if (estimate := _estimate(one)) is not None}


def _estimate(one: Evidence) -> Estimate | None:
    """The change that was found, in the metric's own unit."""
    if one.change is None:
        return None
    value, stderr = float(one.change.value), float(one.change.stderr)
    scale = math.exp(value) if one.unit == "share" else 1.0
    return Estimate(one.shown(value), stderr * scale)
