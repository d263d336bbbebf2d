"""Packed words, bit for bit against the package they come from."""

from __future__ import annotations

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor import layout

bit_widths = st.sampled_from([4, 8])


def random_codes(rows, columns, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), dtype=torch.int8, generator=generator)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), bit_widths, st.integers(0, 2**31))
def test_unpacking_gives_back_what_was_packed(rows, columns, bits, seed):
    codes = random_codes(rows, columns, bits, seed)
    words = layout.pack_words(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(layout.unpack_words(words, bits, columns), codes)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), bit_widths, st.integers(0, 2**31))
def test_words_equal_those_of_compressed_tensors(rows, columns, bits, seed):
    codes = random_codes(rows, columns, bits, seed)
    expected = pack_to_int32(codes, bits)
    assert torch.equal(layout.pack_words(codes, bits), expected)
    assert torch.equal(layout.unpack_words(expected, bits, columns), unpack_from_int32(expected, bits, codes.shape))


def test_first_code_is_in_the_lowest_bits():
    codes = torch.tensor([[-8, -7, 0, 7, -8, -8, -8, 7]], dtype=torch.int8)
    assert layout.pack_words(codes, 4).item() & 0xFFFFFFFF == 0xF000F810
