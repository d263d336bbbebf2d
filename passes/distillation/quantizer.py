"""A student whose rounding is trained: every quantized linear multiplies by the values that its integers stand for.

Gradients pass straight through the rounding of `passes.learned_grid`, which decides the integers and scales in the
end too: what was trained is what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.quantized import QuantizedWeight
from passes.distillation.student import whole_model
from passes.learned_grid import LearnedWeight


class QuantizedStudent:
    """A float checkpoint and the integers to start from; offsets of weights and widenings of ranges are trained."""

    def __init__(self, checkpoint: Checkpoint, start: Checkpoint) -> None:
        self.model = whole_model(checkpoint).requires_grad_(False)
        self._learned: dict[str, LearnedWeight] = {}
        for block in start.blocks():
            for name, rounded in block.weights.items():
                if isinstance(rounded, QuantizedWeight):
                    linear = self.model.get_submodule(name.removesuffix(".weight"))
                    self._learned[name] = LearnedWeight(rounded, linear.weight.detach(), torch.float32)
                    linear.weight = self._learned[name].values

    def optimizer(self) -> torch.optim.Optimizer:
        return GridDescent(list(self._learned.values()))

    def weights(self, block: Block) -> Mapping[str, Weight]:
        return {name: _on_cpu(self._learned[name].quantized()) for name in block.weights if name in self._learned}


class GridDescent(torch.optim.Optimizer):
    """Steps of learned weights, as an optimizer: the rate is in steps of the grid."""

    def __init__(self, weights: Sequence[LearnedWeight]) -> None:
        super().__init__([weight.values for weight in weights], {"lr": 0.0})
        self._weights = weights

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # there is no closure to take a loss from
        for weight in self._weights:
            weight.step(self.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        known = super().state_dict()
        return {**known, "state": {number: weight.state() for number, weight in enumerate(self._weights)}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # type: ignore[override]
        for number, weight in enumerate(self._weights):
            weight.restore(state_dict["state"][number])


def _on_cpu(weight: QuantizedWeight) -> QuantizedWeight:
    zero_points = None if weight.zero_points is None else weight.zero_points.cpu()
    return replace(weight, codes=weight.codes.cpu(), scales=weight.scales.cpu(), zero_points=zero_points)
