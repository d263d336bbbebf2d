"""Depth pruning: leave out the decoder layers that change the residual stream least.

Paper: Men et al., "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect", 2024. The influence
of a layer is 1 - cos(what it reads, what it leaves), in the mean over tokens; all layers are judged in the whole model.

What is left is an ordinary dense model of fewer layers, which every target takes and every runtime runs faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch

from calibration.walk import Lane, fast_dtype
from compressor.architecture import Architecture, full_config, resolve
from compressor.checkpoint import Checkpoint, Weight
from compressor.decoder import Decoder, batches
from compressor.errors import InputError, RunError
from compressor.options import option
from compressor.pass_ import Need, Pass, PassContext
from compressor.quantized import Scheme
from passes.pruning import refuse_cache_scales, refuse_rounded


@dataclass(frozen=True)
class ShallowCheckpoint(Checkpoint):
    """A checkpoint without some of its layers.

    Attributes:
        base: the checkpoint with all of them.
        kept: indices of the layers that are left, in order.
    """

    base: Checkpoint = field(kw_only=True)
    kept: tuple[int, ...] = field(kw_only=True)

    def read(self, parameters: list[str]) -> dict[str, Weight]:
        there = {self._name_in_base(name): name for name in parameters}
        return {there[name]: weight for name, weight in self.base.read(list(there)).items()}

    def _name_in_base(self, parameter: str) -> str:
        blocks = f"{self.architecture.modules.blocks}."
        if not parameter.startswith(blocks):
            return parameter
        index, _, rest = parameter.removeprefix(blocks).partition(".")
        return f"{blocks}{self.kept[int(index)]}.{rest}"


def without_layers(checkpoint: Checkpoint, removed: set[int]) -> ShallowCheckpoint:
    """The checkpoint without these layers, its configuration as transformers needs it."""
    kept = tuple(index for index in range(checkpoint.architecture.layers) if index not in removed)
    config = _shallow_config(checkpoint.config, kept)
    return ShallowCheckpoint(
        checkpoint.root,
        config,
        resolve(config),
        checkpoint.tensors,
        checkpoint.schemes,
        base=checkpoint,
        kept=kept,
    )


def _shallow_config(config: Mapping[str, Any], kept: tuple[int, ...]) -> dict[str, Any]:
    full = full_config(config)
    depth = full.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    changed: dict[str, Any] = {depth: len(kept)}
    kinds = getattr(full, "layer_types", None)
    if kinds is not None:  # written out, for what transformers derives them from counts layers
        changed["layer_types"] = [kinds[index] for index in kept]
    return {**config, **changed}


@torch.no_grad()
def influences(checkpoint: Checkpoint, context: PassContext, dtype: torch.dtype) -> list[float]:
    """How much each layer turns the residual stream on the calibration text: 0 is not at all.

    Args:
        dtype: of the matrix products.

    Raises:
        RunError: the activations are not finite.
    """
    assert context.tokens is not None  # `needs` says so
    decoder = Decoder(checkpoint)
    hidden, total = decoder.embed(context.tokens), checkpoint.architecture.layers
    found = []
    for index in range(total):
        layer = decoder.layer(checkpoint.block(f"layers.{index}"), dtype)
        lane = Lane(layer, decoder.architecture.modules, decoder.context(index, hidden.shape[1]), hidden, dtype)
        found.append(1 - _mean_cosine(lane))
        if not math.isfinite(found[-1]):
            raise RunError(f"Layer {index} gives NaN or Inf on the calibration text.", "The model overflows on it.")
        context.progress("judging layers", index + 1, total)
    return found


def _mean_cosine(lane: Lane) -> float:
    """Run the lane's text through its layer, in place, and compare what went in with what came out."""
    everything, cosines = lane.hidden, []
    for batch in batches(everything):
        before, lane.hidden = batch.clone(), batch
        for branch in lane.modules.branches:
            for _ in lane.finish(branch, lane.inner(branch, lane.read(branch))):
                pass
        cosines.append(torch.cosine_similarity(before, batch, dim=-1).double().flatten())
    return float(torch.cat(cosines).mean())


@dataclass(frozen=True)
class PruneDepth(Pass):
    """Leave out the layers of least influence."""

    name: ClassVar[str] = "prune-depth"
    summary: ClassVar[str] = (
        "ShortGPT (arXiv 2403.03853): remove the decoder layers of least influence; needs calibration text"
    )

    fraction: float = option(0.2, "of the layers, that is left out")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "matrix products on calibration text; auto is bfloat16 where the CPU has instructions for it"
    )

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CALIBRATION})

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        refuse_rounded(schemes)
        if not 0 < self.fraction < 1:
            raise InputError(f"fraction={self.fraction} is not between 0 and 1.", "0.2 leaves out a fifth.")
        count, layers = self._count(architecture), architecture.layers
        if not 0 < count < layers:
            raise InputError(
                f"fraction={self.fraction} of {layers} layers is {'none' if count == 0 else 'all'} of them.",
                f"Something between {0.51 / layers:.2g} and {(layers - 1) / layers:.2g} leaves out one or more.",
            )
        return {}

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        return refuse_cache_scales(present)

    def reshaped(self, architecture: Architecture) -> Architecture:
        left = architecture.layers - self._count(architecture)
        return replace(
            architecture,
            layers=left,
            windows=architecture.windows[:left],
            rotary_kinds=architecture.rotary_kinds[:left],
        )

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        dtype = fast_dtype() if self.precision == "auto" else getattr(torch, self.precision)
        found = influences(checkpoint, context, dtype)
        order = sorted(range(len(found)), key=lambda index: found[index])
        removed = set(order[: self._count(checkpoint.architecture)])
        pruned = without_layers(checkpoint, removed)
        context.notes.append(_note(found, removed))
        return pruned.rewrite(context.out, lambda block: block, {**context.provenance, "kept_layers": pruned.kept})

    def _count(self, architecture: Architecture) -> int:
        return round(self.fraction * architecture.layers)


def _note(found: list[float], removed: set[int]) -> str:
    left = [value for index, value in enumerate(found) if index not in removed]
    gone = [found[index] for index in removed]
    return (
        f"left out layers {', '.join(map(str, sorted(removed)))} of {len(found)} (counted from 0): influence "
        f"{min(gone):.3f} to {max(gone):.3f}, where the others have {min(left):.3f} to {max(left):.3f}"
    )
