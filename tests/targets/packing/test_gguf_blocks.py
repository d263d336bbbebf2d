"""The blocks of Q4_0 and Q8_0: by hand, and read by the gguf package."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.packing.gguf_blocks import pack_blocks


def test_a_block_of_q4_0_by_hand():
    codes = torch.arange(32).remainder(16).sub(8).to(torch.int8)  # -8 .. 7, -8 .. 7
    codes[16] = 7
    (row,) = pack_blocks(codes.view(1, 32), torch.tensor([[0.5]]), 4)
    # float16 0.5 is 0x3800; byte j: code j + 8 below, code j + 16 + 8 above.
    nibbles = [0xF0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF]
    assert bytes(row.tolist()) == struct.pack("<e", 0.5) + bytes(nibbles)


def test_blocks_of_q8_0_by_hand():
    codes = torch.arange(-128, -64, dtype=torch.int16).to(torch.int8)
    (row,) = pack_blocks(codes.view(1, 64), torch.tensor([[2.0**-20]]), 8)
    scale = struct.pack("<e", 2.0**-20)  # subnormal in float16
    assert bytes(row.tolist()) == scale + bytes(range(0x80, 0xA0)) + scale + bytes(range(0xA0, 0xC0))


@pytest.mark.parametrize(
    ("codes", "scales", "message"),
    [
        (torch.zeros(1, 64), torch.ones(1, 4), "groups of 16 are not whole blocks"),
        (torch.full((1, 32), 8), torch.ones(1, 1), r"outside \[-8, 7\]"),
        (torch.zeros(1, 32), torch.tensor([[0.1]]), "not exact in float16"),
        (torch.zeros(1, 32), torch.tensor([[1e6]]), "not exact in float16"),
    ],
)
def test_what_does_not_fit_a_block(codes, scales, message):
    with pytest.raises(ValueError, match=message):
        pack_blocks(codes.to(torch.int8), scales, 4)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    groups=st.integers(1, 5),
    blocks=st.integers(1, 4),
    bits=st.sampled_from([4, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_library_dequantizes_them_to_code_times_scale(rows, groups, blocks, bits, seed):
    import gguf

    generator = torch.Generator().manual_seed(seed)
    width, edge = groups * blocks * 32, 2 ** (bits - 1)
    codes = torch.randint(-edge, edge, (rows, width), generator=generator, dtype=torch.int8)
    scales = torch.rand(rows, groups, generator=generator).half().float()
    packed = pack_blocks(codes, scales, bits)
    values = gguf.dequantize(packed.numpy(), gguf.GGMLQuantizationType[f"Q{bits}_0"])
    expected = codes.view(rows, groups, -1).float() * scales.unsqueeze(-1)
    assert np.array_equal(values, expected.view(rows, width).numpy())


def test_a_strided_view_is_packed_as_it_reads():
    codes = torch.randint(-8, 8, (4, 64), dtype=torch.int8)
    scales = torch.ones(4, 2)
    assert torch.equal(pack_blocks(codes.T.contiguous().T, scales, 4), pack_blocks(codes, scales, 4))
