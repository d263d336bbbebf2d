"""A changed recipe's steps: those that the run has are used as they are, the others are made in a scratch folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from compressor.checkpoint import Checkpoint
from compressor.earlier import EarlierRows
from compressor.errors import InputError
from compressor.ledger import StepRecord
from compressor.pass_ import Need, Pass
from compressor.plan import check_plan, has_rounded_linears, original_of
from compressor.recipe import Recipe
from compressor.reopen import Reopened
from compressor.steps import Steps
from compressor.texts import Texts, TokenSet
from compressor.tokenizer import tokenizer_of


@dataclass(frozen=True)
class Made:
    """What the passes of a recipe left, one after the other.

    Attributes:
        steps: the checkpoints, with their rows; those that were made here know how long it took.
        seconds: all of that.
    """

    steps: list[tuple[StepRecord, Checkpoint]]
    seconds: float


@dataclass(frozen=True)
class Workshop:
    """Makes what changed recipes of a run leave.

    Attributes:
        source: what the first pass is given.
        original: what rows are compared with.
        kept: folders of the run's steps by key.
    """

    reopened: Reopened
    source: Checkpoint
    original: Checkpoint
    texts: Texts
    kept: Mapping[str, Path]

    def make(self, recipe: Recipe, count: int, place: Path) -> Made:
        """The steps of the first `count` passes; new ones lie in the folder `place`, with a ledger of their rows.

        Raises:
            InputError: a pass's options do not fit, the target does not take the outcome, or the calibration text is
                not the run's any more.
            TooFewWindows: the calibration text is too short.
        """
        passes = recipe.build_passes()
        check_plan(self.source, passes, recipe.build_target())
        steps = Steps(place, self._calibration(recipe, passes), self.original, recipe.seed, self.reopened.progress)
        checkpoint, made, seconds = self.source, [], 0.0
        unrounded: Checkpoint | None = None
        earlier = EarlierRows.of(place, [])
        for number, one in enumerate(passes[:count], start=1):
            if not has_rounded_linears(checkpoint.architecture, checkpoint.schemes):
                unrounded = checkpoint
            row = earlier.take(StepRecord(one.spelled(), key=steps.key(one, checkpoint, unrounded)))
            if str(row.key) in self.kept:
                checkpoint = Checkpoint.open(self.kept[str(row.key)])
            else:
                checkpoint = steps.take(f"{number:02}-{one.name}", one, checkpoint, unrounded, row)
                seconds += row.seconds or 0.0
            made.append((row, checkpoint))
            place.mkdir(exist_ok=True)
            replace(self.reopened.run.ledger, steps=[row for row, _ in made], artifact=None).save(place)
        if count == len(passes):  # a pass that chooses schemes may leave what its plan did not show
            check_plan(checkpoint, [], recipe.build_target())
        return Made(made, seconds)

    def _calibration(self, recipe: Recipe, passes: list[Pass]) -> TokenSet | None:
        if not any(Need.CALIBRATION in one.needs for one in passes):
            return None
        tokenizer = tokenizer_of(original_of(self.source, recipe.build_passes()))
        known = self.reopened.run.ledger.texts["calibration"]
        asked = recipe.calibration
        assert asked is not None  # the run had it
        if asked.samples != known.windows:
            self._check_same(self.texts.calibration(with_samples(recipe, known.windows), tokenizer), known.digest)
            return self.texts.calibration(recipe, tokenizer)
        return self._check_same(self.texts.calibration(recipe, tokenizer), known.digest)

    def _check_same(self, found: TokenSet, digest: str) -> TokenSet:
        if found.digest != digest:
            raise InputError(f"The calibration text is another now: {found.source} gives other tokens.")
        return found


def with_samples(recipe: Recipe, samples: int) -> Recipe:
    """The recipe with so many calibration windows."""
    assert recipe.calibration is not None
    return recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"samples": samples})})


def with_passes(recipe: Recipe, passes: list[Pass]) -> Recipe:
    """The recipe with other passes."""
    plain = [{one.name: _plain(one)} for one in passes]
    return recipe.model_copy(update={"passes": plain})


def _plain(one: Pass) -> dict[str, object]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in one.options().items()}
