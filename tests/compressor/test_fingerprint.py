from dataclasses import replace

import pytest
import torch

from compressor.fingerprint import differing_parts, fingerprint, tensor_digest
from compressor.quantized import QuantizedWeight, Scheme

WEIGHT = QuantizedWeight(
    torch.tensor([[1, 3], [-8, 7]], dtype=torch.int8),
    torch.tensor([[0.5], [0.25]]),
    torch.tensor([[2], [1]], dtype=torch.int8),
    Scheme(4, None, False),
    torch.tensor(0.125),
)


def test_each_part_of_a_quantized_weight_has_its_digest():
    whole = fingerprint(WEIGHT)
    assert list(whole) == ["codes", "scales", "zero points", "input scale"]
    assert differing_parts(whole, fingerprint(replace(WEIGHT, codes=WEIGHT.codes + 1))) == ["codes"]
    assert differing_parts(whole, fingerprint(replace(WEIGHT, scales=WEIGHT.scales * 2))) == ["scales"]
    assert differing_parts(whole, fingerprint(replace(WEIGHT, zero_points=None))) == ["zero points"]
    assert differing_parts(fingerprint(replace(WEIGHT, input_scale=None)), whole) == ["input scale"]
    assert differing_parts(whole, fingerprint(WEIGHT.dequantize())) == [*whole, "values"]


@pytest.mark.parametrize(
    "other",
    [
        torch.tensor([0.0, 1.0], dtype=torch.float64),
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([-0.0, 1.0]),
        torch.tensor([1.0, 0.0]),
    ],
)
def test_dtype_shape_and_every_bit_count(other):
    assert tensor_digest(torch.tensor([0.0, 1.0])) != tensor_digest(other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int64])
def test_the_layout_in_memory_does_not_count(dtype):
    tensor = torch.arange(6).view(2, 3).to(dtype)
    assert tensor_digest(tensor.T) == tensor_digest(tensor.T.contiguous())
    assert tensor_digest(tensor[0, 0]) != tensor_digest(tensor[:0])
