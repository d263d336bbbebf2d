"""Writes genai_config.json, which tells onnxruntime-genai how to drive the graph.

Keys: microsoft/onnxruntime-genai, src/config.cpp; values as its own model builder chooses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor.architecture import Architecture
from compressor.end_tokens import read_generation_config
from compressor.files import write_json
from targets.onnx.special_tokens import SpecialTokens

CONFIG_FILE = "genai_config.json"
# Settings of generation_config.json that genai knows, with genai's defaults.
SEARCH_DEFAULTS = {
    "do_sample": False,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
# By its type gpt2, genai means graphs with keys and values in one tensor. Its other decoders are one.
GENERIC = "llama"
# A shared cache is allocated at the full context at once. Beyond this size it grows with the text instead.
LARGEST_SHARED_CACHE = 1 << 30


@dataclass(frozen=True)
class Cache:
    """Keys and values of a graph.

    Attributes:
        is_shared: whether the graph can write the new part into the buffer that holds the old one.
    """

    dtype: torch.dtype
    is_shared: bool


def write_config(
    model: Path,
    architecture: Architecture,
    tokens: SpecialTokens,
    out: Path,
    cache: Cache,
    session_entries: Mapping[str, str],
) -> None:
    """Write genai_config.json for the model folder `model` into `out`.

    Args:
        session_entries: further settings of the onnxruntime session.
    """
    generation = read_generation_config(model)
    value = {
        "model": {
            **tokens.entries(),
            "context_length": architecture.max_positions,
            "decoder": _decoder(architecture, session_entries),
            "type": architecture.model_type if architecture.rotary_dim else GENERIC,
            "vocab_size": architecture.vocab_size,
        },
        "search": _search(architecture, generation, cache),
    }
    write_json(out / CONFIG_FILE, value)


def _decoder(architecture: Architecture, session_entries: Mapping[str, str]) -> dict[str, Any]:
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": [], **session_entries},
        "filename": "model.onnx",
        "head_size": architecture.head_dim,
        "hidden_size": architecture.hidden_size,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": architecture.heads,
        "num_hidden_layers": architecture.layers,
        "num_key_value_heads": architecture.kv_heads,
    }


def _search(architecture: Architecture, generation: Mapping[str, Any], cache: Cache) -> dict[str, Any]:
    chosen = {key: generation.get(key) for key in SEARCH_DEFAULTS}
    values = {key: default if chosen[key] is None else chosen[key] for key, default in SEARCH_DEFAULTS.items()}
    per_token = 2 * cache.dtype.itemsize * architecture.layers * architecture.kv_heads * architecture.head_dim
    return values | {
        "diversity_penalty": 0.0,
        "early_stopping": True,
        "max_length": architecture.max_positions,
        "min_length": 0,
        "past_present_share_buffer": cache.is_shared and per_token * architecture.max_positions <= LARGEST_SHARED_CACHE,
    }
