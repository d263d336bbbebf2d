"""Factors of low rank beside quantized linears, which make up for most of what rounding lost.

The integers stay as they are. What a linear W lost is W - Q; the factors are its best ones, weighed by what the linear
reads. Papers: Zhang et al., "LQER: Low-Rank Quantization Error Reconstruction for LLMs", 2024, and "QERA", 2024, which
has this solution.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch

from calibration.activations import InputStatistics
from calibration.walk import LayerWalk, Stream
from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.errors import InputError
from compressor.low_rank import LowRank
from compressor.options import option
from compressor.pass_ import Need, PassContext
from compressor.quantized import QuantizedWeight, Scheme
from passes.calibrated import CalibratedPass, check_finite
from passes.factors import Directions, damped_factor, factors
from passes.gptq import FEWEST_ORIGINALS, ORIGINALS_SHARE
from passes.linears import ChosenLinears
from passes.propagation import corrected

FACTOR_BITS = 16


@dataclass(frozen=True)
class LowRankCorrection(CalibratedPass, ChosenLinears):
    """Factors in 16 bits beside each quantized linear, fitted to what its rounding lost."""

    name: ClassVar[str] = "low-rank-correction"
    summary: ClassVar[str] = (
        "LQER, QERA (arXiv 2402.02446, 2410.06040): low-rank factors that correct rounding; after a quantizer"
    )
    changes_floats: ClassVar[bool] = False

    rank: int = option(32, "of the factors beside each linear")
    propagation: bool = option(True, "make up for what the layers before have changed, too")
    damping: float = option(0.01, "fraction of the mean diagonal added for stability")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION, Need.UNROUNDED})

    def originals(self, samples: int) -> int:
        return max(samples // ORIGINALS_SHARE, min(samples, FEWEST_ORIGINALS)) if self.propagation else 0

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        if not 0 < self.damping <= 1:
            raise InputError(f"damping={self.damping} is outside (0, 1].", "0.01 is the usual value.")
        names = [name for name in self.chosen(architecture) if name in schemes]
        if not names:
            raise InputError(
                f"{self.name} makes up for rounding, and no linear that it may change is rounded.",
                f"Put a quantizing pass before it: gptq, then {self.name}.",
            )
        for name in names:
            self._check(name, architecture.linears()[name], schemes[name])
        return {name: replace(scheme, rank=self.rank) if name in names else scheme for name, scheme in schemes.items()}

    def _check(self, name: str, shape: tuple[int, int], scheme: Scheme) -> None:
        """Refuse what cannot have factors of this rank beside it."""
        if scheme.rank:
            raise InputError(f"{name} has factors already: it is {scheme}.", f"Leave out {self.name}.")
        if scheme.activations is not None or scheme.input_factors:
            raise InputError(
                f"{name} is {scheme}, and factors read inputs as they are.",
                f"{self.name} goes with weights that are rounded alone; skip={name} leaves it out.",
            )
        if self.rank < 1:
            raise InputError(f"rank={self.rank} adds nothing.", "rank=32 is usual.")
        rows, columns = shape
        highest = (rows * columns * (FACTOR_BITS - scheme.bits) // FACTOR_BITS - 1) // (rows + columns)
        if self.rank > highest:
            raise InputError(
                f"rank={self.rank} makes {name}, {rows} x {columns}, larger than it was in {FACTOR_BITS} bits.",
                f"A rank up to {highest} works, and so does skip={name}.",
            )

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        work = _Counting(**{part.name: getattr(self, part.name) for part in fields(self)})
        made = CalibratedPass.apply(work, checkpoint, context)
        context.notes.extend(_notes(work.left, self.rank))
        return made

    def enter(self, stream: Stream, block: Block, context: PassContext) -> LayerWalk:
        assert context.unrounded is not None  # `needs` says so
        return stream.enter(block, context.unrounded.block(block.name) if self.propagation else None)

    def edit_layer(self, block: Block, walk: LayerWalk, checkpoint: Checkpoint, context: PassContext) -> Block:
        chosen, changed = set(self.chosen(checkpoint.architecture)), dict[str, Weight]()
        for stage in walk.stages():
            found = {linear: block.weights[f"{block.prefix}{linear}.weight"] for linear in stage.linears}
            rounded = {
                linear: weight
                for linear, weight in found.items()
                if block.prefix + linear in chosen and isinstance(weight, QuantizedWeight)
            }
            if rounded:
                for linear, weight in self._corrected(block.prefix, rounded, stage.statistics, context):
                    walk.replace(linear, weight)
                    changed[f"{block.prefix}{linear}.weight"] = weight
        return block.with_weights(changed)

    def _corrected(
        self,
        prefix: str,
        rounded: Mapping[str, QuantizedWeight],
        statistics: InputStatistics,
        context: PassContext,
    ) -> Iterator[tuple[str, QuantizedWeight]]:
        """Linears that read the same input, by their name in the block, with factors beside them."""
        assert context.unrounded is not None
        names = [f"{prefix}{linear}.weight" for linear in rounded]
        check_finite(statistics, names[0])
        stored = [weight for weight in context.unrounded.read(names).values() if isinstance(weight, torch.Tensor)]
        drift = statistics.take_drift()
        wanted = [weight.float() for weight in stored] if drift is None else corrected(stored, drift)
        del drift  # as large as the moments
        factor = damped_factor(statistics.moments, self.damping)
        for (linear, weight), target, before in zip(rounded.items(), wanted, stored, strict=True):
            error = target.sub_(weight.dequantize())
            directions = Directions.of(error, factor)
            self.tell(prefix + linear, directions.lost(self.rank))
            yield linear, weight.beside(LowRank(*factors(error, directions, self.rank)).to(before.dtype))

    def tell(self, name: str, left: float) -> None:
        """Take note of which share of a linear's output error is left."""


@dataclass(frozen=True)
class _Counting(LowRankCorrection):
    """Fills `left`, by name."""

    left: dict[str, float] = field(default_factory=dict)

    def tell(self, name: str, left: float) -> None:
        self.left[name] = left


def _notes(left: Mapping[str, float], rank: int) -> Iterator[str]:
    """What was done, for the ledger."""
    yield f"factors of rank {rank} beside {len(left)} linears; their integers are as they were"
    worst = max(left, key=lambda name: left[name])
    yield (
        f"{sum(left.values()) / len(left):.1%} of the energy of a linear's output error is left on average, "
        f"most in {worst}, {left[worst]:.1%}"
    )
