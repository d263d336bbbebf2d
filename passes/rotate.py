"""Rotation: turn the residual stream and the values of attention so that no channel stands out before rounding.

Papers: Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", 2024 (R1 and R2 of Liu et al.,
"SpinQuant: LLM Quantization with Learned Rotations", 2024, with random Hadamard matrices).

Both rotations are folded into the weights and leave nothing to do at run time: the model computes what it did, since
RMS norms without a gain commute with a rotation and attention is linear in the values of a head. The rotations that
need an operation at run time, between up and down projection and on queries and keys, are left out for that reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Checkpoint
from compressor.errors import InputError
from compressor.options import option
from compressor.pass_ import BlockPass, PassContext
from compressor.quantized import Scheme
from passes.hadamard import Rotation
from passes.refusals import refuse_quantized

HEAD = "lm_head.weight"
ELEMENTS_AT_ONCE = 1 << 17  # of a weight in float64: parts that stay in the cache

Tensors = dict[str, torch.Tensor]


def rotate_inputs(weight: torch.Tensor, rotation: Rotation, gain: torch.Tensor | None = None) -> torch.Tensor:
    """W diag(gain) R, float32, of a weight [out_features, in_features] that reads gain * x and shall read x R."""
    turned = torch.empty(weight.shape)
    rows = max(1, ELEMENTS_AT_ONCE // weight.shape[1])
    for part, out in zip(weight.split(rows), turned.split(rows), strict=True):
        out.copy_(rotation(part if gain is None else part.double() * gain.double()))
    return turned


def rotate_outputs(weight: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rᵀ W, float32, of a weight [out_features, in_features], or b R of a bias [out_features], that shall write y R."""
    return rotate_inputs(weight.T, rotation).T if weight.dim() == 2 else rotation(weight).float()


def rotate_residual(weights: Mapping[str, torch.Tensor], rotation: Rotation, architecture: Architecture) -> Tensors:
    """The changed parameters of a decoder block, by name within it, whose residual stream is rotated.

    The gains of its norms go into the linears that read them.
    """
    changed, shift = {}, architecture.norm_shift
    for branch in architecture.modules.branches:
        gain = weights[f"{branch.norm}.weight"] + shift
        for linear in branch.first:
            changed[f"{linear}.weight"] = rotate_inputs(weights[f"{linear}.weight"], rotation, gain)
        changed[f"{branch.norm}.weight"] = torch.ones_like(gain) - shift
        changed |= {name: rotate_outputs(weights[name], rotation) for name in _parameters(weights, branch.last)}
    return changed


def rotate_values(weights: Mapping[str, torch.Tensor], rotation: Rotation, architecture: Architecture) -> Tensors:
    """The changed parameters of a decoder block, by name within it, whose values are rotated head by head.

    Args:
        rotation: one block for each key-value head; the query heads that share a head read it turned alike.
    """
    linear, first = architecture.value_part
    outputs = f"{architecture.modules.attention.last}.weight"
    sharing, rows = architecture.heads // architecture.kv_heads, slice(first, first + len(rotation.signs))
    changed = {}
    for name in _parameters(weights, linear):
        changed[name] = weights[name].float().clone()
        changed[name][rows] = rotate_outputs(weights[name][rows], rotation)
    return changed | {outputs: rotate_inputs(weights[outputs], rotation.repeat_blocks(sharing))}


def _parameters(weights: Mapping[str, torch.Tensor], linear: str) -> list[str]:
    return [name for name in (f"{linear}.weight", f"{linear}.bias") if name in weights]


@dataclass(frozen=True)
class _Rotations:
    """The rotation of the residual stream, and of the values of each layer."""

    residual: Rotation
    values: list[Rotation]


@lru_cache(maxsize=1)
def _draw(architecture: Architecture, seed: int) -> _Rotations:
    generator = torch.Generator().manual_seed(seed)
    residual = Rotation.draw(1, architecture.hidden_size, generator)
    heads, head_dim = architecture.kv_heads, architecture.head_dim
    return _Rotations(residual, [Rotation.draw(heads, head_dim, generator) for _ in range(architecture.layers)])


def _edit_head(weights: Tensors, rotation: Rotation, checkpoint: Checkpoint, context: PassContext) -> Tensors:
    architecture = checkpoint.architecture
    norm, embedding = (f"{name}.weight" for name in (architecture.modules.norm, architecture.embedding))
    gain = weights[norm] + architecture.norm_shift
    tied = architecture.tied_embeddings
    if tied and bool((gain == gain[0]).all()):
        return {}  # a gain that is one number commutes with the rotation, and the embedding is rotated already
    head = _float(checkpoint, embedding) if tied else weights[HEAD]
    if tied:
        context.notes.append(
            f"lm_head is untied, since the final norm's gain goes into it: {4 * head.numel():,} bytes more in float32; "
            "residual=false keeps it tied"
        )
    return {HEAD: rotate_inputs(head, rotation, gain), norm: torch.ones_like(gain) - architecture.norm_shift}


