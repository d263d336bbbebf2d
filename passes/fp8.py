"""fp8: weights, what linears read, and the key-value cache in eight-bit floats (e4m3: 448 at most, four exact bits).

Paper: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from calibration.ranges import Ranges
from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import BlockPass, Need, PassContext
from compressor.quantized import FP8, FP8_LARGEST, QuantizedWeight, Scheme, shared_scale
from compressor.rounding import FP8_INPUTS
from passes.inputs import chosen_activations, rewrite_with_ranges, static_scale, with_input_scales
from passes.quantizing import LinearPass


def round_to_fp8(weight: torch.Tensor, scheme: Scheme, peak: torch.Tensor | None = None) -> QuantizedWeight:
    """Round a weight, float32 [out_features, in_features], to the nearest e4m3 numbers.

    Each output channel has one scale, which makes its largest value 448: the nearest number that float16 and bfloat16
    both hold. Where that is too small by up to a 256th, the largest values are clipped, by less than fp8 rounds them.

    Args:
        peak: [], what is to become 448 in all channels, which then have one scale; None is each channel's own.
    """
    peaks = channel_peaks(weight) if peak is None else peak.expand(len(weight), 1)
    scales = shared_scale(peaks / FP8_LARGEST, scheme.bits)
    codes = (weight / scales).clamp_(-FP8_LARGEST, FP8_LARGEST).to(FP8)
    return QuantizedWeight(codes, scales, None, scheme)


def channel_peaks(weight: torch.Tensor) -> torch.Tensor:
    """The absolute maximum of each output channel, [out_features, 1]."""
    low, high = weight.aminmax(dim=1, keepdim=True)
    return torch.maximum(-low, high)


def common_peaks(weights: Mapping[str, torch.Tensor], fused: Iterable[tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """The absolute maximum of each weight, []; weights that a runtime fuses have that of all of them.

    A fused matrix has one scale: with scales of their own, the runtime would round all but one of its parts again.
    """
    peaks = {name: channel_peaks(weight).amax() for name, weight in weights.items()}
    for group in fused:
        present = [name for name in group if name in peaks]
        if present:
            peaks |= dict.fromkeys(present, torch.stack([peaks[name] for name in present]).amax())
    return peaks


@dataclass(frozen=True)
class Fp8(LinearPass, BlockPass):
    """Eight-bit floats, for hardware that multiplies them."""

    name: ClassVar[str] = "fp8"
    summary: ClassVar[str] = "FP8 e4m3 (arXiv 2209.05433) weights and inputs; the key-value cache too if asked"

    activations: Literal["none", "dynamic", "static"] = option(
        "dynamic", "what linears read: dynamic, one scale a token; static, one a layer, from the text; none, as it is"
    )
    scales: Literal["channel", "tensor"] = option(
        "channel", "what shares a weight scale: a channel, or a tensor with those that runtimes fuse with it"
    )
    kv_cache: bool = option(
        False, "scales for an fp8 key-value cache, one a layer for keys and for values, from the text"
    )
    lm_head: bool = option(False, "quantize lm_head too; a tied one is untied from the embedding")

    @property
    def scheme(self) -> Scheme:
        activations = chosen_activations(self.activations, "float")
        return Scheme(8, None, type="float", activations=activations, per_tensor=self.scales == "tensor")

    @property
    def needs(self) -> frozenset[Need]:
        calibrates = self.activations == "static" or self.kv_cache
        return frozenset({Need.CALIBRATION}) if calibrates else frozenset()

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        if present and self.kv_cache:
            raise InputError("The key-value cache has its scales already.", f"{self.name}:kv_cache=false keeps them.")
        return present or self.kv_cache

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        self.cache_scales(checkpoint.architecture, checkpoint.kv_cache)
        if not self.needs:
            return super().apply(checkpoint, context)

        def edit(block: Block, ranges: Ranges) -> Block:
            scaled = with_input_scales(self._rounded(block, checkpoint, context), ranges.inputs, context)
            return block.with_weights(scaled | self._cache_scales(ranges, checkpoint.dtype, context))

        return rewrite_with_ranges(self.name, checkpoint, context, edit)

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        return block.with_weights(self._rounded(block, checkpoint, context))

    def _rounded(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> dict[str, Weight]:
        rounded: dict[str, Weight] = {}
        weights = self.weights_to_quantize(block, checkpoint)
        peaks = self._peaks(weights, block, checkpoint.architecture)
        for name, weight in weights.items():
            rounded[f"{name}.weight"] = round_to_fp8(weight, self.scheme_of(name), peaks.get(name))
            dead = int((weight == 0).all(1).sum())
            if dead and name not in peaks:
                context.notes.append(f"{name}: {dead} output channels are zero; they get the smallest scale")
        return rounded

    def _peaks(
        self, weights: Mapping[str, torch.Tensor], block: Block, architecture: Architecture
    ) -> dict[str, torch.Tensor]:
        """What is to become 448, of weights whose channels share a scale."""
        if self.scales == "channel":
            return {}
        return common_peaks(weights, () if block.index is None else architecture.fused_linears(block.index))

    def _cache_scales(self, ranges: Ranges, dtype: torch.dtype, context: PassContext) -> dict[str, Weight]:
        scales: dict[str, Weight] = {}
        for name, largest in ranges.cache.items() if self.kv_cache else ():
            attention, _, scale = name.rpartition(".")
            what = f"{'keys' if scale == 'k_scale' else 'values'} of {attention}"
            scales[name] = static_scale(largest, FP8_INPUTS, what, context.notes).reshape(1).to(dtype)
        return scales
