"""AWQ: give the inputs that matter finer steps, by scaling them up before rounding to nearest.

Paper: Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023.
The output error of a candidate needs no activations beyond their second moments: ||D X||² = tr(D G Dᵀ), where D is what
rounding adds to the weight and G = X Xᵀ. So a candidate costs one product with [in_features, in_features] instead of
a run over the calibration text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from calibration.walk import LayerWalk, Stage, Stream
from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from passes.calibrated import CalibratedPass, check_finite
from passes.folding import Fold, cache_scales_after, folds, refuse_fixed, rescale, snap
from passes.grid import fit_grid, quantize
from passes.quantizing import QuantizingPass

RATIOS = tuple(step / 20 for step in range(20))
ELEMENTS_AT_ONCE = 1 << 20  # of all candidates together: they stay in the cache, and fill the matrix units


def candidates(activity: torch.Tensor, magnitude: torch.Tensor | None) -> torch.Tensor:
    """Scales to try, float32 [candidates, features]; the first is no scaling.

    Args:
        activity: float32 [features], root mean square of each feature.
        magnitude: float32 [features], mean of the feature's weights relative to the largest of their group; given,
            activity^r / magnitude^(1 - r) are tried beside activity^r.
    """
    live = activity > 0
    base = torch.where(live, activity, 1.0)
    tried = [base**ratio for ratio in RATIOS]
    if magnitude is not None:
        live = live & (magnitude > 0)
        share = torch.where(live, magnitude, 1.0)
        tried += [base**ratio / share ** (1 - ratio) for ratio in RATIOS]
    return torch.stack([balanced(scales, live) for scales in tried])


def balanced(scales: torch.Tensor, live: torch.Tensor) -> torch.Tensor:
    """Scales multiplied so that the extremes are each other's inverse; 1 for features that are not `live`."""
    if not bool(live.any()):
        return torch.ones_like(scales)
    low, high = torch.aminmax(scales[live])
    return torch.where(live, scales / (low * high).sqrt(), 1.0)


