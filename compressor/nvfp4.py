"""NVFP4: four-bit floats (e2m1) in blocks of sixteen, an fp8 scale (e4m3) a block, and one float32 scale a tensor.

value = code * block scale * tensor scale. Weights are stored so; what a linear reads gets its block scales while the
model runs, and its tensor scale from calibration text.

Tensor scales chosen here are powers of two. Then products with them and their reciprocals are exact: layouts that
store the reciprocal hold the same number, and values have six significant bits, so 16-bit types hold them too.
Source: NVIDIA, "Pretraining Large Language Models with NVFP4", 2025; the layout is that of Model-Optimizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 16
LARGEST = 6.0
NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # the non-negative ones, by their three lower bits

EXPONENT_BITS = 0x7F800000  # of a float32

SCALE_DTYPE = torch.float8_e4m3fn
LARGEST_SCALE, SMALLEST_SCALE = 448.0, 2.0**-9


@dataclass(frozen=True, eq=False)
class BlockScales:
    """The scales of a weight as they are stored.

    Attributes:
        codes: float8_e4m3fn [out_features, in_features / 16].
        tensor_scale: float32 [], positive.
    """

    codes: torch.Tensor
    tensor_scale: torch.Tensor

    def values(self) -> torch.Tensor:
        """The scales that the codes stand for, float32 [out_features, in_features / 16]."""
        return self.codes.float() * self.tensor_scale


def tensor_scale_of(largest: torch.Tensor) -> torch.Tensor:
    """The least power of two at which the absolute maximum `largest`, float32 [], is in range; 1 for a maximum of 0."""
    mantissa, exponent = torch.frexp(largest / (LARGEST * LARGEST_SCALE))
    power = torch.ldexp(torch.ones(()), exponent - (mantissa == 0.5).int())
    return torch.where(largest > 0, power, 1.0)


def round_scales(scales: torch.Tensor) -> torch.Tensor:
    """The nearest block scales that can be stored, float8_e4m3fn; none is zero."""
    return scales.clamp(SMALLEST_SCALE, LARGEST_SCALE).to(SCALE_DTYPE)


def round_codes(values: torch.Tensor) -> torch.Tensor:
    """The nearest numbers of e2m1, float32, ties to the even code; zero is positive."""
    clamped = values.clamp(-LARGEST, LARGEST)
    # The distance of neighbours is half the power of two below them, which a float's exponent bits are; 0.5 at least.
    powers = clamped.abs().clamp_(min=1.0).view(torch.int32).bitwise_and_(EXPONENT_BITS).view(torch.float32)
    step = powers.mul_(0.5)
    return clamped.div_(step).round_().mul_(step).add_(0.0)


def round_inputs(inputs: torch.Tensor, tensor_scale: torch.Tensor) -> torch.Tensor:
    """Inputs, float32 [..., in_features], as their codes mean them: each block with the scale of its largest value."""
    blocks = inputs.unflatten(-1, (-1, BLOCK))
    scales = blocks.abs().amax(-1, keepdim=True) / LARGEST / tensor_scale
    scales = scales.clamp(max=LARGEST_SCALE).to(SCALE_DTYPE).float()
    # A block that is too small for any scale becomes zero, as it does at any that is far too large.
    scales = torch.where(scales == 0, LARGEST_SCALE, scales) * tensor_scale
    return round_codes(blocks / scales).mul_(scales).flatten(-2)
