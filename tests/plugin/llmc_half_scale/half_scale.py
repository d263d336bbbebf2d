"""A pass that lives in a distribution of its own, as a user would write it."""

from dataclasses import dataclass
from typing import ClassVar

from compressor.checkpoint import Block, Checkpoint
from compressor.options import option
from compressor.pass_ import BlockPass, PassContext


@dataclass(frozen=True)
class HalfScale(BlockPass):
    """Multiply the final norm by a factor."""

    name: ClassVar[str] = "half-scale"
    summary: ClassVar[str] = "scale the logits"

    factor: float = option(0.5, "what the final norm is multiplied by")

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        if block.name != "head":
            return block
        return block.with_weights({"model.norm.weight": block.weights["model.norm.weight"] * self.factor})
