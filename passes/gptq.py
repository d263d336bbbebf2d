"""GPTQ: round column by column and let the columns still to come make up for the error.

Paper: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022.
The solver knows one weight and the second moments of its inputs, nothing of models or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from calibration.activations import InputStatistics
from compressor.architecture import Architecture
from compressor.checkpoint import Weight
from compressor.errors import InputError, RunError
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import QuantizedWeight, Scheme
from passes.grid import Grid, assemble, fit_grid, round_to_grid
from passes.inputs import InputRoundingPass, with_input_scales
from passes.sequential import SequentialPass

COLUMNS_AT_ONCE = 128  # columns whose errors are gathered before the rest of the matrix is updated
MAX_DAMPING = 1.0


@dataclass(frozen=True)
class Solution:
    """A quantized weight, and what was met on the way to it."""

    weight: QuantizedWeight
    dead_inputs: int
    damping: float


def solve(
    weight: torch.Tensor,
    gram: torch.Tensor,
    scheme: Scheme,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    scale_search: bool = True,
) -> Solution:
    """Quantize one weight.

    Args:
        weight: float32 [out_features, in_features].
        gram: float32 [in_features, in_features], mean of x xᵀ over the calibration inputs.
        damping: fraction of the mean diagonal added to the diagonal; raised tenfold while the matrix
            is not positive definite.
        act_order: round the inputs with the largest second moment first. Scales are fixed beforehand for the
            groups as they lie, so the order leaves no trace in the file.
        scale_search: choose each scale for the least squared error, weighted by the inputs' second moments.

    Raises:
        RunError: no damping up to 1 makes the matrix positive definite.
    """
    energy = gram.diagonal()
    dead = energy == 0
    # An input that was never active is rounded to nearest: its row of the inverse is diagonal, nothing propagates.
    grid = fit_grid(weight, scheme, energy + (energy.mean() * 1e-6 + 1e-12), scale_search)
    order = rounding_order(gram, act_order)
    factor, used = inverse_factor(gram[order][:, order], damping)
    codes = _round_columns(_Columns.of(weight, grid, order), factor, scheme)
    restored = torch.empty_like(codes)
    restored[order] = codes
    return Solution(assemble(restored.T.contiguous(), scheme, grid), int(dead.sum()), used)


def rounding_order(gram: torch.Tensor, act_order: bool) -> torch.Tensor:
    """Inputs in the order in which their weights are rounded."""
    energy = gram.diagonal()
    return torch.argsort(energy, descending=True, stable=True) if act_order else torch.arange(len(energy))


def inverse_factor(gram: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """Upper Cholesky factor of the inverse of the damped gram matrix, and the damping that was needed.

    Raises:
        RunError: the matrix is not positive definite even at full damping.
    """
    energy = gram.diagonal()
    mean = energy.mean().clamp(min=1e-12)
    while damping <= MAX_DAMPING:
        damped = gram + torch.diag(torch.where(energy == 0, mean, damping * mean))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                return upper, damping
        damping *= 10
    raise RunError(
        "The calibration statistics of a layer are not positive definite at any damping.", "Use more calibration text."
    )


@dataclass(frozen=True)
class _Columns:
    """A weight and its grid, turned, in the order of rounding: float32 [in_features, out_features] each."""

    values: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None

    @classmethod
    def of(cls, weight: torch.Tensor, grid: Grid, order: torch.Tensor) -> _Columns:
        group = order // (weight.shape[1] // grid.scales.shape[1])
        zero_points = None if grid.zero_points is None else grid.zero_points.T[group]
        return cls(weight.T[order], grid.scales.T[group], zero_points)


def _round_columns(columns: _Columns, factor: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Codes [in_features, out_features]; the columns' values are overwritten by what was rounded."""
    values = columns.values
    count = len(values)
    codes = torch.empty_like(values)
    diagonal = factor.diagonal().tolist()
    for start in range(0, count, COLUMNS_AT_ONCE):
        end = min(start + COLUMNS_AT_ONCE, count)
        errors = torch.empty_like(values[start:end])
        for column in range(start, end):
            value, scale = values[column], columns.scales[column]
            zero = 0.0 if columns.zero_points is None else columns.zero_points[column]
            codes[column] = round_to_grid(value, scale, zero, scheme)
            error = errors[column - start]
            torch.sub(value, (codes[column] - zero) * scale, out=error)
            error /= diagonal[column]
            values[column + 1 : end].addr_(factor[column, column + 1 : end], error, alpha=-1)
        values[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return codes


@dataclass(frozen=True)
class GPTQ(SequentialPass, InputRoundingPass):
    """GPTQ with static act-order and a scale search."""

    name: ClassVar[str] = "gptq"
    summary: ClassVar[str] = "round weights so that later columns make up for the error; needs calibration text"

    act_order: bool = option(True, "round the most active inputs first; changes no file layout")
    scale_search: bool = option(True, "search the clipping that has the least weighted squared error")
    damping: float = option(0.01, "fraction of the mean diagonal added for stability; raised when it is not enough")

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        if not 0 < self.damping <= MAX_DAMPING:
            raise InputError(f"damping={self.damping} is outside (0, 1].", "0.01 is the usual value.")
        return super().plan(architecture, schemes)

    def quantize(
        self, weights: Mapping[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        first = next(iter(weights))
        # Rows do not influence each other, so layers that share an input are solved as one tall matrix.
        solution = solve(
            torch.cat(list(weights.values())),
            statistics.gram,
            self.scheme_of(first),
            damping=self.damping,
            act_order=self.act_order,
            scale_search=self.scale_search,
        )
        if solution.dead_inputs:
            context.notes.append(f"{first}: {solution.dead_inputs} inputs were never active; rounded to nearest")
        if solution.damping > self.damping:
            context.notes.append(f"{first}: damping raised from {self.damping:g} to {solution.damping:g}")
        parts = _split_rows(solution.weight, [len(weight) for weight in weights.values()])
        rounded: dict[str, Weight] = {f"{name}.weight": part for name, part in zip(weights, parts, strict=True)}
        return with_input_scales(rounded, dict.fromkeys(weights, statistics.largest.amax()), context)


def _split_rows(weight: QuantizedWeight, rows: list[int]) -> list[QuantizedWeight]:
    zero_points = [None] * len(rows) if weight.zero_points is None else weight.zero_points.split(rows)
    return [
        QuantizedWeight(codes, scales, zero, weight.scheme)
        for codes, scales, zero in zip(weight.codes.split(rows), weight.scales.split(rows), zero_points, strict=True)
    ]
