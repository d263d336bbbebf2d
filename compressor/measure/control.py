"""What rounding to 16 bits alone does to a model's answers, so that a runtime is not blamed for it.

Where a checkpoint rounds the inputs of its linears, the last bit of what comes before decides on which side of a step
they fall; a model with activations far larger than others then answers noticeably otherwise in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from compressor.checkpoint import Block
from compressor.decoder import Decoder
from compressor.measure.accuracy import Reference, Report
from compressor.measure.difference import Difference, chunked_difference


class RoundingDecoder(Decoder):
    """A decoder whose linears, blocks, embedding and head give numbers of a 16-bit dtype, held in float32."""

    dtype: torch.dtype = torch.bfloat16

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._rounded(super().embed(tokens))

    def layer(self, block: Block, products: torch.dtype = torch.float32) -> nn.Module:
        layer = super().layer(block, products)
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, inputs, output: self._rounded(output))
        return layer

    def run(self, layer: nn.Module, index: int, hidden: torch.Tensor) -> None:
        super().run(layer, index, hidden)
        hidden.copy_(self._rounded(hidden))

    def final_norm(self, hidden: torch.Tensor) -> None:
        super().final_norm(hidden)
        hidden.copy_(self._rounded(hidden))

    def logits(self, states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return self._rounded(super().logits(states, head))

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        return values.to(self.dtype).float()


def rounding_difference(reference: Reference, dtype: torch.dtype, progress: Report) -> Difference:
    """How far the reference is from itself when it rounds to `dtype` where a runtime does that computes in it."""
    decoder = RoundingDecoder(reference.checkpoint)
    decoder.dtype = dtype
    layers = reference.checkpoint.architecture.layers
    states = decoder.final_states(reference.tokens, lambda index: progress(index, layers))
    head = decoder.head()

    def chunks(window: int) -> Iterator[tuple[int, torch.Tensor]]:
        yield 0, decoder.logits(states[window], head)

    return chunked_difference(chunks, reference, lambda done, total: None)
