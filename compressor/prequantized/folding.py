"""Scales that multiply a layer's inputs, folded into the layer that makes them: the integers stay, nothing is rounded.

Inputs of down_proj are rows of up_proj times a gate, inputs of o_proj are mixtures of rows of v_proj, so that a factor
of an input is a factor of such a row, and of its scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Weight
from compressor.errors import InputError
from compressor.prequantized.parts import REMEDY
from compressor.quantized import QuantizedWeight


def fold(
    weights: Mapping[str, Weight], scales: Mapping[str, torch.Tensor], architecture: Architecture
) -> dict[str, Weight]:
    """The weights of a block without the scales [in_features] of its layers' inputs.

    Raises:
        InputError: a scale has no place in the layer before, or that layer's numbers would have to be rounded for it.
    """
    folded = dict(weights)
    for layer, scale in scales.items():
        if bool((scale == 1).all()):
            continue
        maker, first = _maker(layer, architecture)
        factors = _of_rows(layer, scale, architecture)
        for name in (f"{maker}.weight", f"{maker}.bias"):
            if name in folded:
                folded[name] = _multiplied(name, folded[name], factors, first, layer)
    return folded


def _maker(layer: str, architecture: Architecture) -> tuple[str, int]:
    """The layer whose rows become the inputs of `layer`, each by itself, and the first of them."""
    attention, mlp = architecture.modules.branches
    parts = {attention.last: architecture.value_part}
    if architecture.gated:  # elsewhere an activation lies between
        parts[mlp.last] = architecture.up_part
    for last, (maker, first) in parts.items():
        if layer.endswith(f".{last}"):
            return layer.removesuffix(last) + maker, first
    raise InputError(f"The inputs of {layer} are scaled, and no layer before takes these factors.", REMEDY)


def _of_rows(layer: str, scale: torch.Tensor, architecture: Architecture) -> torch.Tensor:
    """A factor for each row of the layer that makes the inputs. Query heads of a group read the same values."""
    if not layer.endswith(f".{architecture.modules.attention.last}"):
        return scale
    by_head = scale.view(architecture.kv_heads, -1, architecture.head_dim)
    if not torch.equal(by_head, by_head[:, :1].expand_as(by_head)):
        raise InputError(
            f"The inputs of {layer} are scaled otherwise in query heads that read the same values, "
            "which no factors of these express.",
            REMEDY,
        )
    return by_head[:, 0].reshape(-1)


def _multiplied(name: str, weight: Weight, factors: torch.Tensor, first: int, layer: str) -> Weight:
    stored = weight.scales if isinstance(weight, QuantizedWeight) else weight
    assert isinstance(stored, torch.Tensor)
    of_all = torch.ones(len(stored), dtype=torch.float64)
    of_all[first : first + len(factors)] = factors.double()
    exact = stored.double() * (of_all if stored.dim() == 1 else of_all.unsqueeze(1))
    product = exact.to(stored.dtype)
    shared = isinstance(weight, QuantizedWeight) and (weight.scheme.per_tensor or weight.rounded_scales is not None)
    if shared or not torch.equal(product.double(), exact):
        what = "scales" if isinstance(weight, QuantizedWeight) else "values"
        raise InputError(
            f"The scales of the inputs of {layer} cannot be folded into {name} without rounding its {what} again.",
            REMEDY,
        )
    return replace(weight, scales=product) if isinstance(weight, QuantizedWeight) else product
