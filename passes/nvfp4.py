"""nvfp4: weights, and what linears read if asked, in four-bit floats with a scale for every sixteen.

Source: NVIDIA, "Pretraining Large Language Models with NVFP4", 2025. Trying larger block scales, at which the largest
value of a block is 4 and its other values have finer steps: Cook et al., "Four Over Six", 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from calibration.ranges import Ranges
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.errors import InputError
from compressor.nvfp4 import BLOCK, LARGEST, SCALE_DTYPE, BlockScales, round_codes, round_scales, tensor_scale_of
from compressor.options import option
from compressor.pass_ import BlockPass, Need, PassContext
from compressor.quantized import FP8, Activations, QuantizedWeight, Scheme
from passes.fp8 import common_peaks
from passes.inputs import rewrite_with_ranges, with_input_scales
from passes.quantizing import LinearPass

# What the search tries, in steps of e4m3 (an eighth of a binade) from the scale that makes the largest value 6: up to
# the one that makes it 4, and down to where it is clipped by a fifth.
SEARCH_STEPS = (-2, -1, 1, 2, 3, 4, 5)
SMALLEST_BITS, LARGEST_BITS = 1, 126  # of the positive numbers of e4m3, 2^-9 to 448, whose bits are in their order

ELEMENTS_AT_ONCE = 1 << 17  # the search goes over a weight again and again: in parts that stay in the cache


def round_to_nvfp4(
    weight: torch.Tensor, scheme: Scheme, peak: torch.Tensor | None = None, search: bool = True
) -> QuantizedWeight:
    """Round a weight, float32 [out_features, in_features], to NVFP4.

    Args:
        peak: [], the absolute maximum of all weights that have one tensor scale in common; None is this one's own.
        search: try other block scales than the one of the largest value, and keep what has the least squared error.
    """
    tensor_scale = tensor_scale_of(weight.abs().amax() if peak is None else peak)
    scaled = weight / tensor_scale
    rows = max(1, ELEMENTS_AT_ONCE // weight.shape[1])
    parts = [_round_blocks(part.unflatten(1, (-1, BLOCK)), search) for part in scaled.split(rows)]
    codes, scales = (torch.cat(kind) for kind in zip(*parts, strict=True))
    rounded = BlockScales(scales, tensor_scale)
    return QuantizedWeight(codes, rounded.values(), None, scheme, rounded_scales=rounded)


def _round_blocks(blocks: torch.Tensor, search: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [rows, in_features] and scales [rows, blocks], both float8_e4m3fn, of values [rows, blocks, 16]."""
    best = round_scales(blocks.abs().amax(-1) / LARGEST)
    if search:
        best = _search(blocks, best)
    codes = round_codes(blocks / best.float().unsqueeze(-1))
    return codes.flatten(1).to(FP8), best


def _search(blocks: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    first = start.view(torch.uint8).int()
    best, least = start, _squared_error(blocks, start)
    for step in SEARCH_STEPS:
        bits = (first + step).clamp_(SMALLEST_BITS, LARGEST_BITS)
        candidate = bits.to(torch.uint8).view(SCALE_DTYPE)
        error = _squared_error(blocks, candidate)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, candidate.view(torch.uint8), best.view(torch.uint8)).view(SCALE_DTYPE)
    return best


def _squared_error(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    scale = scales.float().unsqueeze(-1)
    return round_codes(blocks / scale).mul_(scale).sub_(blocks).square_().sum(-1)


@dataclass(frozen=True)
class NVFP4(LinearPass, BlockPass):
    """Four-bit floats with block scales, for hardware that multiplies them."""

    name: ClassVar[str] = "nvfp4"
    summary: ClassVar[str] = "NVFP4 (arXiv 2509.25149) weights, e2m1 in blocks of 16; inputs too if asked"

    activations: Literal["none", "static"] = option(
        "none", "what linears read: as it is, or in NVFP4 too, with one scale a layer from the text over block scales"
    )
    scale_search: bool = option(True, "search the block scales that have the least squared error")
    lm_head: bool = option(False, "quantize lm_head too; a tied one is untied from the embedding")

    @property
    def scheme(self) -> Scheme:
        activations = None if self.activations == "none" else Activations(4, "float", dynamic=False)
        return Scheme(4, BLOCK, type="float", activations=activations)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION}) if self.activations == "static" else frozenset()

    def plan_layers(self, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Scheme]:
        misfit = next((name for name, (_, width) in shapes.items() if width % BLOCK), None)
        if misfit is not None:
            raise InputError(
                f"NVFP4 rounds in blocks of {BLOCK}, which do not divide the input width {shapes[misfit][1]} of "
                f"{misfit}.",
                "fp8 works, and so does skip with the layers of that width.",
            )
        return super().plan_layers(shapes)

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        if not self.needs:
            return super().apply(checkpoint, context)

        def edit(block: Block, ranges: Ranges) -> Block:
            return block.with_weights(with_input_scales(self._rounded(block, checkpoint), ranges.inputs, context))

        return rewrite_with_ranges(self.name, checkpoint, context, edit)

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        return block.with_weights(self._rounded(block, checkpoint))

    def _rounded(self, block: Block, checkpoint: Checkpoint) -> dict[str, Weight]:
        weights = self.weights_to_quantize(block, checkpoint)
        fused = () if block.index is None else checkpoint.architecture.fused_linears(block.index)
        peaks = common_peaks(weights, fused)
        return {
            f"{name}.weight": round_to_nvfp4(weight, self.scheme_of(name), peaks[name], self.scale_search)
            for name, weight in weights.items()
        }
