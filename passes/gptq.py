"""GPTQ: round column by column and let the columns still to come make up for the error.

Paper: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022.
The solver knows one weight and the second moments of its inputs, nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from calibration.activations import InputStatistics
from compressor.architecture import Architecture
from compressor.checkpoint import Weight
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight, Scheme, split_rows, stack_rows
from passes.grid import Grid, assemble, fit_grid, round_to_grid
from passes.hessian import Hessian
from passes.inputs import InputRoundingPass, with_input_scales
from passes.propagation import corrected
from passes.refine import refine
from passes.sequential import SequentialPass
from passes.sparsity import kept_entries

COLUMNS_AT_ONCE = 128  # columns whose errors are gathered before the rest of the matrix is updated
# The drift of activations is a mean that few samples tell well enough; all of them would nearly double the time.
ORIGINALS_SHARE, FEWEST_ORIGINALS = 8, 24
# Rows do not influence each other: a large weight is solved in parts, small ones that share their inputs together.
ELEMENTS_AT_ONCE = 1 << 21


def solve(
    weight: torch.Tensor,
    hessian: Hessian,
    scheme: Scheme,
    *,
    scale_search: bool = True,
    sweeps: int = 2,
    kept: torch.Tensor | None = None,
) -> QuantizedWeight:
    """Quantize one weight.

    Args:
        weight: [out_features, in_features], any float dtype.
        hessian: of its inputs. Scales are fixed before rounding for the groups as they lie, so that the order of
            rounding leaves no trace in the file.
        scale_search: choose each scale for the least squared error, weighted by the inputs' second moments.
        sweeps: how often integers and scales are gone over again, see `passes.refine`.
        kept: entries that may be other than zero, bool [out_features, in_features]; None is all of them.
    """
    rows = max(1, ELEMENTS_AT_ONCE // weight.shape[1])
    pieces = weight.split(rows)
    masks = [None] * len(pieces) if kept is None else kept.split(rows)
    parts = [
        _solve_rows(piece.float(), hessian, scheme, scale_search, sweeps, mask)
        for piece, mask in zip(pieces, masks, strict=True)
    ]
    return stack_rows(parts)


def _solve_rows(
    weight: torch.Tensor, hessian: Hessian, scheme: Scheme, scale_search: bool, sweeps: int, kept: torch.Tensor | None
) -> QuantizedWeight:
    grid = fit_grid(weight if kept is None else weight * kept, scheme, hessian.moments.diagonal(), scale_search)
    turned, free = weight.T.contiguous(), None if kept is None else kept.T.contiguous()
    codes = torch.empty_like(turned)
    ordered = None if free is None else free[hessian.order]
    codes[hessian.order] = _round_columns(turned[hessian.order], hessian, grid, scheme, ordered)
    if sweeps:
        grid = refine(turned, codes, grid, hessian.moments, scheme, sweeps, free)
    return assemble(codes.T.contiguous(), scheme, grid)


def _round_columns(
    weight: torch.Tensor, hessian: Hessian, grid: Grid, scheme: Scheme, kept: torch.Tensor | None
) -> torch.Tensor:
    """Codes of a weight turned and in the Hessian's order, [in_features, out_features]; zero where it is not kept."""
    factor, count = hessian.factor, len(weight)
    scales = grid.scales.T.contiguous()
    zero_points = None if grid.zero_points is None else grid.zero_points.T.contiguous()
    groups = (hessian.order // (count // len(scales))).tolist()
    diagonal = factor.diagonal().tolist()
    codes, errors = torch.empty_like(weight), torch.empty_like(weight)
    for start, strip in reversed(list(factor.strips_of(COLUMNS_AT_ONCE))):
        size = len(strip)
        among = strip[:, :size].T.contiguous()
        # What those rounded before have left for each of these to make up for.
        owed = strip[:, size:] @ errors[start + size :]
        for place in reversed(range(size)):
            column = start + place
            scale, zero = scales[groups[column]], 0.0 if zero_points is None else zero_points[groups[column]]
            wanted = torch.add(weight[column], owed[place], alpha=1 / diagonal[column])
            if kept is not None:
                wanted.mul_(kept[column])
            codes[column] = round_to_grid(wanted, scale, zero, scheme)
            torch.sub(weight[column], (codes[column] - zero) * scale, out=errors[column])
            owed[:place].addr_(among[place, :place], errors[column])
    return codes


def _stacked(weights: list[torch.Tensor]) -> torch.Tensor:
    return weights[0] if len(weights) == 1 else torch.cat(weights)


def _kept(weights: list[torch.Tensor]) -> torch.Tensor | None:
    """What is not zero in weights stacked, if one of them was pruned."""
    masks = [kept_entries(weight) for weight in weights]
    if all(mask is None for mask in masks):
        return None
    return _stacked([weight != 0 for weight in weights])


@dataclass(frozen=True)
class GPTQ(SequentialPass, InputRoundingPass):
    """GPTQ with static act-order and a scale search."""

    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = (
        "GPTQ (arXiv 2210.17323): round column by column, later ones compensate the error; needs calibration text"
    )

    act_order: bool = option(True, "round the most active inputs first; changes no file layout")
    scale_search: bool = option(True, "search the clipping that has the least weighted squared error")
    propagation: bool = option(True, "round towards what the original model computes on its own activations")
    sweeps: int = option(2, "how often integers and scales are gone over again after rounding, by coordinate descent")
    damping: float = option(0.01, "fraction of the mean diagonal added for stability")

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        if not 0 < self.damping <= 1:
            raise InputError(f"damping={self.damping} is outside (0, 1].", "0.01 is the usual value.")
        if self.sweeps < 0:
            raise InputError(f"sweeps={self.sweeps} is negative.", "sweeps=0 leaves what GPTQ gives.")
        return super().plan(architecture, schemes)

    def originals(self, samples: int) -> int:
        return max(samples // ORIGINALS_SHARE, min(samples, FEWEST_ORIGINALS)) if self.propagation else 0

    def quantize(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        bunches = list(self._bunches(weights))
        kept = [_kept([weights[name] for name in names]) for names in bunches]
        wanted = [_stacked([weights[name] for name in names]) for names in bunches]
        rows = {name: len(weight) for name, weight in weights.items()}
        drift = statistics.take_drift()
        if drift is not None:
            wanted = corrected(wanted, drift)
            del drift  # as large as the Hessian
        weights.clear()
        hessian = Hessian.of(statistics.moments, self.damping, self.act_order)
        context.notes.extend(f"{next(iter(rows))}: {remark}" for remark in hessian.remarks())
        rounded: dict[str, Weight] = {}
        for names, weight, mask in zip(bunches, wanted, kept, strict=True):
            scheme = self.scheme_of(names[0])
            solved = solve(weight, hessian, scheme, scale_search=self.scale_search, sweeps=self.sweeps, kept=mask)
            parts = split_rows(solved, [rows[name] for name in names])
            rounded |= {f"{name}.weight": part for name, part in zip(names, parts, strict=True)}
        return with_input_scales(rounded, dict.fromkeys(rows, statistics.largest.amax()), context)

    def _bunches(self, weights: Mapping[str, torch.Tensor]) -> Iterator[list[str]]:
        """Names of neighbours that are solved together: of one scheme, and small."""
        bunch: list[str] = []
        for name, weight in weights.items():
            elements = weight.numel() + sum(weights[other].numel() for other in bunch)
            if bunch and (elements > ELEMENTS_AT_ONCE or self.scheme_of(name) != self.scheme_of(bunch[0])):
                yield bunch
                bunch = []
            bunch.append(name)
        yield bunch
