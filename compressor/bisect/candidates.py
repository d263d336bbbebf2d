"""What may mend a pass whose layers are to blame: more bits for them, leaving them out, more calibration text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from compressor.bisect.kinds import BITS, SAMPLES, SKIP
from compressor.bisect.layers import LayerBlame
from compressor.bisect.remade import with_passes, with_samples
from compressor.errors import InputError
from compressor.families import HEAD
from compressor.pass_ import Need, Pass
from compressor.recipe import Recipe

MORE_TEXT = 2  # times as many calibration windows: errors of statistics shrink with the root of their number


@dataclass(frozen=True)
class Candidate:
    """A changed recipe.

    Attributes:
        kind: `bits`, `skip` or `samples`.
        change: as `llmc compress` would be told.
        recipe: None where there is none, for this `reason`.
    """

    kind: str
    change: str
    recipe: Recipe | None = None
    reason: str | None = None

    @property
    def windows(self) -> int | None:
        """How much calibration text it has, where that is what it changes."""
        if self.kind != SAMPLES or self.recipe is None or self.recipe.calibration is None:
            return None
        return self.recipe.calibration.samples

    def with_windows(self, windows: int) -> Candidate:
        """The same with another amount of calibration text."""
        assert self.recipe is not None
        return replace(self, change=_samples(windows), recipe=with_samples(self.recipe, windows))


def candidates(recipe: Recipe, at: int, blame: LayerBlame) -> list[Candidate]:
    """What is to be tried for the pass number `at`: the first two cost bytes, the last one time. Of more text it is the
    least amount; where that does not mend, there may be more.
    """
    ways = {BITS: _more_bits, SKIP: _skipped, SAMPLES: _more_text}
    return [_candidate(kind, way, recipe, at, blame) for kind, way in ways.items()]


def _candidate(
    kind: str, way: Callable[[Recipe, int, LayerBlame], tuple[str, Recipe]], recipe: Recipe, at: int, blame: LayerBlame
) -> Candidate:
    try:
        change, changed = way(recipe, at, blame)
    except InputError as error:
        return Candidate(kind, "", None, said(error))
    return Candidate(kind, change, changed)


def said(error: InputError) -> str:
    """An error in a line."""
    return f"{error} {error.hint or ''}".strip()


def _more_bits(recipe: Recipe, at: int, blame: LayerBlame) -> tuple[str, Recipe]:
    """The blamed layers in 8 bits; for a pass that shares out bits, as many more as that would take."""
    one, schemes = recipe.build_passes()[at], blame.step.schemes
    few = [name for name in blame.linears if name in schemes and schemes[name].bits < 8]
    if "bits" not in one.options() or not few:
        known = "have 8 bits or more already" if not few else f"are all that {one.name} knows"
        raise InputError(f"{'These layers' if not few else 'Its bits'} {known}.")
    if one.chooses_schemes:
        return _changed(recipe, at, bits=_average(one, few, blame))
    options: dict[str, Any] = {}
    if blame.step.architecture.embedding in few:
        options["bits"] = 8
    if HEAD in few:
        options["lm_head"] = 8
    patterns = _patterns([name for name in few if name in _body(blame)], blame)
    if patterns:
        if "int8" not in one.options():
            raise InputError(f"{one.name} gives all layers the same bits.")
        options["int8"] = (*one.options()["int8"], *patterns)
    return _changed(recipe, at, **options)


def _average(one: Pass, few: list[str], blame: LayerBlame) -> float:
    shapes, schemes = blame.step.architecture.linears(), blame.step.schemes
    weights = sum(math.prod(shapes[name]) for name in _body(blame) if name in schemes)
    more = sum(math.prod(shapes[name]) * (8 - schemes[name].bits) for name in few if name in shapes)
    return math.ceil(100 * (one.options()["bits"] + more / weights)) / 100


def _skipped(recipe: Recipe, at: int, blame: LayerBlame) -> tuple[str, Recipe]:
    """The blamed layers as they were; a pass that rounds nothing but a table is left out."""
    passes = recipe.build_passes()
    one, options = passes[at], passes[at].options()
    if blame.linears == [blame.step.architecture.embedding] and "skip" not in options:
        return f"without {one.spelled()}", with_passes(recipe, [*passes[:at], *passes[at + 1 :]])
    if "skip" not in options:
        raise InputError(f"{one.name} has no option that leaves layers out.")
    changed: dict[str, Any] = {}
    if HEAD in blame.linears:
        changed["lm_head"] = False
    patterns = _patterns([name for name in blame.linears if name in _body(blame)], blame)
    if patterns:
        changed["skip"] = (*options["skip"], *patterns)
    return _changed(recipe, at, **changed)


def _more_text(recipe: Recipe, at: int, blame: LayerBlame) -> tuple[str, Recipe]:
    one = recipe.build_passes()[at]
    if Need.CALIBRATION not in one.needs or recipe.calibration is None:
        raise InputError(f"{one.name} looks at no calibration text.")
    windows = MORE_TEXT * recipe.calibration.samples
    return _samples(windows), with_samples(recipe, windows)


def _samples(windows: int) -> str:
    return f"--samples {windows}"


def _changed(recipe: Recipe, at: int, **options: Any) -> tuple[str, Recipe]:
    passes = recipe.build_passes()
    passes[at] = cast(Pass, replace(cast(Any, passes[at]), **options))
    return f"--pass {passes[at].spelled()}", with_passes(recipe, passes)


def _body(blame: LayerBlame) -> list[str]:
    """Every linear of the decoder's layers."""
    return [name for name in blame.step.architecture.linears() if name != HEAD]


def _patterns(names: list[str], blame: LayerBlame) -> list[str]:
    """The names, those of all rounded layers of a block in one pattern."""
    architecture, found = blame.step.architecture, []
    for index in range(architecture.layers):
        linears = list(architecture.block_linears(index))
        rounded = [name for name in linears if name in blame.step.schemes] or linears
        here = [name for name in linears if name in names]
        found += [f"{architecture.modules.block(index)}*"] if here and set(rounded) <= set(here) else here
    return found
