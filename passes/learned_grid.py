"""A learned grid: rounding offsets of weights and widenings of ranges, trained by gradient descent.

Paper: Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs", 2023.
All that is learned is measured in steps of the grid it starts from, starts at zero and stays within half a step: one
rate fits all, and the outermost weights of a group move with its range as far as by their own offsets. Gradients pass
straight through every rounding, that of scales to 16 bits included, so what is trained is the value that is stored.

Two things differ from the paper, both measured to be better. It learns factors of the range; at the offsets' rate they
overshoot. And it follows the signs of gradients; from a good start, where the gradients of most weights keep changing
their signs, these take it away from there. Adam hardly moves such weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compressor.quantized import QuantizedWeight, Scheme, shared_scale
from passes.grid import ELEMENTS_AT_ONCE, Grid, assemble

REACH = 0.5
MEAN_DECAY, SQUARE_DECAY = 0.9, 0.95
MARGIN = 0.05  # of a step, how far inside the interval of its code a weight starts that another solver put there


def learned_grid(start: Grid, widenings: torch.Tensor, scheme: Scheme) -> Grid:
    """The grid of the ranges of `start`, each widened at its ends.

    Args:
        widenings: steps of `start`, float32 [out_features, groups, 2] for the low and the high end, or [..., 1] for
            both of them (symmetric).
    """
    zero = 0.0 if start.zero_points is None else start.zero_points
    low = (scheme.lowest - zero - widenings[..., 0]) * start.scales
    high = (scheme.highest - zero + widenings[..., -1]) * start.scales
    exact = (high - low) / (scheme.highest - scheme.lowest)
    scales = _straight_through(exact, shared_scale(exact.detach(), scheme.bits))
    if start.zero_points is None:
        return Grid(scales, None)
    position = scheme.lowest - low / scales
    return Grid(scales, _straight_through(position, position.detach().round()).clamp(scheme.lowest, scheme.highest))


def learned_levels(weight: torch.Tensor, offsets: torch.Tensor, grid: Grid, scheme: Scheme) -> torch.Tensor:
    """Code less zero point of a weight [out_features, groups, width], each moved by its offset before it is rounded."""
    position = weight / grid.scales.unsqueeze(-1) + offsets
    zero = _zero(grid)
    return _straight_through(position, position.detach().round()).clamp(scheme.lowest - zero, scheme.highest - zero)


def fake_quantize(
    weight: torch.Tensor, offsets: torch.Tensor, widenings: torch.Tensor, start: Grid, scheme: Scheme
) -> torch.Tensor:
    """The value of `weight` [out_features, groups, width] once it is stored; differentiable in what is learned."""
    grid = learned_grid(start, widenings, scheme)
    return learned_levels(weight, offsets, grid, scheme) * grid.scales.unsqueeze(-1)


@dataclass(frozen=True)
class Learned:
    """Numbers that are learned, and the running moments of their gradient, float32 of one shape."""

    value: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor

    @classmethod
    def zeros(cls, *shape: int) -> Learned:
        return cls(torch.zeros(shape), torch.zeros(shape), torch.zeros(shape))

    def to(self, device: torch.device) -> Learned:
        """The same on a device."""
        return Learned(self.value.to(device), self.mean.to(device), self.square.to(device))

    def rows(self, rows: slice) -> Learned:
        """A view of some rows."""
        return Learned(self.value[rows], self.mean[rows], self.square[rows])

    def step(self, gradient: torch.Tensor, rate: float, count: int) -> None:
        """Step number `count`, from 1 on, of Adam (Kingma and Ba, 2014), in place and within REACH of zero."""
        self.mean.lerp_(gradient, 1 - MEAN_DECAY)
        self.square.lerp_(gradient.square(), 1 - SQUARE_DECAY)
        unbiased = rate * math.sqrt(1 - SQUARE_DECAY**count) / (1 - MEAN_DECAY**count)
        spread = self.square.sqrt().add_(torch.finfo(torch.float32).tiny)
        self.value.addcdiv_(self.mean, spread, value=-unbiased).clamp_(-REACH, REACH)


def nearest_that_rounds_to(rounded: QuantizedWeight, weight: torch.Tensor) -> torch.Tensor:
    """The values closest to `weight` [out_features, in_features] that the grid of `rounded` rounds to its codes."""
    scheme, codes = rounded.scheme, _grouped(rounded.codes.float(), rounded.scales)
    level = codes if rounded.zero_points is None else codes - rounded.zero_points.unsqueeze(-1)
    scale, half = rounded.scales.unsqueeze(-1), 0.5 - MARGIN
    # The outermost codes stand for everything beyond them.
    low = torch.where(codes > scheme.lowest, level - half, -torch.inf)
    high = torch.where(codes < scheme.highest, level + half, torch.inf)
    return _grouped(weight, rounded.scales).clamp(low * scale, high * scale).view(weight.shape)


class LearnedWeight:
    """A linear weight whose rounding is being learned.

    Attributes:
        values: [out_features, in_features], what the linear multiplies by as things stand, to be put into the layer;
            its gradient drives `step`.

    Args:
        rounded: the codes to start from, and their grid.
        weight: float32 [out_features, in_features], the original.
        dtype: of `values`.
    """

    def __init__(self, rounded: QuantizedWeight, weight: torch.Tensor, dtype: torch.dtype) -> None:
        self._scheme = rounded.scheme
        self._start = Grid(rounded.scales, None if rounded.zero_points is None else rounded.zero_points.float())
        self._weight = _grouped(nearest_that_rounds_to(rounded, weight), rounded.scales)
        self._offsets = Learned.zeros(*self._weight.shape)
        self._widenings = Learned.zeros(*rounded.scales.shape, 1 if rounded.scheme.symmetric else 2)
        self._steps = 0
        self.values = nn.Parameter(torch.empty(weight.shape, dtype=dtype))
        for rows in self._parts():
            self._render(rows)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of descent from the gradient that `values` has, which is used up; `rate` is in steps of the grid."""
        self._steps += 1
        for rows in self._parts():
            learned = self._offsets.rows(rows), self._widenings.rows(rows)
            for part, gradient in zip(learned, self._gradients(rows), strict=True):
                part.step(gradient, rate, self._steps)
            self._render(rows)
        self.values.grad = None

    def state(self) -> dict[str, Any]:
        """What has been learned so far, and with which moments: all that `restore` needs."""
        learned = {"offsets": self._offsets, "widenings": self._widenings}
        return {name: dict(vars(part)) for name, part in learned.items()} | {"steps": self._steps}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a state, on the device that `values` is on."""
        self._to(self.values.device)
        self._offsets, self._widenings = (
            Learned(**state[name]).to(self.values.device) for name in ("offsets", "widenings")
        )
        self._steps = state["steps"]
        for rows in self._parts():
            self._render(rows)

    def _to(self, device: torch.device) -> None:
        self._weight = self._weight.to(device)
        zero_points = self._start.zero_points
        self._start = Grid(self._start.scales.to(device), None if zero_points is None else zero_points.to(device))

    @torch.no_grad()
    def quantized(self) -> QuantizedWeight:
        """The weight as it would be stored now."""
        grid = learned_grid(self._start, self._widenings.value, self._scheme)
        codes = torch.empty(self.values.shape, device=self.values.device)
        for rows in self._parts():
            part = _rows(grid, rows)
            levels = learned_levels(self._weight[rows], self._offsets.value[rows], part, self._scheme)
            codes[rows] = (levels + _zero(part)).flatten(1)
        return assemble(codes, self._scheme, grid)

    def _parts(self) -> Iterator[slice]:
        """Rows that are worked on together: few enough to stay in the cache from one operation to the next."""
        rows, columns = self.values.shape
        size = max(1, ELEMENTS_AT_ONCE // columns)
        return (slice(start, start + size) for start in range(0, rows, size))

    def _gradients(self, rows: slice) -> tuple[torch.Tensor, ...]:
        """Of the loss with respect to what is learned, from the one with respect to the values."""
        assert self.values.grad is not None, "a step follows a backward pass"
        with torch.enable_grad():
            learned = [part.value[rows].requires_grad_() for part in (self._offsets, self._widenings)]
            values = self._values(rows, *learned)
        return torch.autograd.grad(values, learned, self.values.grad[rows].float().view_as(values))

    @torch.no_grad()
    def _render(self, rows: slice) -> None:
        self.values[rows] = self._values(rows, self._offsets.value[rows], self._widenings.value[rows]).flatten(1)

    def _values(self, rows: slice, offsets: torch.Tensor, widenings: torch.Tensor) -> torch.Tensor:
        return fake_quantize(self._weight[rows], offsets, widenings, _rows(self._start, rows), self._scheme)


class _StraightThrough(torch.autograd.Function):
    """The value of the second argument with the gradient of the first."""

    @staticmethod
    def forward(context: Any, exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


_straight_through = _StraightThrough.apply


def _grouped(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return weight.view(*scales.shape, -1)


def _zero(grid: Grid) -> torch.Tensor | float:
    return 0.0 if grid.zero_points is None else grid.zero_points.unsqueeze(-1)


def _rows(grid: Grid, rows: slice) -> Grid:
    return Grid(grid.scales[rows], None if grid.zero_points is None else grid.zero_points[rows])
