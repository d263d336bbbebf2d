"""The GEMM layout of AutoAWQ, the writing side: one linear as int32 words, packed along the output features.

    qweight   int32 [in_features, out_features / 8]
    qzeros    int32 [groups, out_features / 8], zero points as they are

Integers are unsigned (code + 8), eight neighbours to a word in an order of their own.
Source: casper-hansen/AutoAWQ, awq/modules/linear/gemm.py and awq/utils/packing_utils.py.
"""

from __future__ import annotations

import torch

from compressor.layout import pack_words
from compressor.quantized import QuantizedWeight

COLUMNS = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight neighbours lies in each place of a word, lowest bits first


def pack_linear(weight: QuantizedWeight) -> dict[str, torch.Tensor]:
    """The tensors of an int4 weight but its scales, by their suffix."""
    return {"qweight": _packed(weight.codes.T), "qzeros": _packed(stored_zero_points(weight).T)}


def stored_zero_points(weight: QuantizedWeight) -> torch.Tensor:
    """Zero points, int8 [out_features, groups]; the format has them always, a symmetric weight's are 0."""
    return torch.zeros_like(weight.scales, dtype=torch.int8) if weight.zero_points is None else weight.zero_points


def _packed(codes: torch.Tensor) -> torch.Tensor:
    """int8 [rows, out_features] to int32 [rows, out_features / 8]."""
    rows, out_features = codes.shape
    return pack_words(codes.reshape(rows, out_features // 8, 8)[..., COLUMNS].flatten(1), 4)
