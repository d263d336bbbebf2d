"""Wanda: the entries go that contribute least to the outputs, by their size times the norm of what they multiply.

Paper: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", 2023. Entries are compared
with others of the same output; what is left keeps its value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from calibration.activations import InputStatistics
from calibration.energy import InputEnergy
from compressor.checkpoint import Weight
from compressor.pass_ import PassContext
from passes.sequential import SequentialEdit
from passes.sparsity import Pattern, SparsityPass, keep, keep_in_rows


def prune(weight: torch.Tensor, energy: torch.Tensor, sparsity: float, pattern: Pattern | None) -> torch.Tensor:
    """The weight with zeros where it contributes least.

    Args:
        weight: [out_features, in_features].
        energy: mean square of each input, float32 [in_features].
    """
    return weight * keep(weight.float().abs() * energy.sqrt(), sparsity, pattern, keep_in_rows)


@dataclass(frozen=True)
class Wanda(SequentialEdit, SparsityPass):
    """Zeros by size and activation."""

    name: ClassVar[str] = "wanda"
    summary: ClassVar[str] = (
        "Wanda (arXiv 2306.11695): zero the weights with the least size times activation; needs calibration text"
    )
    observer: ClassVar[type[InputStatistics]] = InputEnergy

    def solve(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        assert isinstance(statistics, InputEnergy)
        energy = statistics.energy
        dead = int((energy == 0).sum())
        if dead:
            context.notes.append(f"{next(iter(weights))}: {dead} inputs were never active; their weights go first")
        pattern = self.pattern_kept
        return {f"{name}.weight": prune(weight, energy, self.sparsity, pattern) for name, weight in weights.items()}
