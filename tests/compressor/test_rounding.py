"""Rounded activations and the fp8 cache, against compressed-tensors' own simulation and against plain formulas."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from compressor import rounding
from compressor.quantized import FP8, Activations, QuantizedWeight, Scheme
from compressor.rounding import activation_scale, equip, round_cache_of, round_inputs


def random_inputs(seed, magnitude=1.0):
    inputs = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)) * magnitude
    inputs[0, 1] = 0
    return inputs


@pytest.fixture
def their_range():
    """The largest int8 activation as compressed-tensors has it; the rest of the arithmetic is the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "INT8_LARGEST", 127.5)
        yield


@pytest.mark.usefixtures("their_range")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["int", "float"]), st.integers(0, 2**31), st.integers(-12, 12))
def test_dynamic_rounding_is_that_of_compressed_tensors(kind, seed, exponent):
    inputs = random_inputs(seed, 2.0**exponent)
    arguments = QuantizationArgs(num_bits=8, type=kind, symmetric=True, strategy="token", dynamic=True)
    scale, zero = compute_dynamic_scales_and_zp(inputs, arguments, nn.Identity())
    expected = fake_quantize(inputs, scale, zero, arguments)
    assert torch.equal(round_inputs(inputs, Activations(8, kind)), expected)


@settings(deadline=None)
@given(st.sampled_from(["int", "float"]), st.integers(0, 2**31), st.floats(2**-12, 1.0, width=16))
def test_static_rounding_is_that_of_compressed_tensors(kind, seed, scale):
    inputs, scale = random_inputs(seed, 10.0), torch.tensor(scale)
    arguments = QuantizationArgs(num_bits=8, type=kind, symmetric=True, strategy="tensor")
    expected = fake_quantize(inputs, scale, None, arguments)
    assert torch.equal(round_inputs(inputs, Activations(8, kind, dynamic=False), scale), expected)


def test_every_fp8_number_is_kept_and_others_go_to_the_nearest():
    numbers = torch.arange(0, 127, dtype=torch.uint8).view(FP8).double()  # 0 to 448
    exact = numbers.float().view(1, -1)
    assert torch.equal(round_inputs(exact, Activations(8, "float", dynamic=False), torch.tensor(1.0)), exact)
    between = torch.linspace(0, 500, 2001).view(1, -1)
    found = round_inputs(between, Activations(8, "float", dynamic=False), torch.tensor(1.0)).double().T
    nearest = (between.double().T - numbers).abs().amin(1, keepdim=True)
    assert torch.equal((between.double().T - found).abs(), nearest)


def test_a_token_keeps_its_largest_value_and_an_error_below_half_a_step():
    inputs = random_inputs(0)
    steps = inputs.double().abs().amax(-1, keepdim=True) / 127
    error = (round_inputs(inputs, Activations()).double() - inputs.double()).abs()
    assert bool((error <= steps / 2 * (1 + 1e-4)).all())
    assert float(error.max()) > 0


def test_the_dtype_is_kept_and_nan_stays():
    inputs = random_inputs(0).bfloat16()
    assert round_inputs(inputs, Activations()).dtype == torch.bfloat16
    inputs[1, 0, 0] = torch.nan
    for activations in (Activations(), Activations(type="float")):
        assert bool(round_inputs(inputs, activations)[1, 0].isnan().all())


@pytest.mark.parametrize(("kind", "levels"), [("int", 127.0), ("float", 448.0)])
def test_scale_of_a_largest_value(kind, levels):
    scale = activation_scale(torch.tensor([levels, 0.0]), Activations(type=kind))
    assert scale[0] == 1
    assert scale[1] > 0


def test_a_linear_reads_rounded_inputs():
    linear, inputs = nn.Linear(8, 4), random_inputs(0)
    scheme = Scheme(8, None, activations=Activations(dynamic=False))
    plain = linear(inputs)
    equip(linear, QuantizedWeight(torch.zeros(4, 8), torch.ones(4, 1), None, Scheme(8, None)))
    assert torch.equal(linear(inputs), plain)
    equip(linear, QuantizedWeight(torch.zeros(4, 8), torch.ones(4, 1), None, scheme, torch.tensor(0.25)))
    assert torch.equal(linear(inputs), nn.functional.linear((inputs / 0.25).round() * 0.25, linear.weight, linear.bias))


class Attention(nn.Module):
    def forward(self, hidden, past_key_values=None):
        return past_key_values.update(hidden, 2 * hidden, 0)


class NewerAttention(nn.Module):
    """As transformers 5.24 has it, which calls it with `cache=None`."""

    def forward(self, hidden, cache=None, **kwargs):
        return cache.update(hidden, 2 * hidden, 0, kwargs=kwargs)


@pytest.mark.parametrize(("attention", "given"), [(Attention(), {}), (NewerAttention(), {"cache": None})])
def test_attention_sees_the_rounded_cache(attention, given):
    hidden = random_inputs(0)
    round_cache_of(attention, torch.tensor([0.5]), torch.tensor([2.0]))
    keys, values = attention(hidden, **given)
    assert torch.equal(keys, (hidden / 0.5).to(FP8).float() * 0.5)
    assert torch.equal(values, (2 * hidden / 2.0).to(FP8).float() * 2.0)
