"""The quantized representation: what integers and scales mean, and the scales that every runtime reads alike."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import InputError
from compressor.quantized import (
    FP8,
    FP16_SMALLEST_NORMAL,
    FP16_STEP,
    LARGEST_SHARED_SCALE,
    Activations,
    QuantizedWeight,
    Scheme,
    shared_scale,
    split_rows,
)

# Spread over magnitudes, since the steps of both types depend on them.
positive = st.builds(lambda exponent, part: 2.0**exponent * part, st.integers(-30, 15), st.floats(1.0, 1.99))


@cache
def shared_numbers():
    """Every positive number that float16 and bfloat16 both hold."""
    halves = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16).float()
    return halves[halves == halves.to(torch.bfloat16).float()]


@given(st.lists(positive, min_size=1, max_size=20), st.sampled_from([4, 8]))
def test_shared_scale_is_the_nearest_number_that_both_types_hold(values, bits):
    scales = torch.tensor(values, dtype=torch.float32)
    found = shared_scale(scales, bits)
    floor = FP16_SMALLEST_NORMAL if bits == 4 else FP16_STEP
    grid = shared_numbers()
    grid = grid[grid >= floor].double()
    above = torch.searchsorted(grid, scales.double()).clamp(1, len(grid) - 1)
    distance = torch.minimum((grid[above] - scales).abs(), (grid[above - 1] - scales).abs())
    assert torch.equal(found, found.half().float())
    assert torch.equal(found, found.bfloat16().float())
    assert torch.equal((found.double() - scales.double()).abs(), distance)


@given(st.lists(positive, min_size=2, max_size=50), st.sampled_from([4, 8]))
def test_shared_scale_keeps_the_order(values, bits):
    found = shared_scale(torch.tensor(sorted(values), dtype=torch.float32), bits)
    assert bool((found.diff() >= 0).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_shared_scale_is_a_fixed_point_on_every_shared_number(bits):
    numbers = shared_numbers()
    numbers = numbers[(numbers <= LARGEST_SHARED_SCALE) & (numbers >= (FP16_SMALLEST_NORMAL if bits == 4 else 0))]
    assert torch.equal(shared_scale(numbers, bits), numbers)


def test_shared_scale_is_not_rounded_twice():
    just_above_the_middle = 2.0**-15 * (1 + 2.0**-8 + 2.0**-12)
    assert float(shared_scale(torch.tensor([just_above_the_middle]), 8)) == 2.0**-15 * (1 + 2.0**-7)


def test_shared_scale_of_a_zero_weight_is_positive():
    assert float(shared_scale(torch.zeros(1), 4)) == FP16_SMALLEST_NORMAL
    assert float(shared_scale(torch.zeros(1), 8)) == FP16_STEP


@pytest.mark.parametrize("value", [65300.0, float("inf"), float("nan")])
def test_scale_beyond_float16_is_refused(value):
    with pytest.raises(InputError, match="more than float16 holds"):
        shared_scale(torch.tensor([1.0, value]), 4)


@given(st.sampled_from([4, 8]), st.sampled_from([None, 2, 4]), st.booleans(), st.integers(0, 2**31))
def test_dequantize_is_code_minus_zero_point_times_scale(bits, group_size, symmetric, seed):
    generator = torch.Generator().manual_seed(seed)
    scheme = Scheme(bits, group_size, symmetric)
    rows, columns = 3, 8
    groups = columns // scheme.group_width(columns)
    codes = torch.randint(scheme.lowest, scheme.highest + 1, (rows, columns), dtype=torch.int8, generator=generator)
    scales = torch.rand(rows, groups, generator=generator)
    zeros = torch.randint(scheme.lowest, scheme.highest + 1, (rows, groups), dtype=torch.int8, generator=generator)
    found = QuantizedWeight(codes, scales, None if symmetric else zeros, scheme).dequantize()
    for row in range(rows):
        for column in range(columns):
            group = column // scheme.group_width(columns)
            zero = 0 if symmetric else int(zeros[row, group])
            assert found[row, column] == scales[row, group] * (int(codes[row, column]) - zero)


def weight(symmetric=True, **changed):
    values = {
        "codes": torch.zeros(2, 4, dtype=torch.int8),
        "scales": torch.ones(2, 2),
        "zero_points": None if symmetric else torch.zeros(2, 2, dtype=torch.int8),
        "scheme": Scheme(4, 2, symmetric),
    }
    return QuantizedWeight(**(values | changed))


def test_same_bits():
    assert weight().same_bits(weight())
    assert weight(False).same_bits(weight(False))
    assert not weight().same_bits(weight(False))
    assert not weight(False).same_bits(weight())
    assert not weight().same_bits(weight(codes=torch.ones(2, 4, dtype=torch.int8)))
    assert not weight().same_bits(weight(scales=torch.full((2, 2), 1.001)))
    assert not weight(False).same_bits(weight(False, zero_points=torch.ones(2, 2, dtype=torch.int8)))


def test_storage_bits():
    assert weight().storage_bits == 8 * 4 + 4 * 16
    assert weight(False).storage_bits == 8 * 4 + 4 * 16 + 4 * 4


def test_group_size_that_does_not_divide_names_one_that_does():
    with pytest.raises(InputError, match="128 does not divide the input width 576") as caught:
        Scheme(4, 128).group_width(576)
    assert "64 or 32" in caught.value.hint
    with pytest.raises(InputError) as caught:
        Scheme(4, 32).group_width(50)
    assert "channel" in caught.value.hint
    assert Scheme(4, None).group_width(50) == 50


def test_scheme_prints_itself():
    assert str(Scheme(4, 128)) == "int4 g128 symmetric"
    assert str(Scheme(8, None, False)) == "int8 channel asymmetric"
    fp8 = Scheme(8, None, type="float", activations=Activations(type="float", dynamic=False))
    assert str(fp8) == "fp8 channel, static fp8 activations"
    assert str(Scheme(8, None, type="float", per_tensor=True)) == "fp8 tensor"
    assert str(Scheme(8, None, activations=Activations())) == "int8 channel symmetric, int8 activations per token"
    assert str(Scheme(4, 64, type="nf4")) == "nf4 g64"


def fp8_weight(input_scale=None):
    codes = torch.tensor([[0.0, 1.5], [-448.0, 2.0**-9]]).to(FP8)
    scheme = Scheme(8, None, type="float", activations=Activations(type="float", dynamic=input_scale is None))
    return QuantizedWeight(codes, torch.tensor([[0.5], [2.0]]), None, scheme, input_scale)


def test_fp8_codes_are_numbers():
    assert fp8_weight().dequantize().tolist() == [[0.0, 0.75], [-896.0, 2.0**-8]]
    assert fp8_weight().storage_bits == 4 * 8 + 2 * 16
    assert fp8_weight(torch.tensor(0.1)).storage_bits == 4 * 8 + 3 * 16


def test_same_bits_of_fp8_tells_the_zeros_apart_and_sees_the_input_scale():
    weight, scale = fp8_weight(), torch.tensor(0.25)
    assert weight.same_bits(fp8_weight())
    negative_zero = replace(weight, codes=torch.where(weight.codes.float() == 0, -0.0, weight.codes.float()).to(FP8))
    assert not weight.same_bits(negative_zero)
    assert not weight.same_bits(replace(weight, codes=weight.codes.view(torch.int8)))
    assert not weight.same_bits(fp8_weight(scale))
    assert fp8_weight(scale).same_bits(fp8_weight(scale.clone()))
    assert not fp8_weight(scale).same_bits(fp8_weight(scale * 2))


def test_factors_of_the_inputs_are_in_the_value_and_not_in_its_core():
    codes = torch.tensor([[1, 2], [3, -4]], dtype=torch.int8)
    weight = QuantizedWeight(
        codes, torch.full((2, 1), 0.5), None, Scheme(4, None, input_factors=True), input_factors=torch.tensor([2.0, 3])
    )
    assert weight.dequantize().tolist() == [[1, 3], [3, -6]]
    assert weight.core.dequantize().tolist() == [[0.5, 1], [1.5, -2]]
    assert weight.core.scheme == Scheme(4, None)
    assert weight.storage_bits == weight.core.storage_bits + 2 * 16
    assert torch.equal(split_rows(weight, [1, 1])[1].dequantize(), weight.dequantize()[1:])
    assert str(weight.scheme) == "int4 channel symmetric, inputs multiplied"
