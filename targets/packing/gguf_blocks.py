"""The blocks of GGUF's Q4_0 and Q8_0: 32 neighbouring inputs of one output channel behind the scale they share.

Source: ggml-org/llama.cpp, ggml/src/ggml-common.h (`block_q4_0`, `block_q8_0`) and ggml-quants.c.
"""

from __future__ import annotations

import torch

BLOCK = 32
SCALE_BYTES = 2  # of a float16


def pack_blocks(codes: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """int8 codes [out_features, in_features] and their scales to uint8 [out_features, bytes of a row].

    A block is its scale in float16 and then, of Q8_0, 32 codes in two's complement; of Q4_0, 16 bytes whose low
    nibbles are codes 0 to 15 and whose high nibbles are 16 to 31, each plus 8.

    Args:
        scales: [out_features, groups]; a group is one block or several, in each of which its scale is repeated.
        bits: 4 makes Q4_0, 8 makes Q8_0.

    Raises:
        ValueError: a group is not a whole number of blocks, a code does not fit, or float16 does not hold a scale.
    """
    rows, columns = codes.shape
    groups = scales.shape[1]
    if columns % (groups * BLOCK):
        raise ValueError(f"groups of {columns // groups} are not whole blocks of {BLOCK}")
    halves = scales.to(torch.float16)
    if not torch.equal(halves.float(), scales.float()):
        raise ValueError("a scale is not exact in float16")
    blocks = codes.contiguous().view(rows, -1, BLOCK)
    packed = torch.empty(*blocks.shape[:2], SCALE_BYTES + BLOCK * bits // 8, dtype=torch.uint8)
    repeated = halves.repeat_interleave(blocks.shape[1] // groups, dim=1)
    packed[..., :SCALE_BYTES] = repeated.unsqueeze(-1).view(torch.uint8)
    packed[..., SCALE_BYTES:] = blocks.view(torch.uint8) if bits == 8 else _split_halves(blocks)
    return packed.view(rows, -1)


def _split_halves(blocks: torch.Tensor) -> torch.Tensor:
    if bool(((blocks < -8) | (blocks > 7)).any()):
        raise ValueError("a code is outside [-8, 7]")
    low, high = (blocks + 8).view(torch.uint8).split(BLOCK // 2, dim=-1)
    return low | (high << 4)
