"""Runs a checkpoint one block at a time, in float32, with transformers' own layer code.

This is the definition of what a checkpoint computes: passes calibrate with it and every step is measured with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from compressor.architecture import Architecture, full_config, resolve
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.families import CACHE_SCALES, HEAD
from compressor.low_rank import LowRank
from compressor.quantized import QuantizedWeight, split_rows
from compressor.rounding import equip, prepare_inputs, round_cache_of

# Of the hidden states in one forward call: enough rows to fill the matrix units, little next to a block.
ELEMENTS_PER_BATCH = 1 << 20
ROWS_AT_ONCE = 256


class Decoder:
    """A checkpoint that can be run block by block. Holds the rotary tables and a weightless skeleton, no weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.architecture = checkpoint.architecture
        self._skeleton: Any = _empty_model(checkpoint.config, torch.float32)
        self._rotary: Any = _rotary(self._skeleton)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states before the first decoder block, float32 [samples, length, hidden_size]."""
        modules, weights = self.architecture.modules, self.checkpoint.block("embedding").weights
        hidden = _rows(weights[f"{modules.embedding}.weight"], tokens)
        if modules.positions:
            hidden += _rows(weights[f"{modules.positions}.weight"], torch.arange(tokens.shape[-1]))
        scale = self.architecture.embedding_scale
        return hidden if scale == 1 else hidden.mul_(scale)

    def layer(self, block: Block, products: torch.dtype = torch.float32) -> nn.Module:
        """The decoder layer of `block`: weights dequantized, inputs prepared and cache rounded as they ask.

        Args:
            products: dtype of attention and MLP; those that have it already are not copied. The norms are float32.
        """
        layer = copy.deepcopy(self._skeleton.get_submodule(block.prefix.rstrip(".")))
        attention, mlp = self.architecture.modules.branches
        stored = {name.removeprefix(block.prefix): weight for name, weight in block.weights.items()}
        cache = [f"{attention.body}.{name}" for name in CACHE_SCALES]
        scales = [dense(stored.pop(name)) for name in cache if name in stored]
        bodies = (f"{attention.body}.", f"{mlp.body}.")
        state = {
            name: dense(core_of(weight), products if name.startswith(bodies) else torch.float32)
            for name, weight in stored.items()
        }
        layer.load_state_dict(state, assign=True)
        for name, weight in stored.items():
            if isinstance(weight, QuantizedWeight):
                equip(layer.get_submodule(name.removesuffix(".weight")), weight)
        if scales:
            round_cache_of(layer.get_submodule(attention.body), *scales)
        return layer.eval()

    @torch.no_grad()
    def outputs(
        self, layer: nn.Module, index: int, hidden: torch.Tensor
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Views of `hidden` [samples, length, hidden_size], each with what decoder layer `index` makes of it."""
        context = self.context(index, hidden.shape[1])
        for batch in batches(hidden):
            yield batch, layer(batch, **context)

    def run(self, layer: nn.Module, index: int, hidden: torch.Tensor) -> None:
        """Replace `hidden` by the outputs of decoder layer `index`."""
        for batch, output in self.outputs(layer, index, hidden):
            batch.copy_(output)

    @torch.no_grad()
    def final_states(self, tokens: torch.Tensor, progress: Callable[[int], None] | None = None) -> torch.Tensor:
        """What lm_head reads, float32 [samples, length, hidden_size]; `logits` goes on from there."""
        hidden = self.embed(tokens)
        for index in range(self.architecture.layers):
            self.run(self.layer(self.checkpoint.block(f"layers.{index}")), index, hidden)
            if progress is not None:
                progress(index + 1)
        self.final_norm(hidden)
        self._prepare_head_inputs(hidden)
        return hidden

    def norm(self) -> nn.Module:
        """The norm before the head, in float32."""
        name = self.architecture.modules.norm
        norm = copy.deepcopy(self._skeleton.get_submodule(name))
        weights = self.checkpoint.read([f"{name}.{part}" for part in norm.state_dict()])
        norm.load_state_dict({key.rpartition(".")[2]: dense(weight) for key, weight in weights.items()}, assign=True)
        return norm

    @torch.no_grad()
    def final_norm(self, hidden: torch.Tensor) -> None:
        """Apply the norm before the head to `hidden`, in place."""
        norm = self.norm()
        for batch in batches(hidden):
            batch.copy_(norm(batch))

    def _prepare_head_inputs(self, hidden: torch.Tensor) -> None:
        scheme = self.checkpoint.schemes.get("lm_head")
        if self.architecture.tied_embeddings or scheme is None or not (scheme.activations or scheme.input_factors):
            return
        weight = self.checkpoint.read(["lm_head.weight"])["lm_head.weight"]
        assert isinstance(weight, QuantizedWeight)
        prepare = prepare_inputs(weight)
        for batch in batches(hidden):
            batch.copy_(prepare(batch))

    def head(self) -> torch.Tensor:
        """What multiplies the final states, float32 [vocab_size, hidden_size]; the embedding where it is tied."""
        name = f"{self.architecture.embedding if self.architecture.tied_embeddings else HEAD}.weight"
        return dense(core_of(self.checkpoint.read([name])[name]))

    def logits(self, states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocab_size] of final states [..., hidden_size]."""
        return soft_cap(states @ head.T, self.architecture.logit_softcap)

    def context(self, index: int, length: int) -> dict[str, Any]:
        """Keyword arguments of decoder layer `index` for texts of this many tokens: positions, mask."""
        positions = torch.arange(length).unsqueeze(0)
        context: dict[str, Any] = {"position_ids": positions, "attention_mask": self._mask(index, length)}
        if self.architecture.rotary_dim:
            kind = self.architecture.rotary_kinds[index]
            context["position_embeddings"] = _rotary_table(self._rotary, positions, kind)
        return context

    def _mask(self, index: int, length: int) -> torch.Tensor | None:
        """Of plain causal attention there is none where the attention function knows causality by itself."""
        window = self.architecture.windows[index] or length
        if self.architecture.attention_softcap is not None:
            seen = _window_mask(length, window)
            return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))  # for eager attention, which adds it
        return _window_mask(length, window) if window < length else None


def soft_cap(values: torch.Tensor, cap: float | None) -> torch.Tensor:
    """c tanh(x / c), or the values themselves where there is no cap."""
    return values if cap is None else torch.tanh(values / cap) * cap


def _rows(table: Weight, indices: torch.Tensor) -> torch.Tensor:
    """Rows of a table [rows, width], float32 [..., width]."""
    if isinstance(table, QuantizedWeight):
        return table.rows(indices.flatten()).dequantize().view(*indices.shape, -1)
    assert isinstance(table, torch.Tensor)
    return nn.functional.embedding(indices, table).float()


def core_of(weight: Weight) -> Weight:
    """What a linear multiplies its prepared inputs by."""
    return weight.core if isinstance(weight, QuantizedWeight) else weight


def dense(weight: Weight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A weight as plain values."""
    if isinstance(weight, torch.Tensor):
        return weight.to(dtype)
    if dtype == torch.float32:
        return weight.dequantize()
    if isinstance(weight, LowRank):
        return weight.dequantize().to(dtype)
    rows = len(weight.codes)
    values = torch.empty(weight.codes.shape, dtype=dtype)
    # In parts, for float32 values take twice what is asked for.
    parts = [min(ROWS_AT_ONCE, rows - start) for start in range(0, rows, ROWS_AT_ONCE)]
    for place, part in zip(values.split(ROWS_AT_ONCE), split_rows(weight, parts), strict=True):
        place.copy_(part.dequantize())
    return values


