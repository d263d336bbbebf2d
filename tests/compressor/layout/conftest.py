"""Random quantized weights of every kind that the layouts hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from compressor.nvfp4 import NUMBERS, BlockScales
from compressor.quantized import FP8, QuantizedWeight, Scheme


def make_weight(scheme: Scheme, rows: int, columns: int, seed: int) -> QuantizedWeight:
    generator = torch.Generator().manual_seed(seed)
    groups = columns // scheme.group_width(columns)

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(scheme.lowest, scheme.highest + 1, shape, dtype=torch.int8, generator=generator)

    static = scheme.activations is not None and not scheme.activations.dynamic
    input_scale = torch.rand((), generator=generator).bfloat16().float() if static else None
    if scheme.kind == "nvfp4":
        blocks = BlockScales(
            (torch.rand(rows, groups, generator=generator) * 448).to(FP8), torch.rand((), generator=generator) + 2**-8
        )
        numbers = torch.tensor([*NUMBERS, *(-number for number in NUMBERS)])
        codes = numbers[torch.randint(0, 16, (rows, columns), generator=generator)].to(FP8)
        return QuantizedWeight(codes, blocks.values(), None, scheme, input_scale, blocks)
    codes = integers(rows, columns)
    if scheme.type == "float":
        codes = (torch.randn(rows, columns, generator=generator) * 100).clamp(-448, 448).to(FP8)
    scales = (torch.rand(rows, groups, generator=generator) + 2**-8).bfloat16().float()
    if scheme.per_tensor:
        scales = scales[:1].repeat(rows, 1)
    return QuantizedWeight(codes, scales, None if scheme.symmetric else integers(rows, groups), scheme, input_scale)


@pytest.fixture(scope="session")
def random_weight() -> Callable[[Scheme, int, int, int], QuantizedWeight]:
    return make_weight
