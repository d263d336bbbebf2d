"""NF4: four-bit codes that index a table of sixteen values, the quantiles of a normal distribution.

Paper: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023. The table is that of bitsandbytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

TABLE = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip

SCALES_PER_BLOCK = 256


@dataclass(frozen=True, eq=False)
class RoundedScales:
    """Scales that are themselves rounded to eight bits, the paper's double quantization.

    Attributes:
        codes: uint8 [out_features, groups], indices into `table`.
        table: float32 [256], sorted.
        block_scales: float32 [ceil(out_features * groups / 256)], one for 256 scales in a row.
        offset: float32 [], added to every scale.
    """

    codes: torch.Tensor
    table: torch.Tensor
    block_scales: torch.Tensor
    offset: torch.Tensor

    def values(self) -> torch.Tensor:
        """The scales that the codes stand for, float32 [out_features, groups]."""
        flat = self.table[self.codes.flatten().int()]
        return (flat * self.block_scales.repeat_interleave(SCALES_PER_BLOCK)[: len(flat)] + self.offset).view(
            self.codes.shape
        )


def dequantize(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Values, float32 [out_features, in_features], of codes uint8 of that shape and scales [out_features, groups]."""
    grouped = TABLE[codes.int()].view(*scales.shape, -1)
    return grouped.mul_(scales.unsqueeze(-1)).view(codes.shape)


def scale_bits(scales: int, double_quant: bool) -> int:
    """Bits that so many scales take: 32 each, or eight each and 32 for a block of them."""
    return scales * 8 + -(-scales // SCALES_PER_BLOCK) * 32 if double_quant else scales * 32
