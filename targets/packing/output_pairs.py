"""The int4 layout of ModelOpt's unified checkpoints: two output channels to a byte, as TensorRT-LLM reads it.

Source: NVIDIA/Model-Optimizer, modelopt/torch/export/quant_utils.py, `pack_int4_in_uint8`.
"""

from __future__ import annotations

import torch


def pack_output_pairs(codes: torch.Tensor) -> torch.Tensor:
    """int8 codes [out_features, in_features] in [-8, 7] to uint8 [out_features / 2, in_features].

    Row 2r lies in the low nibbles of row r and row 2r + 1 in the high ones, both in two's complement.

    Raises:
        ValueError: the number of output channels is odd, or a code does not fit four bits.
    """
    if codes.shape[0] % 2:
        raise ValueError(f"{codes.shape[0]} output channels do not pair up")
    if bool(((codes < -8) | (codes > 7)).any()):
        raise ValueError("a code is outside [-8, 7]")
    # As unsigned bytes a left shift drops the sign bits, which is what two's complement wants.
    unsigned = codes.contiguous().view(torch.uint8)
    return (unsigned[0::2] & 0x0F) | (unsigned[1::2] << 4)
