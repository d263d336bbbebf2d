"""Every layer at given widths: the channels and heads that contribute least go, and what is left is fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from calibration.activations import InputStatistics
from calibration.moments import SecondMoments
from calibration.walk import LayerWalk
from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.families import Branch
from compressor.pass_ import PassContext
from passes.calibrated import check_finite
from passes.fitting import Fitting, settle
from passes.width import Widths, narrow_config

Indices = torch.Tensor  # int64, in order


def contributions(weight: torch.Tensor, moments: SecondMoments, width: int) -> torch.Tensor:
    """Mean square of what neighbouring inputs contribute to the outputs together, float32 [in_features / width].

    Args:
        weight: float32 [out_features, in_features].
        moments: of its inputs.
        width: how many inputs belong together.
    """
    if width == 1:
        return weight.square().sum(0) * moments.diagonal()
    found = []
    for start in range(0, weight.shape[1], width):
        own = weight[:, start : start + width]
        found.append(((own @ moments.rows(start, start + width)[:, start : start + width]) * own).sum())
    return torch.stack(found)


def most(values: torch.Tensor, count: int) -> Indices:
    """Indices of the largest, in order."""
    return values.topk(count).indices.sort().values


def spread(units: Indices, width: int) -> Indices:
    """Indices of the features of units that are so wide."""
    return (units.unsqueeze(1) * width + torch.arange(width)).flatten()


def rows_of(linears: tuple[str, ...], sizes: tuple[int, ...], kept: tuple[Indices, ...]) -> dict[str, Indices]:
    """Rows that are left of linears which make so many features each, or of the one in which they are stacked."""
    if len(linears) == len(sizes):
        return dict(zip(linears, kept, strict=True))
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return {linears[0]: torch.cat([start + part for start, part in zip(starts, kept, strict=True)])}


@dataclass(frozen=True)
class Narrowing(Fitting):
    """Width pruning to widths that are given."""

    name: ClassVar[str] = "prune-width"
    summary: ClassVar[str] = "to given widths"

    widths: Widths = field(kw_only=True)

    def config(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        return narrow_config(checkpoint.config, self.widths)

    def edit_layer(self, block: Block, walk: LayerWalk, checkpoint: Checkpoint, context: PassContext) -> Block:
        architecture = checkpoint.architecture
        left: dict[str, Weight] = {}
        for stage in walk.stages():
            check_finite(stage.statistics, f"{block.prefix}{stage.linears[0]}")
            for branch in architecture.modules.branches:
                if stage.linears == (branch.last,):
                    left |= self._narrow(block, branch, stage.statistics, walk, architecture)
        return block.with_weights(left)

    def _narrow(
        self, block: Block, branch: Branch, statistics: InputStatistics, walk: LayerWalk, architecture: Architecture
    ) -> dict[str, Weight]:
        """The weights of a branch that change, by parameter name."""
        name = f"{block.prefix}{branch.last}.weight"
        stored = block.weights[name]
        assert isinstance(stored, torch.Tensor)  # `plan` refuses quantized models
        (wanted,) = self.wanted([stored], statistics)
        moments = statistics.moments
        if branch is architecture.modules.attention:
            inputs, rows = self._heads(contributions(wanted, moments, _group(architecture)), architecture)
        else:
            inputs, rows = self._channels(contributions(wanted, moments, 1), architecture)
        fitted = self._fitted(wanted, inputs, moments)
        walk.replace(branch.last, fitted)  # as wide as before, so that what makes its inputs can stay
        left: dict[str, Weight] = {name: fitted[:, inputs].to(stored.dtype)}
        for linear, kept in rows.items():
            for parameter in (f"{block.prefix}{linear}.weight", f"{block.prefix}{linear}.bias"):
                if parameter in block.weights:
                    whole = block.weights[parameter]
                    assert isinstance(whole, torch.Tensor)
                    left[parameter] = whole[kept]
        return left

    def _heads(self, values: torch.Tensor, architecture: Architecture) -> tuple[Indices, dict[str, Indices]]:
        """Inputs that are left of the linear behind attention, and rows of those before it."""
        groups = most(values, self.widths.kv_heads)
        query, key = spread(groups, _group(architecture)), spread(groups, architecture.head_dim)
        linears = architecture.modules.attention.first
        return query, rows_of(linears, architecture.qkv_rows, (query, key, key))

    def _channels(self, values: torch.Tensor, architecture: Architecture) -> tuple[Indices, dict[str, Indices]]:
        channels, sizes = most(values, self.widths.channels), architecture.mlp_rows
        return channels, rows_of(architecture.modules.mlp.first, sizes, (channels,) * len(sizes))

    def _fitted(self, wanted: torch.Tensor, inputs: Indices, moments: SecondMoments) -> torch.Tensor:
        """The weight [out_features, in_features], zero but for these inputs, nearest to what is wanted of it."""
        energy = moments.diagonal()
        moments.set_diagonal(energy + self.damping * energy.mean().clamp(min=1e-12))
        turned = wanted.T.contiguous()
        left = torch.zeros_like(turned)
        left[inputs] = turned[inputs]
        if len(inputs) < len(turned):
            settle(turned, left, moments, self.iterations)
        return left.T.contiguous()


def _group(architecture: Architecture) -> int:
    """Features of the heads that share a key and value."""
    return architecture.heads // architecture.kv_heads * architecture.head_dim