def relative_magnitude(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Mean over the rows of |w| / (largest |w| of its group), float32 [in_features]."""
    grouped = weight.abs().view(len(weight), -1, scheme.group_width(weight.shape[1]))
    return (grouped / grouped.amax(-1, keepdim=True).clamp(min=1e-12)).mean(0).flatten()


def output_errors(
    weight: torch.Tensor, gram: torch.Tensor, scales: torch.Tensor, scheme: Scheme, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Mean squared error of the outputs, summed over them, that rounding to nearest costs at each of the scales.

    Args:
        weight: float32 [out_features, in_features].
        gram: float32 [in_features, in_features], mean of x xᵀ.
        scales: float32 [candidates, in_features].
        dtype: of the product with `gram`.

    Returns:
        tr(D G Dᵀ) with D = Q(W s) / s - W, float32 [candidates].
    """
    total = torch.zeros(len(scales))
    moments = gram.to(dtype)
    for rows in weight.split(max(1, ELEMENTS_AT_ONCE // scales.numel())):
        scaled = (rows * scales.unsqueeze(1)).flatten(0, 1)
        rounded = quantize(scaled, scheme, fit_grid(scaled, scheme, None, search=False)).dequantize()
        difference = rounded.view(len(scales), *rows.shape).div_(scales.unsqueeze(1)).sub_(rows)
        total += (difference.to(dtype) @ moments).float().mul_(difference).sum((1, 2))
    return total


def best_scales(
    weight: torch.Tensor, gram: torch.Tensor, fold: Fold, scheme: Scheme, *, duo_scaling: bool, dtype: torch.dtype
) -> torch.Tensor:
    """The candidate with the least output error, float32 [features of the fold's producer].

    Args:
        weight: float32 [out_features, in_features], of all linears to be rounded that read the input.
        gram: float32 [in_features, in_features], mean of x xᵀ.
    """
    activity = fold.by_producer(gram.diagonal()).mean(0).sqrt()
    magnitude = fold.by_producer(relative_magnitude(weight, scheme)).mean(0) if duo_scaling else None
    tried = candidates(activity, magnitude)
    errors = output_errors(weight, gram, fold.by_reader(tried), scheme, dtype)
    return tried[int(errors.argmin())]


def gram_blocks(gram: torch.Tensor, scales: torch.Tensor, width: int) -> torch.Tensor:
    """What the gram matrix of x / scales has within each group of features, float32 [groups, width, width]."""
    groups = len(gram) // width
    blocks = gram.view(groups, width, groups, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    grouped = scales.view(groups, width)
    return blocks / (grouped.unsqueeze(1) * grouped.unsqueeze(2))


@dataclass(frozen=True)
class AWQ(CalibratedPass, QuantizingPass):
    """Activation-aware scales, folded into what makes each input, then clipping and rounding to nearest."""

    name: ClassVar[str] = "awq"
    changes_floats: ClassVar[bool] = True
    summary: ClassVar[str] = (
        "AWQ (arXiv 2306.00978): scale up the inputs that matter, round to nearest; needs calibration text"
    )

    duo_scaling: bool = option(False, "try scales that even out the weights too, beside those of the inputs alone")
    o_proj: bool = option(True, "scale what o_proj reads too, through v_proj")
    down_proj: bool = option(True, "scale what down_proj reads too, through up_proj")
    clip: bool = option(True, "search the clipping that has the least output error, group by group")
    round: bool = option(True, "false leaves a float checkpoint, for another pass to round with the same options")

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        planned = super().plan(architecture, schemes)
        refuse_fixed(self.name, self._rescaled(architecture), schemes)
        if self.round:
            return planned
        if self.lm_head:
            raise InputError(
                "awq:lm_head=true rounds lm_head, which round=false leaves to another pass.",
                "Give lm_head=true to that pass.",
            )
        return dict(schemes)

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        return cache_scales_after(self.name, self.o_proj, present)

    def stored_dtype(self, architecture: Architecture) -> torch.dtype | None:
        # What is rounded right away meets no 16-bit grid in between, and gains and biases stay on theirs.
        done = self.round and not self._companions(architecture)
        return None if done else torch.float32

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        architecture = checkpoint.architecture
        self.cache_scales(architecture, checkpoint.kv_cache)
        if self.down_proj and not architecture.gated:
            context.notes.append(
                f"inputs of {architecture.modules.mlp.last} are not scaled: without a gate nothing can be divided by it"
            )
        companions = self._companions(architecture)
        if companions:
            more = f" and {len(companions) - 1} more" if len(companions) > 1 else ""
            context.notes.append(f"skipped, but re-scaled together with layers that are rounded: {companions[0]}{more}")
        return super().apply(checkpoint, context)

    def edit_layer(self, block: Block, walk: LayerWalk, checkpoint: Checkpoint, context: PassContext) -> Block:
        by_readers = {fold.readers: fold for fold in self._folds(checkpoint.architecture)}
        scaled = block
        importance: dict[str, torch.Tensor] = {}
        for stage in walk.stages():
            weights = self._weights_of(stage, block, checkpoint)
            if not weights:
                continue
            check_finite(stage.statistics, next(iter(weights)))
            gram, fold = stage.statistics.gram, by_readers.get(stage.linears)
            applied = torch.ones(len(gram))
            if fold is not None:
                scales = snap(block, fold, self._best_scales(weights, gram, fold))
                scaled, applied = rescale(scaled, fold, scales), fold.by_reader(scales)
            importance |= self._importance(weights, gram, applied)
        if not self.round:
            return scaled
        rounded = self._rounded(self.weights_to_quantize(scaled, checkpoint), importance)
        if self.stored_dtype(checkpoint.architecture) is None:
            scaled = _stored_like(block, scaled)
        return scaled.with_weights(rounded)

    def edit_head(self, block: Block, stream: Stream, checkpoint: Checkpoint, context: PassContext) -> Block:
        weights = self.weights_to_quantize(block, checkpoint)
        if not weights:
            return block
        statistics = stream.at_head()
        check_finite(statistics, "lm_head")
        gram = statistics.gram
        return block.with_weights(self._rounded(weights, self._importance(weights, gram, torch.ones(len(gram)))))

    def _weights_of(self, stage: Stage, block: Block, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
        """The weights of one stage that are to be rounded, float32, by layer name."""
        names = [f"{block.prefix}{linear}.weight" for linear in stage.linears]
        return self.weights_to_quantize(
            replace(block, weights={name: block.weights[name] for name in names}), checkpoint
        )

    def _best_scales(self, weights: Mapping[str, torch.Tensor], gram: torch.Tensor, fold: Fold) -> torch.Tensor:
        weight, scheme = torch.cat(list(weights.values())), self.scheme_of(next(iter(weights)))
        return best_scales(weight, gram, fold, scheme, duo_scaling=self.duo_scaling, dtype=self.working_dtype)

    def _importance(
        self, weights: Mapping[str, torch.Tensor], gram: torch.Tensor, scales: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """For the clip search of layers that all read inputs which are divided by `scales`."""
        scheme = self.scheme_of(next(iter(weights)))
        return dict.fromkeys(weights, gram_blocks(gram, scales, scheme.group_width(len(gram))))

    def _rounded(
        self, weights: Mapping[str, torch.Tensor], importance: Mapping[str, torch.Tensor]
    ) -> dict[str, Weight]:
        rounded: dict[str, Weight] = {}
        for name, weight in weights.items():
            scheme = self.scheme_of(name)
            rounded[f"{name}.weight"] = quantize(weight, scheme, fit_grid(weight, scheme, importance[name], self.clip))
        return rounded

    def _folds(self, architecture: Architecture) -> list[Fold]:
        return folds(architecture, o_proj=self.o_proj, down_proj=self.down_proj)

    def _rescaled(self, architecture: Architecture) -> list[str]:
        """Every linear that a fold changes: a fold is for readers of which at least one is rounded."""
        chosen = set(self.chosen(architecture))
        found: dict[str, None] = {}
        for index in range(architecture.layers):
            prefix = architecture.modules.block(index)
            for fold in self._folds(architecture):
                if any(prefix + reader in chosen for reader in fold.readers):
                    found |= dict.fromkeys(prefix + linear for linear in fold.linears)
        return list(found)

    def _companions(self, architecture: Architecture) -> list[str]:
        """Skipped linears that are re-scaled all the same, since they share an input with one that is rounded."""
        chosen = set(self.chosen(architecture))
        return [name for name in self._rescaled(architecture) if name not in chosen]


def _stored_like(before: Block, after: Block) -> Block:
    """`after` with its float parameters in the dtypes of `before`."""
    kept = {
        name: weight.to(original.dtype)
        for name, weight in after.weights.items()
        if isinstance(weight, torch.Tensor) and isinstance(original := before.weights[name], torch.Tensor)
    }
    return after.with_weights(kept)
