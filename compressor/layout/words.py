"""Integers of four or eight bits in int32 words: offset-binary (code + 2^(bits-1)), the first element lowest.

Source: vllm-project/compressed-tensors, compressors/pack_quantized.
"""

from __future__ import annotations

import torch


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes [rows, n] to int32 words [rows, ceil(n * bits / 32)], offset-binary, first element lowest."""
    unsigned = (codes + 2 ** (bits - 1)).view(torch.uint8)  # int8 wraps round to the same eight bits
    padding = -codes.shape[1] % (32 // bits)
    if padding:
        unsigned = torch.nn.functional.pad(unsigned, (0, padding))
    if bits == 4:
        unsigned = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    # A word's lowest byte comes first on every machine that torch is built for.
    return unsigned.flatten().contiguous().view(torch.int32).view(codes.shape[0], unsigned.shape[1] // 4)


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """The inverse of `pack_words`: int8 codes [rows, count]."""
    unsigned = words.flatten().contiguous().view(torch.uint8).view(words.shape[0], 4 * words.shape[1])
    if bits == 4:
        unsigned = torch.stack((unsigned & 15, unsigned >> 4), dim=-1).flatten(1)
    return unsigned[:, :count].view(torch.int8) - 2 ** (bits - 1)


def words_of(count: int, bits: int) -> int:
    """How many words hold `count` codes."""
    return -(-count * bits // 32)
