"""Calibration block by block: each linear is observed on the outputs of the already rounded ones before it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from calibration.activations import InputStatistics
from calibration.walk import Stream, fast_dtype
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.decoder import Decoder, dense
from compressor.errors import RunError
from compressor.options import option
from compressor.pass_ import Need, PassContext
from passes.quantizing import QuantizingPass


@dataclass(frozen=True)
class SequentialPass(QuantizingPass):
    """Base of quantizing passes that look at what each linear reads on calibration text."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})

    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "matrix products on calibration text; auto is bfloat16 where the CPU has instructions for it"
    )

    @abstractmethod
    def quantize(
        self, weights: Mapping[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        """Quantize layers that read the same input.

        Args:
            weights: float32 [out_features, in_features], by layer name.
            statistics: of that input.

        Returns:
            The new weights by parameter name.
        """

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        assert context.tokens is not None  # `needs` says so
        dtype = fast_dtype() if self.precision == "auto" else getattr(torch, self.precision)
        stream = Stream(Decoder(checkpoint), context.tokens, dtype)

        def edit(block: Block) -> Block:
            if block.name == "embedding":
                return block
            if block.index is None:
                return self._edit_head(block, checkpoint, stream, context)
            edited = self._edit_layer(block, checkpoint, stream, context)
            context.progress(self.name, block.index + 1, checkpoint.architecture.layers)
            return edited

        return checkpoint.rewrite(context.out, edit, context.provenance)

    def _edit_layer(self, block: Block, checkpoint: Checkpoint, stream: Stream, context: PassContext) -> Block:
        prefix = f"model.{block.name}."
        walk = stream.enter(block)
        quantized: dict[str, Weight] = {}
        for stage in walk.stages():
            # Weights are widened to float32 a stage at a time, not a block at a time.
            read = {f"{prefix}{name}.weight": block.weights[f"{prefix}{name}.weight"] for name in stage.linears}
            weights = self.weights_to_quantize(replace(block, weights=read), checkpoint)
            if not weights:
                continue
            rounded = self._quantize(weights, stage.statistics, context)
            for name, weight in rounded.items():
                walk.replace(name.removeprefix(prefix).removesuffix(".weight"), dense(weight))
            quantized |= rounded
        return block.with_weights(quantized)

    def _edit_head(self, block: Block, checkpoint: Checkpoint, stream: Stream, context: PassContext) -> Block:
        weights = self.weights_to_quantize(block, checkpoint)
        return block.with_weights(self._quantize(weights, stream.at_head(), context)) if weights else block

    def _quantize(
        self, weights: Mapping[str, torch.Tensor], statistics: InputStatistics, context: PassContext
    ) -> dict[str, Weight]:
        if not bool(torch.isfinite(statistics.largest).all()):
            first = next(iter(weights))
            raise RunError(
                f"The inputs of {first} hold NaN or Inf on the calibration text.", "The model overflows on it."
            )
        return self.quantize(weights, statistics, context)
