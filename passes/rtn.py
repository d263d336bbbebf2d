"""Round to nearest: every weight to the closest code of its group's grid, without calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compressor.checkpoint import Block, Checkpoint
from compressor.options import option
from compressor.pass_ import BlockPass, PassContext
from passes.grid import fit_grid, quantize
from passes.quantizing import QuantizingPass


@dataclass(frozen=True)
class RTN(QuantizingPass, BlockPass):
    """Round to nearest, the baseline every other quantizer is compared with."""

    name: ClassVar[str] = "rtn"
    summary: ClassVar[str] = "round weights to nearest; needs no calibration text"

    scale_search: bool = option(False, "search the clipping that has the least squared error, group by group")

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        rounded = {}
        for name, weight in self.weights_to_quantize(block, checkpoint).items():
            scheme = self.scheme_of(name)
            rounded[f"{name}.weight"] = quantize(weight, scheme, fit_grid(weight, scheme, None, self.scale_search))
        return block.with_weights(rounded)
