"""One decoder layer on the calibration text, stage by stage.

The linears of a layer are met in forward order, those that read the same input together. Each is observed on what
the already replaced linears before it give, and every activation is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calibration.activations import InputStatistics
from compressor.checkpoint import Block, Weight
from compressor.decoder import Decoder, batches, dense
from compressor.quantized import QuantizedWeight
from compressor.rounding import round_inputs_of

# What goes into the last linear of a branch is kept until that linear has been replaced, up to this many bytes;
# beyond, the branch is run again instead.
KEPT_BYTES = 512 << 20


@dataclass(frozen=True)
class Stage:
    """Linears that read the same input: names within the layer (`self_attn.q_proj`) and statistics of that input."""

    linears: tuple[str, ...]
    statistics: InputStatistics


@dataclass(frozen=True)
class Branch:
    """One residual branch of a decoder layer: hidden += last(inner(norm(hidden))).

    Attributes:
        first: names of the linears that read the norm's output.
        last: name of the linear that writes to the residual stream.
    """

    norm: str
    body: str
    first: tuple[str, ...]
    last: str


BRANCHES = (
    Branch("input_layernorm", "self_attn", ("q_proj", "k_proj", "v_proj"), "o_proj"),
    Branch("post_attention_layernorm", "mlp", ("gate_proj", "up_proj"), "down_proj"),
)


class LayerWalk:
    """Walks one layer.

    Args:
        layer: the decoder layer; its linears may be given new weights between two stages.
        context: keyword arguments of its attention: positions, mask.
        hidden: float32 [samples, length, hidden_size], what the layer reads; replaced by its outputs.
        dtype: of the matrix products. The residual stream and the norms stay in float32.
    """

    def __init__(self, layer: nn.Module, context: Mapping[str, Any], hidden: torch.Tensor, dtype: torch.dtype) -> None:
        self._layer, self._hidden, self._dtype = layer, hidden, dtype
        self._context = {key: _cast(value, dtype) for key, value in context.items()}
        for branch in BRANCHES:
            layer.get_submodule(branch.body).to(dtype)

    def replace(self, linear: str, weight: Weight) -> None:
        """Give a linear (named as in `Stage.linears`) a new weight; it reads its inputs rounded if that asks for it."""
        module = self._layer.get_submodule(linear)
        module.weight.data = dense(weight).to(self._dtype)
        if isinstance(weight, QuantizedWeight):
            round_inputs_of(module, weight)

    @torch.no_grad()
    def stages(self) -> Iterator[Stage]:
        """Every stage in forward order; when they are through, the hidden states are the outputs of the layer."""
        for branch in BRANCHES:
            yield from self._stages_of(branch)

    def _stages_of(self, branch: Branch) -> Iterator[Stage]:
        hidden = self._hidden
        norm, body = self._layer.get_submodule(branch.norm), self._layer.get_submodule(branch.body)
        last = body.get_submodule(branch.last)
        read = InputStatistics(hidden.shape[-1])
        for batch in batches(hidden):
            read.add(norm(batch).to(self._dtype))
        yield Stage(tuple(f"{branch.body}.{name}" for name in branch.first), read)

        inner = InputStatistics(last.in_features)
        kept = []
        keep = hidden.numel() // hidden.shape[-1] * last.in_features * self._dtype.itemsize <= KEPT_BYTES
        for batch in batches(hidden):
            values = self._inner(branch, norm(batch))
            inner.add(values)
            if keep:
                kept.append(values)
        yield Stage((f"{branch.body}.{branch.last}",), inner)

        for index, batch in enumerate(batches(hidden)):
            batch.add_(last(kept[index] if keep else self._inner(branch, norm(batch))))

    def _inner(self, branch: Branch, inputs: torch.Tensor) -> torch.Tensor:
        body = self._layer.get_submodule(branch.body)
        with _without(body, branch.last):
            outputs = body(inputs.to(self._dtype), **(self._context if branch.body == "self_attn" else {}))
        return outputs[0] if isinstance(outputs, tuple) else outputs


@contextmanager
def _without(body: nn.Module, linear: str) -> Iterator[None]:
    """Let `body` return what goes into its last linear."""
    module = getattr(body, linear)
    setattr(body, linear, nn.Identity())
    try:
        yield
    finally:
        setattr(body, linear, module)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(part, dtype) for part in value)
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class Stream:
    """The calibration text on its way through a model: `hidden`, float32 [samples, length, hidden_size]."""

    def __init__(self, decoder: Decoder, tokens: torch.Tensor, dtype: torch.dtype) -> None:
        self._decoder, self._dtype = decoder, dtype
        self.hidden = decoder.embed(tokens)

    def enter(self, block: Block) -> LayerWalk:
        """The decoder layer of `block`, to be walked from where the text now is."""
        assert block.index is not None
        layer, context = self._decoder.layer(block), self._decoder.context(block.index, self.hidden.shape[1])
        return LayerWalk(layer, context, self.hidden, self._dtype)

    def at_head(self) -> InputStatistics:
        """Statistics of what lm_head reads; the hidden states go through the final norm."""
        self._decoder.final_norm(self.hidden)
        statistics = InputStatistics(self.hidden.shape[-1])
        for batch in batches(self.hidden):
            statistics.add(batch.to(self._dtype))
        return statistics


def fast_dtype() -> torch.dtype:
    """bfloat16 where this CPU multiplies matrices in it (AVX512-BF16, AMX), else float32."""
    capabilities = torch.cpu.get_capabilities()
    return torch.bfloat16 if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else torch.float32
