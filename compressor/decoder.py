"""Runs a checkpoint one block at a time, in float32, with transformers' own layer code.

This is the definition of what a checkpoint computes: passes calibrate with it and every step is measured with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from compressor.architecture import EMBEDDING, full_config
from compressor.checkpoint import CACHE_SCALES, Block, Checkpoint, Weight
from compressor.quantized import QuantizedWeight, split_rows
from compressor.rounding import round_cache_of, round_inputs, round_inputs_of

# Of the hidden states in one forward call: enough rows to fill the matrix units, little next to a block.
ELEMENTS_PER_BATCH = 1 << 20
ROWS_AT_ONCE = 256
BODIES = ("self_attn.", "mlp.")  # of a decoder layer; the rest are norms


class Decoder:
    """A checkpoint that can be run block by block. Holds the rotary tables and a weightless skeleton, no weights."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._skeleton: Any = _skeleton(checkpoint.config)
        self._rotary: Any = _rotary(checkpoint.config, self._skeleton)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states before the first decoder block, float32 [samples, length, hidden_size]."""
        table = self.checkpoint.block("embedding").weights[f"{EMBEDDING}.weight"]
        if isinstance(table, QuantizedWeight):
            return table.rows(tokens.flatten()).dequantize().view(*tokens.shape, -1)
        return nn.functional.embedding(tokens, table).float()

    def layer(self, block: Block, products: torch.dtype = torch.float32) -> nn.Module:
        """The decoder layer of `block`: weights dequantized, activations and cache rounded as they ask.

        Args:
            products: dtype of attention and MLP; those that have it already are not copied. The norms are float32.
        """
        layer = copy.deepcopy(self._skeleton.layers[block.index])
        prefix = f"model.{block.name}."
        stored = {name.removeprefix(prefix): weight for name, weight in block.weights.items()}
        scales = [dense(stored.pop(name)) for name in CACHE_SCALES if name in stored]
        state = {
            name: dense(weight, products if name.startswith(BODIES) else torch.float32)
            for name, weight in stored.items()
        }
        layer.load_state_dict(state, assign=True)
        for name, weight in stored.items():
            if isinstance(weight, QuantizedWeight):
                round_inputs_of(layer.get_submodule(name.removesuffix(".weight")), weight)
        if scales:
            round_cache_of(layer.self_attn, *scales)
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
        """What lm_head reads, float32 [samples, length, hidden_size]: logits are these @ head.T."""
        hidden = self.embed(tokens)
        for index in range(self.checkpoint.architecture.layers):
            self.run(self.layer(self.checkpoint.block(f"layers.{index}")), index, hidden)
            if progress is not None:
                progress(index + 1)
        self.final_norm(hidden)
        self._round_head_inputs(hidden)
        return hidden

    def norm(self) -> nn.Module:
        """The norm before the head, in float32."""
        norm = copy.deepcopy(self._skeleton.norm)
        weight = self.checkpoint.read(["model.norm.weight"])["model.norm.weight"]
        norm.load_state_dict({"weight": dense(weight)}, assign=True)
        return norm

    @torch.no_grad()
    def final_norm(self, hidden: torch.Tensor) -> None:
        """Apply the norm before the head to `hidden`, in place."""
        norm = self.norm()
        for batch in batches(hidden):
            batch.copy_(norm(batch))

    def _round_head_inputs(self, hidden: torch.Tensor) -> None:
        scheme = self.checkpoint.schemes.get("lm_head")
        tied = self.checkpoint.architecture.tied_embeddings
        if tied or scheme is None or scheme.activations is None:
            return
        weight = self.checkpoint.read(["lm_head.weight"])["lm_head.weight"]
        assert isinstance(weight, QuantizedWeight)
        for batch in batches(hidden):
            batch.copy_(round_inputs(batch, scheme.activations, weight.input_scale))

    def head(self) -> torch.Tensor:
        """The lm_head weight, float32 [vocab_size, hidden_size]; the embedding itself where they are tied."""
        tied = self.checkpoint.architecture.tied_embeddings
        name = "model.embed_tokens.weight" if tied else "lm_head.weight"
        return dense(self.checkpoint.read([name])[name])

    def context(self, index: int, length: int) -> dict[str, Any]:
        """Keyword arguments of decoder layer `index` for texts of this many tokens: positions, mask."""
        positions = torch.arange(length).unsqueeze(0)
        anchor = torch.zeros(1)  # the rotary module takes its dtype from it
        window = self.checkpoint.architecture.windows[index]
        return {
            "position_ids": positions,
            "position_embeddings": self._rotary(anchor, positions),
            # None is plain causal attention, for which no mask has to be held.
            "attention_mask": _window_mask(length, window) if window and window < length else None,
        }


def dense(weight: Weight, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A weight as plain values."""
    if isinstance(weight, torch.Tensor):
        return weight.to(dtype)
    if dtype == torch.float32:
        return weight.dequantize()
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


def rotary_tables(config: Mapping[str, Any], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine tables of the rotary embedding, float32 [length, head_dim / 2] each, scaling applied.

    Positions beyond the trained context are those of the model's own rule, as transformers computes it.
    """
    rotary = _rotary(config, _skeleton(config))
    cos, sin = rotary(torch.zeros(1), torch.arange(length).unsqueeze(0))
    half = cos.shape[-1] // 2
    return cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous()


def full_model(checkpoint: Checkpoint) -> Any:
    """The whole transformers model in the checkpoint's dtype, quantized weights dequantized. Takes a model's memory.

    Activations and cache are left as they are: this model is for timing.
    """
    model = _empty_model(checkpoint.config, checkpoint.dtype)
    weights = {
        name: dense(w).to(checkpoint.dtype) for block in checkpoint.blocks() for name, w in block.weights.items()
    }
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    model.model.rotary_emb = _rotary(checkpoint.config, model.model)
    return model.eval()


def _empty_model(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The model's modules on the meta device: their code without their weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(full_config(config), attn_implementation="sdpa", dtype=dtype)


def _skeleton(config: Mapping[str, Any]) -> Any:
    return _empty_model(config, torch.float32).model


def _rotary(config: Mapping[str, Any], skeleton: Any) -> Any:
    return type(skeleton.rotary_emb)(skeleton.config)


def _window_mask(length: int, window: int) -> torch.Tensor:
    distance = torch.arange(length).unsqueeze(1) - torch.arange(length)
    return ((distance >= 0) & (distance < window)).view(1, 1, length, length)
