"""The stored tensors of every kind of weight: there and back, and through compressed-tensors' own decompression."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor import layout
from compressor.layout.tensors import INPUT_SCALE, SCALE, SHAPE, ZERO_POINT
from compressor.quantized import Activations, Scheme

int_inputs = st.builds(Activations, st.just(8), st.just("int"), st.booleans())
fp8_inputs = st.builds(Activations, st.just(8), st.just("float"), st.booleans())
packed = st.builds(Scheme, st.sampled_from([4, 8]), st.sampled_from([None, 4, 8]), st.booleans())
w8a8 = st.builds(Scheme, st.just(8), st.none(), st.just(True), st.just("int"), int_inputs)
fp8 = st.builds(
    Scheme, st.just(8), st.none(), st.just(True), st.just("float"), st.none() | fp8_inputs, per_tensor=st.booleans()
)
schemes = packed | w8a8 | fp8


@settings(deadline=None)
@given(schemes, st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31))
def test_decoding_gives_back_what_was_encoded(random_weight, scheme, rows, eights, seed):
    weight = random_weight(scheme, rows, 8 * eights, seed)
    stored = layout.encode(weight, torch.bfloat16)
    assert {part: tuple(tensor.shape) for part, tensor in stored.items()} == layout.stored_shapes(
        scheme, (rows, 8 * eights)
    )
    assert set(stored) == set(layout.suffixes(scheme))
    assert stored[SCALE].dtype == torch.bfloat16
    assert all(tensor.is_contiguous() for tensor in stored.values())
    found = layout.decode(stored, scheme)
    assert found.same_bits(weight)
    assert (found.input_scale is None) == (weight.input_scale is None)


@settings(deadline=None)
@given(schemes, st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31))
def test_compressed_tensors_decompresses_to_what_dequantize_defines(random_weight, scheme, rows, eights, seed):
    weight = random_weight(scheme, rows, 8 * eights, seed)
    config = QuantizationConfig.model_validate(layout.quantization_config({"layer": scheme}, ["layer"]))
    library = BaseCompressor.get_value_from_registry(layout.storage_format(scheme))
    stored = layout.encode(weight, torch.float32)
    found = library.decompress(stored, config.config_groups["group_0"])["weight"]
    assert torch.equal(found, weight.dequantize())


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.sampled_from([4, 8]), st.integers(0, 2**31))
def test_zero_points_are_packed_along_the_output_features(random_weight, rows, groups, bits, seed):
    weight = random_weight(Scheme(bits, 1, symmetric=False), rows, groups, seed)
    stored = layout.encode(weight, torch.float32)[ZERO_POINT]
    assert torch.equal(stored, pack_to_int32(weight.zero_points, bits, packed_dim=0))


def test_packed_weights_say_their_shape(random_weight):
    assert layout.encode(random_weight(Scheme(4, 4), 3, 8, 0), torch.float32)[SHAPE].tolist() == [3, 8]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_scale_that_the_dtype_does_not_hold_keeps_its_bits(random_weight, dtype):
    scheme = Scheme(8, None, type="float", activations=Activations(type="float", dynamic=False))
    weight = random_weight(scheme, 3, 8, 0)
    odd = replace(weight, scales=weight.scales + 2**-20, input_scale=torch.tensor(0.1))
    stored = layout.encode(odd, dtype)
    assert stored[SCALE].dtype == stored[INPUT_SCALE].dtype == torch.float32
    assert layout.decode(stored, scheme).same_bits(odd)


def test_formats():
    assert layout.storage_format(Scheme(4, 128)) == "pack-quantized"
    assert layout.storage_format(Scheme(8, None)) == "pack-quantized"
    assert layout.storage_format(Scheme(8, None, activations=Activations())) == "int-quantized"
    assert layout.storage_format(Scheme(8, None, type="float")) == "float-quantized"
