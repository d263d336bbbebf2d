"""The ModelOpt int4 layout: against ModelOpt's own packer, and there and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from targets.packing.output_pairs import pack_output_pairs
from targets.tensorrt_llm.reader import unpack_nibbles

# Made by modelopt.torch.export.quant_utils.pack_int4_in_uint8 of nvidia-modelopt 0.47.0 (block 64, unit scales).
# One hex digit of CODES is one integer plus 8, in rows of 64; PACKED is the packer's bytes in rows of 64.
CODES = (
    "0123456789abcdef7604cd7e8a1a622fc13a58e1da8be78b1bf054e15fe4c760"
    "fedcba987654321057abc43b0f00022b70fd5e0d141c22c4a8c0ba604b151887"
    "d0091f7c87b4a00c4ccb30827213d2412f2734e16cb791b0ccc0b5b8488ec349"
    "a2c547f9a190dec7c4da8ca84ece140567cf0781c53afcb69c137df4fef9dd08"
)
PACKED = (
    "78695a4b3c2d1e0ff0e1d2c3b4a59687dffe283c44c5bf36807289828eaaaa37f4897b52dd60865995c29043a6af40c3290347883d2ce689cd3796dc940f0ef8"
    "25a848d1c9f77f14209f138c526848f44cc454230b48200acf6a496b95ca8cd9eaf74a7f8bfc06994ed4b32f714933e8144494b8f35d73c07c607016545b8c01"
)


def golden_codes() -> torch.Tensor:
    return torch.tensor([int(digit, 16) - 8 for digit in CODES], dtype=torch.int8).view(4, 64)


def test_packs_what_modelopt_packs():
    assert bytes(pack_output_pairs(golden_codes()).flatten().tolist()).hex() == PACKED


def test_reads_what_modelopt_packed():
    packed = np.frombuffer(bytes.fromhex(PACKED), np.uint8).reshape(2, 64)
    assert np.array_equal(unpack_nibbles(packed), golden_codes().numpy())


@settings(max_examples=60, deadline=None)
@given(pairs=st.integers(1, 40), columns=st.integers(1, 80), seed=st.integers(0, 2**32 - 1))
def test_there_and_back(pairs, columns, seed):
    codes = torch.randint(-8, 8, (2 * pairs, columns), generator=torch.Generator().manual_seed(seed), dtype=torch.int8)
    packed = pack_output_pairs(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (pairs, columns)
    assert np.array_equal(unpack_nibbles(packed.numpy()), codes.numpy())


def test_every_pair_of_integers():
    low, high = torch.meshgrid(torch.arange(-8, 8), torch.arange(-8, 8), indexing="ij")
    codes = torch.stack([low.flatten(), high.flatten()]).to(torch.int8)
    expected = [(a & 15) + 16 * (b & 15) for a, b in zip(*codes.tolist(), strict=True)]
    assert pack_output_pairs(codes).tolist() == [expected]


def test_a_strided_view_is_packed_as_it_reads():
    codes = golden_codes()
    assert torch.equal(pack_output_pairs(codes.T.contiguous().T), pack_output_pairs(codes))


@pytest.mark.parametrize("codes", [torch.zeros(3, 4), torch.full((2, 2), 8), torch.full((2, 2), -9)])
def test_refuses_what_does_not_fit(codes):
    with pytest.raises(ValueError, match=r"pair up|outside"):
        pack_output_pairs(codes.to(torch.int8))
