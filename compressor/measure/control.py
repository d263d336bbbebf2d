"""What rounding alone does to a model's answers, so that a runtime is held against that.

Where a checkpoint rounds the inputs of its linears, the last bit of what comes before decides on which side of a step
they fall; a model with activations far larger than others then answers noticeably otherwise in bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.decoder import Decoder
from compressor.measure.accuracy import Reference, Report
from compressor.measure.difference import Difference, chunked_difference
from compressor.quantized import Activations, QuantizedWeight
from compressor.rounding import round_inputs
from compressor.target import Rounding

INT8 = Activations(8, "int")


class RoundingDecoder(Decoder):
    """A decoder that rounds as a runtime does, and is in float32 otherwise.

    In a 16-bit dtype are what linears read and give, and what blocks, the embedding and the head give.
    """

    def __init__(self, checkpoint: Checkpoint, rounding: Rounding) -> None:
        super().__init__(checkpoint)
        self._dtype = None if rounding.dtype is None else getattr(torch, rounding.dtype)
        self._block = rounding.block

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._rounded(super().embed(tokens))

    def layer(self, block: Block, products: torch.dtype = torch.float32) -> nn.Module:
        layer = super().layer(block, products)
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_pre_hook(lambda module, inputs: (self._rounded(inputs[0]),))
                module.register_forward_hook(lambda module, inputs, output: self._rounded(output))
        for name, weight in block.weights.items():
            if isinstance(weight, QuantizedWeight) and self._block is not None:
                linear = layer.get_submodule(name.removeprefix(block.prefix).removesuffix(".weight"))
                width = self._width(weight)
                linear.register_forward_pre_hook(lambda _, inputs, width=width: (_in_blocks(inputs[0], width),))
        return layer

    def run(self, layer: nn.Module, index: int, hidden: torch.Tensor) -> None:
        super().run(layer, index, hidden)
        hidden.copy_(self._rounded(hidden))

    def final_norm(self, hidden: torch.Tensor) -> None:
        super().final_norm(hidden)
        hidden.copy_(self._rounded(hidden))
        if self._block is not None and "lm_head" in self.checkpoint.schemes:
            hidden.copy_(_in_blocks(hidden, self._width(self.checkpoint.read(["lm_head.weight"])["lm_head.weight"])))

    def logits(self, states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return self._rounded(super().logits(states, head))

    def _width(self, weight: Weight) -> int:
        """Inputs of a linear that are rounded under one scale."""
        assert isinstance(weight, QuantizedWeight)
        assert self._block is not None
        return min(self._block, weight.codes.shape[1] // weight.scales.shape[1])

    def _rounded(self, values: torch.Tensor) -> torch.Tensor:
        return values if self._dtype is None else values.to(self._dtype).float()


def _in_blocks(values: torch.Tensor, width: int) -> torch.Tensor:
    """Values [..., features] rounded to eight bits, `width` of them under a scale; a last block may be shorter."""
    whole = values.shape[-1] // width * width
    parts = [values[..., :whole].unflatten(-1, (-1, width)), values[..., whole:].unsqueeze(-2)]
    return torch.cat([round_inputs(part, INT8).flatten(-2) for part in parts if part.numel()], -1)


def rounding_difference(reference: Reference, rounding: Rounding, progress: Report) -> Difference:
    """How far the reference is from itself when it rounds as a runtime does."""
    decoder = RoundingDecoder(reference.checkpoint, rounding)
    layers = reference.checkpoint.architecture.layers
    states = decoder.final_states(reference.tokens, lambda index: progress(index, layers))
    head = decoder.head()

    def chunks(window: int) -> Iterator[tuple[int, torch.Tensor]]:
        yield 0, decoder.logits(states[window], head)

    return chunked_difference(chunks, reference, lambda done, total: None)
