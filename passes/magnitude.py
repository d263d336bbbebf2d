"""Magnitude pruning: the entries nearest to zero go, whatever they are multiplied by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from compressor.checkpoint import Block, Checkpoint
from compressor.pass_ import BlockPass, PassContext
from passes.sparsity import Pattern, SparsityPass, keep, keep_anywhere


def prune(weight: torch.Tensor, sparsity: float, pattern: Pattern | None) -> torch.Tensor:
    """The weight [out_features, in_features] with zeros in place of its smallest entries."""
    return weight * keep(weight.float().abs(), sparsity, pattern, keep_anywhere)


@dataclass(frozen=True)
class Magnitude(SparsityPass, BlockPass):
    """Zeros in place of the smallest entries of each weight."""

    name: ClassVar[str] = "magnitude"
    summary: ClassVar[str] = "set the smallest weights to zero"

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        pruned = {
            f"{name}.weight": prune(weight, self.sparsity, self.pattern_kept)
            for name, weight in self.stored_weights(block, checkpoint).items()
        }
        return block.with_weights(pruned)
