"""NVFP4 as compressed-tensors stores it: there and back, through its own packer, and through its decompression."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor import layout
from compressor.errors import InputError
from compressor.layout.nvfp4 import pack_e2m1, unpack_e2m1
from compressor.nvfp4 import BlockScales
from compressor.quantized import Activations, Scheme

schemes = st.builds(
    Scheme,
    st.just(4),
    st.just(16),
    st.just(True),
    st.just("float"),
    st.none() | st.just(Activations(4, "float", dynamic=False)),
)
SCHEME = Scheme(4, 16, type="float")


@settings(deadline=None)
@given(schemes, st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31))
def test_decoding_gives_back_what_was_encoded(random_weight, scheme, rows, blocks, seed):
    """Whatever the scales of tensors are: those of other quantizers have inexact reciprocals."""
    weight = random_weight(scheme, rows, 16 * blocks, seed)
    stored = layout.encode(weight, torch.bfloat16)
    assert {part: tuple(tensor.shape) for part, tensor in stored.items()} == layout.stored_shapes(
        scheme, (rows, 16 * blocks)
    )
    assert all(tensor.is_contiguous() for tensor in stored.values())
    once = layout.decode(stored, scheme)
    again = layout.decode(layout.encode(once, torch.bfloat16), scheme)
    assert again.same_bits(once)
    torch.testing.assert_close(once.tensor_scale, weight.tensor_scale, rtol=2**-23, atol=0)


@settings(deadline=None)
@given(st.integers(1, 2**23 - 1))
def test_a_reciprocal_of_a_reciprocal_of_a_reciprocal_is_the_first(mantissa):
    scale = 1 + torch.tensor(float(mantissa)) * 2**-23
    assert 1 / (1 / (1 / scale)) == 1 / scale


@settings(deadline=None)
@given(schemes, st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31), st.integers(-30, 3))
def test_compressed_tensors_decompresses_to_what_dequantize_defines(random_weight, scheme, rows, blocks, seed, power):
    """In bfloat16, and still exactly, where the scale of the tensor is a power of two."""
    weight = random_weight(scheme, rows, 16 * blocks, seed)
    scales = BlockScales(weight.block_scales.codes, torch.tensor(2.0**power))
    weight = replace(weight, scales=scales.values(), rounded_scales=scales)
    config = QuantizationConfig.model_validate(layout.quantization_config({"layer": scheme}, ["layer"]))
    library = BaseCompressor.get_value_from_registry(layout.storage_format(scheme))
    found = library.decompress(layout.encode(weight, torch.float32), config.config_groups["group_0"])["weight"]
    assert found.dtype == torch.bfloat16
    assert torch.equal(found.float(), weight.dequantize())


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_bytes_are_those_of_the_library(random_weight, rows, blocks, seed):
    codes = random_weight(SCHEME, rows, 16 * blocks, seed).codes
    packed = pack_e2m1(codes)
    assert torch.equal(packed, pack_fp4_to_uint8(codes.float()))
    assert torch.equal(unpack_e2m1(packed).view(torch.uint8), codes.view(torch.uint8))


def test_every_code_by_hand():
    numbers = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
    codes = torch.tensor([numbers]).to(torch.float8_e4m3fn)
    assert pack_e2m1(codes).tolist() == [[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]


@pytest.mark.parametrize(
    ("part", "changed", "sentence"),
    [
        ("weight_scale", lambda scale: scale.bfloat16(), "stored as torch.bfloat16; float8_e4m3fn can be read"),
        ("weight_global_scale", torch.zeros_like, "scale of an NVFP4 tensor is not positive"),
        ("weight_global_scale", torch.neg, "scale of an NVFP4 tensor is not positive"),
    ],
)
def test_other_scales_are_refused(random_weight, part, changed, sentence):
    stored = layout.encode(random_weight(SCHEME, 4, 32, 0), torch.float32)
    with pytest.raises(InputError, match=sentence):
        layout.decode({**stored, part: changed(stored[part])}, SCHEME)
