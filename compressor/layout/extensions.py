"""What a linear may have that compressed-tensors has no word for: how config.json says it, and the tensors beside
those of the quantized matrix.

    input_factors   float32 [in_features]: the inputs are multiplied by it before anything else
    low_rank_down   in the model's dtype, [rank, in_features] and [out_features, rank]: up (down x) is added to what
    low_rank_up     the quantized matrix makes of x, or is all where there is none (the format `low-rank`)

A folder with such a layer names `llmc` as its `quant_method`, and its shards have names of their own (shards.py). For a
loader that passed over what it does not know would compute something else without a word: vLLM refuses an unknown
method; transformers warns only, and then finds no weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from compressor.errors import InputError
from compressor.low_rank import LowRank
from compressor.quantized import EXTENSIONS, QuantizedWeight, Scheme

METHOD = "llmc"
KEY = "extensions"  # of a config group, beside the library's own
DOWN, UP = LOW_RANK_PARTS = ("low_rank_down", "low_rank_up")


def arguments(scheme: Scheme) -> dict[str, Any]:
    """What a config group says of the extensions of a scheme: nothing where it has none."""
    return {KEY: scheme.extensions} if scheme.extensions else {}


def extended(scheme: Scheme, group: Mapping[str, Any]) -> Scheme:
    """The scheme with the extensions that its config group names.

    Raises:
        InputError: this version does not know one of them.
    """
    named = group.get(KEY) or {}
    unknown = next((name for name in named if name not in EXTENSIONS), None)
    if unknown is not None:
        raise InputError(f"The folder's layers have {unknown}, which this version of llmc does not know.")
    return replace(scheme, **named)


def encode(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The tensors, by their suffix, of what a weight has beside its quantized matrix."""
    # Layers may share the very tensor, which a shard does not store twice.
    factors = {} if weight.input_factors is None else {"input_factors": weight.input_factors.clone()}
    return factors if weight.branch is None else factors | encode_low_rank(weight.branch)


def encode_low_rank(factors: LowRank) -> dict[str, torch.Tensor]:
    """The tensors, by their suffix, of factors."""
    return {DOWN: factors.down.contiguous(), UP: factors.up.contiguous()}


def decode_low_rank(tensors: Mapping[str, torch.Tensor]) -> LowRank:
    """The inverse of `encode_low_rank`."""
    return LowRank(tensors[DOWN], tensors[UP])


def decode(core: QuantizedWeight, tensors: Mapping[str, torch.Tensor], scheme: Scheme) -> QuantizedWeight:
    """The inverse of `encode`: the weight of a scheme with extensions, given its quantized matrix."""
    factors = tensors["input_factors"].float() if scheme.input_factors else None
    branch = decode_low_rank(tensors) if scheme.rank else None
    return replace(core, scheme=scheme, input_factors=factors, branch=branch)


def stored_shapes(scheme: Scheme, shape: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """Suffix and shape of the tensors that `encode` gives for a weight [out_features, in_features]."""
    shapes: dict[str, tuple[int, ...]] = {"input_factors": shape[1:]} if scheme.input_factors else {}
    return shapes | {DOWN: (scheme.rank, shape[1]), UP: (shape[0], scheme.rank)} if scheme.rank else shapes