def batches(hidden: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of [samples, length, hidden_size] along the samples, of at most ELEMENTS_PER_BATCH or a sample."""
    return iter(hidden.split(max(1, ELEMENTS_PER_BATCH // hidden[0].numel())))


def rotary_tables(config: Mapping[str, Any], length: int, kind: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine tables of a rotary embedding, float32 [length, rotary_dim / 2] each, scaling applied.

    Positions beyond the trained context are those of the model's own rule, as transformers computes it.

    Args:
        kind: which one, of `Architecture.rotary_kinds`.
    """
    rotary = _rotary(_empty_model(config, torch.float32))
    cos, sin = _rotary_table(rotary, torch.arange(length).unsqueeze(0), kind)
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def full_model(checkpoint: Checkpoint, dtype: torch.dtype | None = None, rounds_inputs: bool = False) -> Any:
    """The whole transformers model, quantized weights dequantized. Takes a model's memory.

    Args:
        dtype: of weights and computation; None is the checkpoint's own.
        rounds_inputs: whether linears round their inputs as the schemes of their weights say, which takes time. The
            cache is left as it is.
    """
    dtype = dtype or checkpoint.dtype
    model = _empty_model(checkpoint.config, dtype)
    weights: dict[str, torch.Tensor] = {}
    for block in checkpoint.blocks():
        for name, weight in block.weights.items():
            weights[name] = dense(core_of(weight) if rounds_inputs else weight).to(dtype)
            if rounds_inputs and isinstance(weight, QuantizedWeight):
                equip(model.get_submodule(name.removesuffix(".weight")), weight)
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    if checkpoint.architecture.rotary_dim:
        model.base_model.rotary_emb = _rotary(model)
    for module in model.modules():  # an embedding's scale is a buffer, and lies on the meta device
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale)
    return model.eval()


def _empty_model(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The model's modules on the meta device: their code without their weights."""
    from transformers import AutoModelForCausalLM

    architecture = resolve(config)
    attention = attention_implementation(architecture)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(full_config(config), attn_implementation=attention, dtype=dtype)
        if architecture.transposed:
            _replace_transposed(model, architecture)
    return model


def attention_implementation(architecture: Architecture) -> str:
    """What transformers shall compute attention with: its fused function leaves soft-capping out, without a word."""
    return "sdpa" if architecture.attention_softcap is None else "eager"


def _replace_transposed(model: Any, architecture: Architecture) -> None:
    """Put linears in the place of Conv1D modules: weights in memory are [out_features, in_features]."""
    for index in range(architecture.layers):
        for name, (out_features, in_features) in architecture.block_linears(index).items():
            bias = model.get_submodule(name).bias is not None
            model.set_submodule(name, nn.Linear(in_features, out_features, bias=bias, dtype=model.dtype))


def _rotary(model: Any) -> Any:
    """The module that makes rotary tables, with its buffers; None where positions are learned."""
    skeleton = getattr(model.base_model, "rotary_emb", None)
    return None if skeleton is None else type(skeleton)(model.config)


def _rotary_table(rotary: Any, positions: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, length, rotary_dim] of the rotary embedding of this kind."""
    anchor = torch.zeros(1)  # the module takes its dtype from it
    cosines, sines = rotary(anchor, positions, kind) if kind else rotary(anchor, positions)
    return cosines, sines


def _window_mask(length: int, window: int) -> torch.Tensor:
    distance = torch.arange(length).unsqueeze(1) - torch.arange(length)
    return ((distance >= 0) & (distance < window)).view(1, 1, length, length)
