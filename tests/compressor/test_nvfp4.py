"""The arithmetic of NVFP4: next to every number that there is, and next to compressed-tensors' simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.nvfp4 import NUMBERS, BlockScales, round_codes, round_inputs, round_scales, tensor_scale_of
from compressor.quantized import FP8, Activations, QuantizedWeight, Scheme
from compressor.rounding import activation_scale

SCHEME = Scheme(4, 16, type="float")
INPUTS = Activations(4, "float", dynamic=False)


@settings(deadline=None)
@given(st.integers(-4, 4), st.integers(0, 2**31))
def test_codes_are_the_nearest_numbers(exponent, seed):
    values = torch.randn(400, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    numbers = torch.tensor([*NUMBERS, *(-number for number in NUMBERS)])
    found = round_codes(values)
    assert set(found.tolist()) <= set(numbers.tolist())
    assert torch.equal((found - values).abs(), (numbers - values.unsqueeze(1)).abs().amin(1))


def test_ties_and_ends_are_those_of_the_library():
    values = torch.arange(-64, 65) / 8
    found = round_codes(values)
    assert torch.equal(found, cast_to_fp4(values.clone()))
    assert not bool(torch.signbit(found[found == 0]).any())


@given(st.floats(2.0**-40, 2.0**30))
def test_the_tensor_scale_is_the_least_power_of_two_that_reaches(largest):
    scale = float(tensor_scale_of(torch.tensor(largest)))
    assert math.log2(scale).is_integer()
    assert float(torch.tensor(largest)) <= 6 * 448 * scale * (1 + 2**-23)
    assert float(torch.tensor(largest)) > 6 * 448 * scale / 2 * (1 - 2**-23)


def test_the_tensor_scale_at_its_edges():
    assert float(tensor_scale_of(torch.tensor(0.0))) == 1
    assert float(tensor_scale_of(torch.tensor(6 * 448.0))) == 1
    assert float(tensor_scale_of(torch.tensor(6 * 448.0 + 1))) == 2


def test_block_scales_are_never_zero():
    found = round_scales(torch.tensor([0.0, 1e-9, 500.0]))
    assert found.float().tolist() == [2.0**-9, 2.0**-9, 448.0]


@settings(deadline=None)
@given(st.integers(-10, 10), st.floats(0.1, 2), st.integers(0, 2**31))
def test_inputs_are_rounded_as_the_library_simulates_it(exponent, share, seed):
    """`share` of the range was seen on calibration text: beyond it, block scales are clipped."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2, 5, 64, generator=generator) * torch.rand(64, generator=generator) * 2.0**exponent
    inputs[0, 0, :16] = 0
    inputs[0, 1] *= 2.0**-19  # next to the others, some of these blocks are too small for any scale
    scale = activation_scale(inputs.abs().amax() * share, INPUTS)
    args = QuantizationConfig(config_groups={"NVFP4": ["Linear"]}).config_groups["NVFP4"].input_activations
    # Without its clipping, the library's scales overflow: e4m3 has no infinity.
    inputs = inputs.clamp(-6 * 448 * scale, 6 * 448 * scale)
    module, divisor = torch.nn.Linear(1, 1), (1 / scale).reshape(1)
    scales, zero = compute_dynamic_scales_and_zp(inputs, args, module, divisor)
    assert torch.equal(round_inputs(inputs, scale), fake_quantize(inputs, scales, zero, args, global_scale=divisor))


def weight(seed=0):
    generator = torch.Generator().manual_seed(seed)
    codes = round_codes(torch.randn(4, 32, generator=generator) * 4).to(FP8)
    scales = BlockScales(round_scales(torch.rand(4, 2, generator=generator) * 448), torch.tensor(0.25))
    return QuantizedWeight(codes, scales.values(), None, SCHEME, rounded_scales=scales)


def test_a_value_is_code_times_block_scale_times_tensor_scale():
    one = weight()
    found = one.dequantize()
    for row in range(4):
        for column in range(32):
            code, block = float(one.codes[row, column]), float(one.block_scales.codes[row, column // 16])
            assert float(found[row, column]) == code * block * 0.25


def test_storage_bits():
    assert weight().storage_bits == 128 * 4 + 8 * 8 + 32


@pytest.mark.parametrize("part", ["codes", "scales", "tensor scale"])
def test_same_bits(part):
    one = weight()
    assert one.same_bits(weight())
    scales = one.block_scales
    changed = {
        "codes": lambda: replace(one, codes=one.codes.float().neg().to(FP8)),
        "scales": lambda: replace(one, scales=one.scales * 2),
        "tensor scale": lambda: replace(one, rounded_scales=replace(scales, tensor_scale=torch.tensor(0.5))),
    }[part]()
    assert not one.same_bits(changed)


def test_schemes_print_themselves():
    assert str(SCHEME) == "nvfp4 g16"
    assert str(Scheme(4, 16, type="float", activations=INPUTS)) == "nvfp4 g16, static fp4 activations"