def _float(checkpoint: Checkpoint, parameter: str) -> torch.Tensor:
    weight = checkpoint.read([parameter])[parameter]
    assert isinstance(weight, torch.Tensor)  # `plan` refuses quantized checkpoints
    return weight


def _note_dtype(checkpoint: Checkpoint, context: PassContext) -> None:
    if checkpoint.dtype != torch.float32:
        stored = str(checkpoint.dtype).removeprefix("torch.")
        context.notes.append(f"weights are stored in float32, not {stored}: rotated ones are no {stored} numbers")


def _check_stream(architecture: Architecture) -> None:
    """Refuse a residual stream that a rotation does not commute with.

    Raises:
        InputError: something acts on single channels of it, and its gain can go into no linear.
    """
    post_norms = [branch.post_norm for branch in architecture.modules.branches if branch.post_norm]
    reasons = {
        "its layer norms subtract the mean of the channels": architecture.norm == "layer",
        f"{post_norms[0] if post_norms else ''} scales single channels of the residual stream": bool(post_norms),
    }
    for reason in (reason for reason, is_so in reasons.items() if is_so):
        raise InputError(
            f"rotate cannot turn the residual stream of a {architecture.model_type} and change nothing: {reason}.",
            "rotate:residual=false works.",
        )


@dataclass(frozen=True)
class Rotate(BlockPass):
    """Random Hadamard rotations folded into the weights; the step is stored in float32, not rounded to 16 bits.

    Meant for passes that make up for rounding errors, such as gptq. Rounding to nearest can lose by it: a channel of
    the stream that a norm's gain holds down is large again once the gain lies in the weights, and is spread over all.

    A tied head is untied, since the final norm's gain goes into the head but not into the embedding; the ledger says
    what that costs. It stays tied where the gain is one constant, and with residual=false.
    """

    name: ClassVar[str] = "rotate"
    summary: ClassVar[str] = (
        "QuaRot (arXiv 2404.00456): rotate by Hadamard matrices to spread outliers; changes no output"
    )
    zeros: ClassVar[Literal["makes", "keeps", "fills"]] = "fills"
    dtype: ClassVar[torch.dtype | None] = torch.float32

    residual: bool = option(True, "rotate the residual stream; unties a tied lm_head")
    values: bool = option(True, "rotate the values of each attention head")

    def plan(self, architecture: Architecture, schemes: Mapping[str, Scheme]) -> dict[str, Scheme]:
        if not (self.residual or self.values):
            raise InputError("rotate with residual=false and values=false does nothing.", "Remove the pass.")
        refuse_quantized(
            schemes,
            "; a weight is rounded once",
            "Rotate before quantizing, and start from the float checkpoint; --requantize dequantizes this one.",
        )
        if self.residual:
            _check_stream(architecture)
        return {}

    def cache_scales(self, architecture: Architecture, present: bool) -> bool:
        if present and self.values:
            raise InputError(
                "The model has scales of an fp8 key-value cache, which do not fit rotated values.",
                "Rotate before the cache is calibrated; values=false works.",
            )
        return present

    def apply(self, checkpoint: Checkpoint, context: PassContext) -> Checkpoint:
        self.cache_scales(checkpoint.architecture, checkpoint.kv_cache)
        return super().apply(checkpoint, context)

    def edit(self, block: Block, checkpoint: Checkpoint, context: PassContext) -> Block:
        rotations = _draw(checkpoint.architecture, context.seed)
        weights = {name: weight for name, weight in block.weights.items() if isinstance(weight, torch.Tensor)}
        if block.index is not None:
            return self._edit_layer(block, weights, rotations, checkpoint.architecture)
        if block.name == "embedding":
            _note_dtype(checkpoint, context)
        if not self.residual:
            return block
        if block.name == "embedding":
            table = f"{checkpoint.architecture.embedding}.weight"
            return block.with_weights({table: rotate_inputs(weights[table], rotations.residual)})
        return block.with_weights(_edit_head(weights, rotations.residual, checkpoint, context))

    def _edit_layer(self, block: Block, weights: Tensors, rotations: _Rotations, architecture: Architecture) -> Block:
        assert block.index is not None
        changed = {name.removeprefix(block.prefix): weight for name, weight in weights.items()}
        if self.values:
            changed |= rotate_values(changed, rotations.values[block.index], architecture)
        if self.residual:
            changed |= rotate_residual(changed, rotations.residual, architecture)
        return block.with_weights({block.prefix + name: weight for name, weight in changed.items()})
