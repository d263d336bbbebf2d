"""The compressed-tensors layout, bit for bit against the package it comes from."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given
from hypothesis import strategies as st

from compressor import layout
from compressor.errors import InputError
from compressor.quantized import QuantizedWeight, Scheme

bit_widths = st.sampled_from([4, 8])


def random_codes(rows, columns, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), dtype=torch.int8, generator=generator)


@given(st.integers(1, 6), st.integers(1, 40), bit_widths, st.integers(0, 2**31))
def test_unpacking_gives_back_what_was_packed(rows, columns, bits, seed):
    codes = random_codes(rows, columns, bits, seed)
    words = layout.pack_words(codes, bits)
    assert words.dtype == torch.int32
    assert words.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(layout.unpack_words(words, bits, columns), codes)


@given(st.integers(1, 6), st.integers(1, 40), bit_widths, st.integers(0, 2**31))
def test_words_equal_those_of_compressed_tensors(rows, columns, bits, seed):
    codes = random_codes(rows, columns, bits, seed)
    expected = pack_to_int32(codes, bits)
    assert torch.equal(layout.pack_words(codes, bits), expected)
    assert torch.equal(layout.unpack_words(expected, bits, columns), unpack_from_int32(expected, bits, codes.shape))


@given(st.integers(1, 20), st.integers(1, 6), bit_widths, st.integers(0, 2**31))
def test_zero_points_equal_those_of_compressed_tensors(rows, groups, bits, seed):
    zeros = random_codes(rows, groups, bits, seed)
    weight = QuantizedWeight(zeros.clone(), torch.ones(rows, groups), zeros, Scheme(bits, 1, symmetric=False))
    stored = layout.encode(weight, torch.float32)[layout.ZERO_POINT]
    assert torch.equal(stored, pack_to_int32(zeros, bits, packed_dim=0))
    assert stored.is_contiguous()


@given(bit_widths, st.sampled_from([None, 4, 8]), st.booleans(), st.integers(1, 20), st.integers(0, 2**31))
def test_decoding_gives_back_what_was_encoded(bits, group_size, symmetric, rows, seed):
    scheme = Scheme(bits, group_size, symmetric)
    groups = 24 // scheme.group_width(24)
    scales = (random_codes(rows, groups, 8, seed).float().abs() + 1) / 64
    zeros = None if symmetric else random_codes(rows, groups, bits, seed + 1)
    weight = QuantizedWeight(random_codes(rows, 24, bits, seed + 2), scales, zeros, scheme)
    stored = layout.encode(weight, torch.bfloat16)
    assert set(stored) == set(layout.suffixes(scheme))
    assert stored[layout.SCALE].dtype == torch.bfloat16
    assert stored[layout.SHAPE].tolist() == [rows, 24]
    assert layout.decode(stored, scheme).same_bits(weight)


def test_first_code_is_in_the_lowest_bits():
    codes = torch.tensor([[-8, -7, 0, 7, -8, -8, -8, 7]], dtype=torch.int8)
    assert layout.pack_words(codes, 4).item() & 0xFFFFFFFF == 0xF000F810


# -- quantization_config ------------------------------------------------------------------------------------------

LINEARS = [f"model.layers.{i}.mlp.{name}_proj" for i in range(2) for name in ("gate", "up", "down")] + ["lm_head"]
INT4, INT8 = Scheme(4, 128), Scheme(8, None, symmetric=False)


@pytest.mark.parametrize(
    "schemes",
    [
        {},
        dict.fromkeys(LINEARS, INT4),
        dict.fromkeys(LINEARS[:-1], INT4),
        dict.fromkeys(LINEARS[:-1], INT8),
        {name: INT8 if "down" in name else INT4 for name in LINEARS[:-1]},
        dict.fromkeys(LINEARS[2:4], INT4),
    ],
    ids=["none", "all", "no head", "int8", "mixed", "two"],
)
def test_config_says_which_layers_are_quantized_and_how(schemes):
    written = {"quantization_config": layout.quantization_config(schemes, LINEARS)}
    assert layout.read_schemes(written, LINEARS) == schemes


@pytest.mark.parametrize("scheme", [INT4, INT8])
def test_config_is_accepted_by_compressed_tensors(scheme):
    from compressed_tensors.quantization import QuantizationConfig

    written = layout.quantization_config(dict.fromkeys(LINEARS[:-1], scheme), LINEARS)
    parsed = QuantizationConfig.model_validate(written)
    weights = parsed.config_groups["group_0"].weights
    assert (weights.num_bits, weights.group_size, weights.symmetric) == (
        scheme.bits,
        scheme.group_size,
        scheme.symmetric,
    )
    assert parsed.ignore == ["lm_head"]


def test_patterns_of_other_writers_are_understood():
    group = layout.quantization_config({"x": INT4}, [])["config_groups"]["group_0"]
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head", "re:.*down_proj"],
              "config_groups": {"group_0": group | {"targets": ["re:model.layers.1.*"]}}}  # fmt: skip
    assert list(layout.read_schemes({"quantization_config": config}, LINEARS)) == LINEARS[3:5]
    config["config_groups"]["group_0"]["targets"] = ["Linear"]
    assert list(layout.read_schemes({"quantization_config": config}, LINEARS)) == [*LINEARS[:2], *LINEARS[3:5]]


def test_float_model_has_no_schemes():
    assert layout.read_schemes({}, LINEARS) == {}


def test_other_formats_are_refused():
    with pytest.raises(InputError, match="already quantized") as caught:
        layout.read_schemes({"quantization_config": {"quant_method": "gptq", "bits": 4}}, LINEARS)
    assert "float checkpoint" in caught.value.hint
    float_quantized = layout.quantization_config({"x": INT4}, []) | {"format": "float-quantized"}
    with pytest.raises(InputError, match="float-quantized"):
        layout.read_schemes({"quantization_config": float_quantized}, LINEARS)


@pytest.mark.parametrize(
    "changed",
    [{"type": "float"}, {"num_bits": 3}, {"strategy": "tensor"}, {"actorder": "group"}],
    ids=lambda changed: next(iter(changed)),
)
def test_schemes_that_have_no_representation_are_refused(changed):
    config = layout.quantization_config(dict.fromkeys(LINEARS, INT4), LINEARS)
    config["config_groups"]["group_0"]["weights"] |= changed
    with pytest.raises(InputError, match="weight-only int4 and int8"):
        layout.read_schemes({"quantization_config": config}, LINEARS)


def test_activation_quantization_is_refused():
    config = layout.quantization_config(dict.fromkeys(LINEARS, INT4), LINEARS)
    config["config_groups"]["group_0"]["input_activations"] = {"num_bits": 8}
    with pytest.raises(InputError, match="weight-only"):
        layout.read_schemes({"quantization_config": config}, LINEARS)
