"""Calibration block by block: each linear is observed on the outputs of the already rounded ones before it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch

from calibration.activations import InputStatistics
from calibration.walk import LayerWalk, Stream
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.pass_ import PassContext
from passes.calibrated import CalibratedPass, check_finite
from passes.quantizing import QuantizingPass


@dataclass(frozen=True)
class SequentialPass(CalibratedPass, QuantizingPass):
    """Base of quantizing passes that round a linear before the ones that read its outputs are observed."""

    @abstractmethod
    def quantize(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        """Quantize layers that read the same input.

        Args:
            weights: [out_features, in_features] in the dtype they are stored in, by layer name; may be emptied.
            statistics: of that input; may be used up.

        Returns:
            The new weights by parameter name.
        """

    def edit_layer(self, block: Block, walk: LayerWalk, checkpoint: Checkpoint, context: PassContext) -> Block:
        prefix = block.prefix
        quantized: dict[str, Weight] = {}
        for stage in walk.stages():
            names = [f"{prefix}{name}.weight" for name in stage.linears]
            read = replace(block, weights={name: block.weights[name] for name in names})
            weights = self.stored_weights(read, checkpoint)
            del read
            for name in weights:  # as they are now, they are in no other hands
                del block.weights[f"{name}.weight"]
                walk.release(name.removeprefix(prefix))
            if not weights:
                continue
            rounded = self._quantize(weights, stage.statistics, context)
            for name, weight in rounded.items():
                walk.replace(name.removeprefix(prefix).removesuffix(".weight"), weight)
            quantized |= rounded
        return block.with_weights(quantized)

    def edit_head(self, block: Block, stream: Stream, checkpoint: Checkpoint, context: PassContext) -> Block:
        weights = self.stored_weights(block, checkpoint)
        return block.with_weights(self._quantize(weights, stream.at_head(), context)) if weights else block

    def _quantize(
        self, weights: dict[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        check_finite(statistics, next(iter(weights)))
        return self.quantize(weights, statistics, context)
