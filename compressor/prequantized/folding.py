"""Factors of a layer's inputs, folded into the layer that makes them: the integers stay, nothing is rounded.

Inputs of down_proj are rows of up_proj times a gate, inputs of o_proj are mixtures of rows of v_proj, so that a factor
of an input is a factor of such a row, and of its scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Weight
from compressor.quantized import QuantizedWeight


def fold(weights: Mapping[str, Weight], architecture: Architecture) -> dict[str, Weight] | None:
    """The weights of a block without factors of their inputs.

    None: one has no place in the layer before, or the numbers of that layer would have to be rounded for it.
    """
    folded = dict(weights)
    for name, weight in weights.items():
        if not isinstance(weight, QuantizedWeight) or weight.input_factors is None:
            continue
        layer = name.removesuffix(".weight")
        maker, first = _maker(layer, architecture)
        factors = _of_rows(layer, weight.input_factors, architecture)
        if maker is None or factors is None:
            return None
        folded[name] = weight.core
        for part in (f"{maker}.weight", f"{maker}.bias"):
            if part in folded:
                product = _multiplied(folded[part], factors, first)
                if product is None:
                    return None
                folded[part] = product
    return folded


def _maker(layer: str, architecture: Architecture) -> tuple[str | None, int]:
    """The layer whose rows become the inputs of `layer`, each by itself, and the first of them."""
    attention, mlp = architecture.modules.branches
    parts = {attention.last: architecture.value_part}
    if architecture.gated:  # elsewhere an activation lies between
        parts[mlp.last] = architecture.up_part
    for last, (maker, first) in parts.items():
        if layer.endswith(f".{last}"):
            return layer.removesuffix(last) + maker, first
    return None, 0


def _of_rows(layer: str, factors: torch.Tensor, architecture: Architecture) -> torch.Tensor | None:
    """A factor for each row of the layer that makes the inputs. Query heads of a group read the same values."""
    if not layer.endswith(f".{architecture.modules.attention.last}"):
        return factors
    by_head = factors.view(architecture.kv_heads, -1, architecture.head_dim)
    return by_head[:, 0].reshape(-1) if torch.equal(by_head, by_head[:, :1].expand_as(by_head)) else None


def _multiplied(weight: Weight, factors: torch.Tensor, first: int) -> Weight | None:
    stored = weight.scales if isinstance(weight, QuantizedWeight) else weight
    assert isinstance(stored, torch.Tensor)
    of_all = torch.ones(len(stored), dtype=torch.float64)
    of_all[first : first + len(factors)] = factors.double()
    exact = stored.double() * (of_all if stored.dim() == 1 else of_all.unsqueeze(1))
    product = exact.to(stored.dtype)
    shared = isinstance(weight, QuantizedWeight) and (weight.scheme.per_tensor or weight.rounded_scales is not None)
    if shared or not torch.equal(product.double(), exact):
        return None
    return replace(weight, scales=product) if isinstance(weight, QuantizedWeight) else product
