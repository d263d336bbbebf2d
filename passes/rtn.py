"""Round to nearest: every weight to the closest code of its group's grid, without calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from calibration.ranges import Ranges
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.options import option
from compressor.pass_ import BlockPass, Need, PassContext
from passes.grid import fit_grid, quantize
from passes.inputs import InputRoundingPass, rewrite_with_ranges, with_input_scales


@dataclass(frozen=True)
class RTN(InputRoundingPass, BlockPass):
    """Round to nearest, the baseline every other quantizer is compared with."""

    name: ClassVar[str] = "rtn"
    summary: ClassVar[str] = "round to nearest; needs calibration text for static activations only"

    scale_search: bool = option(False, "search the clipping that has the least squared error, group by group")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION}) if self.activations == "static" else frozenset()

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        if not self.needs:
            return super().apply(checkpoint, context)

        def edit(block: Block, ranges: Ranges) -> Block:
            return block.with_weights(with_input_scales(self._rounded(block, checkpoint), ranges.inputs, context))

        return rewrite_with_ranges(self.name, checkpoint, context, edit)

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        return block.with_weights(self._rounded(block, checkpoint))

    def _rounded(self, block: Block, checkpoint: Checkpoint) -> dict[str, Weight]:
        rounded: dict[str, Weight] = {}
        for name, weight in self.weights_to_quantize(block, checkpoint).items():
            scheme = self.scheme_of(name)
            rounded[f"{name}.weight"] = quantize(weight, scheme, fit_grid(weight, scheme, None, self.scale_search))
        return rounded
