"""Calibration block by block: each block is observed on the outputs of the already changed blocks before it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from calibration.activations import InputGram, InputObserver
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.decoder import Decoder, batches
from compressor.errors import RunError
from compressor.pass_ import Need, PassContext
from passes.quantizing import QuantizingPass


@dataclass(frozen=True)
class SequentialPass(QuantizingPass):
    """Base of quantizing passes that look at what each linear reads on calibration text."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.CALIBRATION})

    @abstractmethod
    def quantize(
        self, weights: Mapping[str, torch.Tensor], gram: torch.Tensor, context: PassContext
    ) -> dict[str, Weight]:
        """Quantize layers that read the same input.

        Args:
            weights: float32 [out_features, in_features], by layer name.
            gram: mean of x xᵀ over their inputs, float32 [in_features, in_features].
        """

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        assert context.tokens is not None  # `needs` says so
        stream = _Stream(self, checkpoint, context, Decoder(checkpoint))
        return checkpoint.rewrite(context.out, stream.edit, context.provenance)


class _Stream:
    """The calibration text on its way through the model: hidden states [samples, length, hidden_size]."""

    def __init__(self, owner: SequentialPass, checkpoint: Checkpoint, context: PassContext, decoder: Decoder) -> None:
        self._owner, self._checkpoint, self._context, self._decoder = owner, checkpoint, context, decoder
        assert context.tokens is not None
        self._hidden = decoder.embed(context.tokens)

    def edit(self, block: Block) -> Block:
        if block.name == "embedding":
            return block
        if block.index is None:
            return self._edit_head(block)
        edited = self._edit_layer(block, block.index)
        self._decoder.run(self._decoder.layer(edited), block.index, self._hidden)
        self._context.progress(self._owner.name, block.index + 1, self._checkpoint.architecture.layers)
        return edited

    def _edit_layer(self, block: Block, index: int) -> Block:
        weights = self._owner.weights_to_quantize(block, self._checkpoint)
        if not weights:
            return block
        prefix = f"model.{block.name}."
        layer = self._decoder.layer(block)
        with InputObserver(layer, [name.removeprefix(prefix) for name in weights]) as observer:
            for _ in self._decoder.outputs(layer, index, self._hidden):
                pass
        quantized: dict[str, Weight] = {}
        for names, gram in observer.groups().items():
            quantized |= self._quantize({prefix + name: weights[prefix + name] for name in names}, gram)
        return block.with_weights(quantized)

    def _edit_head(self, block: Block) -> Block:
        weights = self._owner.weights_to_quantize(block, self._checkpoint)
        if not weights:
            return block
        self._decoder.final_norm(self._hidden)
        gram = InputGram.empty(self._hidden.shape[-1])
        for batch in batches(self._hidden):
            gram.add(batch)
        return block.with_weights(self._quantize(weights, gram))

    def _quantize(self, weights: Mapping[str, torch.Tensor], gram: InputGram) -> dict[str, Weight]:
        if not bool(torch.isfinite(gram.mean).all()):
            first = next(iter(weights))
            raise RunError(
                f"The inputs of {first} hold NaN or Inf on the calibration text.", "The model overflows on it."
            )
        return self._owner.quantize(weights, gram.mean, self._context)
