"""The layout of AutoGPTQ and GPTQModel, the writing side: one linear as int32 words.

    qweight   int32 [in_features * bits / 32, out_features], packed along the input features
    qzeros    int32 [groups, out_features * bits / 32], packed along the output features
    g_idx     int32 [in_features], the group of each input feature

Integers are unsigned (code + 2^(bits - 1)), the first one in a word's lowest bits. The format called gptq, version 1,
stores each zero point less by one; gptq_v2 stores it as it is.
Source: ModelCloud/GPTQModel, nn_modules/qlinear/__init__.py and utils/model.py.
"""

from __future__ import annotations

from typing import Literal

import torch

from compressor.layout import pack_words
from compressor.quantized import QuantizedWeight

Version = Literal["gptq", "gptq_v2"]


def pack_linear(weight: QuantizedWeight, version: Version) -> dict[str, torch.Tensor]:
    """The tensors of an int4 or int8 weight but its scales, by their suffix.

    Raises:
        ValueError: a zero point is 0 (as an unsigned integer), which version 1 cannot hold.
    """
    bits, in_features = weight.scheme.bits, weight.codes.shape[1]
    zero_points = signed_zero_points(weight)
    if version == "gptq":
        if holds_zero(weight):
            raise ValueError("a zero point is 0, which version 1 would store as -1")
        zero_points = zero_points - 1
    return {
        "qweight": pack_words(weight.codes, bits).T.contiguous(),
        "qzeros": pack_words(zero_points.T.contiguous(), bits),
        "g_idx": torch.arange(in_features, dtype=torch.int32) // (in_features // weight.scales.shape[1]),
    }


def holds_zero(weight: QuantizedWeight) -> bool:
    """Whether a zero point is 0 as an unsigned integer: readers disagree on what version 1 means there."""
    return weight.zero_points is not None and bool((weight.zero_points == weight.scheme.lowest).any())


def signed_zero_points(weight: QuantizedWeight) -> torch.Tensor:
    """Zero points, int8 [out_features, groups]; those of a symmetric weight are 0, the middle of the range."""
    return torch.zeros_like(weight.scales, dtype=torch.int8) if weight.zero_points is None else weight.zero_points
