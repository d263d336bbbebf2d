"""SmoothQuant: move the outliers of activations into the weights, so that both can be rounded to eight bits.

Paper: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from calibration.walk import LayerWalk
from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.decoder import dense
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from passes.calibrated import CalibratedPass, check_finite
from passes.folding import Fold, cache_scales_after, folds, refuse_fixed, rescale, snap


def smoothing_scales(inputs: torch.Tensor, weights: torch.Tensor, alpha: float) -> torch.Tensor:
    """What each input feature is divided by: max|x|^alpha / max|w|^(1 - alpha), float32 [features].

    Args:
        inputs: absolute maximum of each feature on calibration text, float32 [features].
        weights: absolute maximum of the weights that read each feature, float32 [features].

    Features that were never active or that nobody reads keep their scale.
    """
    live = (inputs > 0) & (weights > 0)
    scales = torch.where(live, inputs, 1.0) ** alpha / torch.where(live, weights, 1.0) ** (1 - alpha)
    return torch.where(live, scales, 1.0)


@dataclass(frozen=True)
class SmoothQuant(CalibratedPass):
    """Smoothing of activations, folded into the norms: exact on the float model, which is what it leaves."""

    name: ClassVar[str] = "smoothquant"
    summary: ClassVar[str] = (
        "SmoothQuant (arXiv 2211.10438): move activation outliers into weights, for W8A8; needs calibration text"
    )

    alpha: float = option(0.5, "how much of the outliers goes into the weights: 0 to 1")
    o_proj: bool = option(False, "smooth what o_proj reads too, through v_proj")
    down_proj: bool = option(False, "smooth what down_proj reads too, through up_proj")

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha={self.alpha} is outside [0, 1].", "0.5 is the usual value.")
        if self.down_proj and not architecture.gated:
            raise InputError(
                f"down_proj=true has no linear to move scale into: the MLP of a {architecture.model_type} has no gate.",
                "Leave down_proj out.",
            )
        refuse_fixed(self.name, self._rescaled(architecture), schemes)
        return dict(schemes)

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        return cache_scales_after(self.name, self.o_proj, present)

    def stored_dtype(self, architecture: Architecture) -> torch.dtype:
        return torch.float32  # a 16-bit grid is met when the weights are rounded for good

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        self.cache_scales(checkpoint.architecture, checkpoint.kv_cache)
        return super().apply(checkpoint, context)

    def edit_layer(self, block: Block, walk: LayerWalk, checkpoint: Checkpoint, context: PassContext) -> Block:
        by_readers = {fold.readers: fold for fold in self._folds(checkpoint.architecture)}
        smoothed = block
        for stage in walk.stages(moments=False):
            check_finite(stage.statistics, f"{block.prefix}{stage.linears[0]}")
            fold = by_readers.get(stage.linears)
            if fold is not None:
                largest = fold.by_producer(stage.statistics.largest).amax(0)
                scales = smoothing_scales(largest, _largest_weights(block, fold), self.alpha)
                smoothed = rescale(smoothed, fold, snap(block, fold, scales))
        return smoothed

    def _folds(self, architecture: Architecture) -> list[Fold]:
        return folds(architecture, o_proj=self.o_proj, down_proj=self.down_proj)

    def _rescaled(self, architecture: Architecture) -> Iterator[str]:
        for index in range(architecture.layers):
            for fold in self._folds(architecture):
                yield from (architecture.modules.block(index) + linear for linear in fold.linears)


def _largest_weights(block: Block, fold: Fold) -> torch.Tensor:
    """Absolute maximum over everything that reads each feature of the fold's producer, float32 [features]."""
    readers = (dense(block.weights[f"{block.prefix}{reader}.weight"]) for reader in fold.readers)
    by_input = torch.stack([weight.abs().amax(0) for weight in readers]).amax(0)
    return fold.by_producer(by_input).amax(0)
