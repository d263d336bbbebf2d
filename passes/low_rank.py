"""Linears as a product of two narrow ones, chosen so that their outputs lose the least.

Paper: Wang et al., "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression", 2024.
The decomposition is in `passes.factors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

import torch

from calibration.activations import InputStatistics
from calibration.walk import Stream
from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.low_rank import LowRank
from compressor.options import option
from compressor.pass_ import Need, Pass, PassContext
from compressor.quantized import Scheme, low_rank_scheme
from passes.calibrated import check_finite
from passes.cholesky import Factor
from passes.factors import (
    Directions,
    damped_factor,
    energies,
    even_rank,
    factors,
    rank_of_share,
    ranks_of_least_loss,
)
from passes.gptq import FEWEST_ORIGINALS, ORIGINALS_SHARE
from passes.propagation import corrected
from passes.pruning import refuse_cache_scales, refuse_rounded
from passes.sequential import SequentialEdit

SHOWN = 3  # linears that the ledger names


@dataclass(frozen=True)
class _Options(Pass):
    """Apart from `LowRankLinears` only so that listings show them first."""

    ratio: float = option(0.8, "share of the linears' parameters that their factors take together")
    rank: int = option(0, "rank of every linear's factors, in place of ratio; 0 goes by ratio")
    allocation: Literal["loss", "uniform"] = option(
        "loss", "uniform: every linear keeps the share that ratio says; loss: those that lose more keep more"
    )
    form: Literal["factors", "dense"] = option(
        "factors", "dense multiplies the factors out again: an ordinary weight, which every target takes, no smaller"
    )
    whitening: bool = option(True, "weigh what is lost by what the linears read; false is a plain SVD, without text")
    propagation: bool = option(True, "fit the factors to what the original model computes on its own activations")
    damping: float = option(0.01, "fraction of the mean diagonal added for stability")
    dtype: Literal["auto", "float32"] = option("auto", "auto rounds to what the checkpoint has; float32 does not round")


@dataclass(frozen=True)
class LowRankLinears(SequentialEdit, _Options):
    """Factors of low rank in the place of linears."""

    name: ClassVar[str] = "low-rank"
    summary: ClassVar[str] = (
        "SVD-LLM (arXiv 2403.07378): replace each linear by two narrow ones; needs calibration text"
    )

    @property
    def needs(self) -> frozenset[Need]:
        return super().needs if self.whitening else frozenset()

    @property
    def chooses_schemes(self) -> bool:
        return self.form == "factors" and self._goes_by_loss

    @property
    def _goes_by_loss(self) -> bool:
        return self.allocation == "loss" and not self.rank

    def stored_dtype(self, architecture: Architecture) -> torch.dtype | None:
        return None if self.dtype == "auto" else torch.float32

    def originals(self, samples: int) -> int:
        return max(samples // ORIGINALS_SHARE, min(samples, FEWEST_ORIGINALS)) if self.propagation else 0

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        refuse_rounded(schemes)
        shapes = {name: architecture.linears()[name] for name in self.chosen(architecture)}
        ranks = self._even_ranks(shapes)
        if self.form == "dense":
            return {}
        return {name: low_rank_scheme(0 if self._goes_by_loss else rank) for name, rank in ranks.items()}

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        return refuse_cache_scales(present)

    def _even_ranks(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        """The rank of each linear, given [out_features, in_features], where all keep the same share.

        Raises:
            InputError: the options do not fit them.
        """
        if not shapes:
            raise InputError("No layer is left to factor.", "Give fewer skip patterns.")
        if not 0 < self.damping <= 1:
            raise InputError(f"damping={self.damping} is outside (0, 1].", "0.01 is the usual value.")
        if self.rank:
            return self._given_ranks(shapes)
        if not 0 < self.ratio < 1:
            says = "leaves nothing" if self.ratio <= 0 else "saves nothing"
            raise InputError(f"ratio={self.ratio:g} {says}.", "ratio=0.8 keeps four parameters of five.")
        ranks = {name: rank_of_share(shape, self.ratio) for name, shape in shapes.items()}
        none = next((name for name, rank in ranks.items() if rank == 0), None)
        if none is not None:
            raise InputError(
                f"ratio={self.ratio:g} leaves no feature of {none}, {_spelled(shapes[none])}.", "Take a larger one."
            )
        return ranks

    def _given_ranks(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        name, highest = min(((name, even_rank(shape)) for name, shape in shapes.items()), key=lambda pair: pair[1])
        if self.rank < 0:
            raise InputError(f"rank={self.rank} is negative.", f"A rank up to {highest} makes every linear smaller.")
        if self.rank > highest:
            raise InputError(
                f"rank={self.rank} saves nothing in {name}, {_spelled(shapes[name])}: factors of a rank above "
                f"{highest} are larger than the linear.",
                f"A rank up to {highest} works, and so does skip={name}.",
            )
        return dict.fromkeys(shapes, self.rank)

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        shapes = {name: checkpoint.architecture.linears()[name] for name in self.chosen(checkpoint.architecture)}
        ranks: dict[str, int | None] = dict(self._even_ranks(shapes))
        if self._goes_by_loss:
            spectra = dict(self._spectra(checkpoint, context))
            found = ranks_of_least_loss([shapes[name] for name in spectra], list(spectra.values()), self.ratio)
            ranks = dict(zip(spectra, found, strict=True))
        kind = _Whitened if self.whitening else _Plain
        common = {part.name: getattr(self, part.name) for part in fields(LowRankLinears)}
        work = kind(**common, ranks=ranks)
        made = work.apply(checkpoint, context)
        context.notes.extend(_notes(shapes, ranks, work.lost, self.form))
        return made

    def solve(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        raise AssertionError("the ranks are not chosen yet")

    def _spectra(self, checkpoint: Checkpoint, context: PassContext) -> Iterator[tuple[str, torch.Tensor]]:
        """Each linear by its name, in forward order, with the energies of its outputs in the model as it is."""
        total = checkpoint.architecture.layers
        stream = None
        if self.whitening:
            assert context.tokens is not None  # `needs` says so
            stream = Stream(Decoder(checkpoint), context.tokens, self.working_dtype, scratch=context.out.parent)
        for index in range(total):
            block = checkpoint.block(f"layers.{index}")
            weights = self.stored_weights(block, checkpoint)
            if stream is None:
                yield from ((name, energies(weight.float(), None)) for name, weight in weights.items())
            else:
                for stage in stream.enter(block).stages():
                    names = [name for name in (block.prefix + linear for linear in stage.linears) if name in weights]
                    if names:
                        check_finite(stage.statistics, names[0])
                        factor = damped_factor(stage.statistics.moments, self.damping)
                        yield from ((name, energies(weights[name].float(), factor)) for name in names)
            context.progress(f"{self.name}, spectra", index + 1, total)


@dataclass(frozen=True)
class _Ranked(LowRankLinears):
    """With the rank of each linear given; None is a linear that stays whole. Fills `lost`, by name."""

    ranks: Mapping[str, int | None] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)

    def _replaced(self, name: str, weight: torch.Tensor, wanted: torch.Tensor, factor: Factor | None) -> Weight:
        """What a weight becomes, in the dtype that it is stored in; its factors are to come close to `wanted`."""
        rank = self.ranks[name]
        if rank is None:
            return weight
        directions = Directions.of(wanted, factor)
        self.lost[name] = directions.lost(rank)
        found = LowRank(*factors(wanted, directions, rank))
        dtype = weight.dtype if self.dtype == "auto" else torch.float32
        return found.dequantize().to(dtype) if self.form == "dense" else found.to(dtype)


@dataclass(frozen=True)
class _Plain(_Ranked):
    """By a plain singular value decomposition of the weights."""

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        def edit(block: Block) -> Block:
            changed = {
                f"{name}.weight": self._replaced(name, weight, weight.float(), None)
                for name, weight in self.stored_weights(block, checkpoint).items()
            }
            if block.index is not None:
                context.progress(self.name, block.index + 1, checkpoint.architecture.layers)
            return block.with_weights(changed)

        return checkpoint.rewrite(context.out, edit, context.provenance, self.stored_dtype(checkpoint.architecture))


@dataclass(frozen=True)
class _Whitened(_Ranked):
    """Weighed by what the linears read, those before them replaced already."""

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        return SequentialEdit.apply(self, checkpoint, context)

    def solve(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        drift = statistics.take_drift()
        stored = list(weights.values())
        wanted = [weight.float() for weight in stored] if drift is None else corrected(stored, drift)
        del drift  # as large as the moments
        factor = damped_factor(statistics.moments, self.damping)
        triples = zip(weights, stored, wanted, strict=True)
        return {f"{name}.weight": self._replaced(name, weight, goal, factor) for name, weight, goal in triples}


def _spelled(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _notes(
    shapes: Mapping[str, tuple[int, int]], ranks: Mapping[str, int | None], lost: Mapping[str, float], form: str
) -> Iterator[str]:
    """What was done, for the ledger."""
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    kept = {name: sizes[name] if rank is None else rank * sum(shapes[name]) for name, rank in ranks.items()}
    whole = [name for name, rank in ranks.items() if rank is None]
    share = sum(kept.values()) / sum(sizes.values())
    found = [rank for rank in ranks.values() if rank is not None]
    span = f"rank {min(found)}" if min(found) == max(found) else f"ranks {min(found)} to {max(found)}"
    stay = f"; {len(whole)} stay whole" if whole else ""
    yield f"factors of {len(found)} linears, {span}, have {share:.1%} of the parameters of all that were chosen{stay}"
    if form == "dense":
        yield "multiplied out again: as large as before, and no faster"
    worst = sorted(lost, key=lambda name: lost[name], reverse=True)[:SHOWN]
    listed = ", ".join(f"{name} {lost[name]:.1%}" for name in worst)
    yield f"{sum(lost.values()) / len(lost):.2%} of a linear's output energy is lost on average; most in {listed}"
