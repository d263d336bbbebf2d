"""Moving scale between what makes an input and what reads it: exact on the float model, nothing left at run time.

Linears read x. Their columns are multiplied by s, and what makes x is divided by s: W diag(s) (x / s) = W x.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from compressor.architecture import FUSED_LINEARS, Architecture
from compressor.checkpoint import Block
from compressor.decoder import dense
from compressor.errors import InputError
from compressor.quantized import Scheme


@dataclass(frozen=True)
class Fold:
    """Linears that read the same input, and what makes that input. Names are those within a decoder block.

    Attributes:
        producer: a norm, or a linear whose outputs reach the readers only through sums and products.
        readers: linears, as `calibration.walk.Stage` names them.
        sharing: how many input features of the readers are made of one feature of the producer.
        width: features that lie side by side before they are repeated for the next one that shares them.
    """

    producer: str
    readers: tuple[str, ...]
    sharing: int
    width: int

    def by_producer(self, values: torch.Tensor) -> torch.Tensor:
        """Values per input feature of the readers, [..., in_features], as [..., sharing, features of the producer]."""
        grouped = values.unflatten(-1, (-1, self.sharing, self.width))
        return grouped.transpose(-3, -2).flatten(-2)

    def by_reader(self, scales: torch.Tensor) -> torch.Tensor:
        """Scales [..., features of the producer] per input feature of the readers."""
        return scales.unflatten(-1, (-1, 1, self.width)).repeat_interleave(self.sharing, -2).flatten(-3)

    @property
    def linears(self) -> tuple[str, ...]:
        """The linears whose weights the fold changes."""
        return (*self.readers, self.producer) if self._from_linear else self.readers

    @property
    def exact_part(self) -> str:
        """The parameter of the producer that stays as it is stored: a norm's gain, a linear's bias if it has one."""
        return f"{self.producer}.{'bias' if self._from_linear else 'weight'}"

    @property
    def _from_linear(self) -> bool:
        return self.producer.endswith("_proj")


def folds(architecture: Architecture, *, o_proj: bool, down_proj: bool) -> list[Fold]:
    """What can be re-scaled in every decoder block, in forward order; the inputs of two linears only if asked for.

    Query heads that share a key-value head share the scales of its values.
    """
    attention, mlp = FUSED_LINEARS
    sharing = architecture.heads // architecture.kv_heads
    found = {
        Fold("input_layernorm", attention, 1, architecture.hidden_size): True,
        Fold("self_attn.v_proj", ("self_attn.o_proj",), sharing, architecture.head_dim): o_proj,
        Fold("post_attention_layernorm", mlp, 1, architecture.hidden_size): True,
        Fold("mlp.up_proj", ("mlp.down_proj",), 1, architecture.intermediate_size): down_proj,
    }
    return [fold for fold, wanted in found.items() if wanted]


def rescale(block: Block, fold: Fold, scales: torch.Tensor) -> Block:
    """The block with the readers' columns multiplied by `scales` and the producer divided by them, in float32.

    Args:
        scales: float32 [features of the producer], positive.
    """
    prefix = f"model.{block.name}."
    weight, bias = (f"{prefix}{fold.producer}.{kind}" for kind in ("weight", "bias"))
    made = dense(block.weights[weight])
    changed = {weight: made / (scales if made.dim() == 1 else scales.unsqueeze(1))}
    if bias in block.weights:
        changed[bias] = dense(block.weights[bias]) / scales
    for reader in fold.readers:
        name = f"{prefix}{reader}.weight"
        changed[name] = dense(block.weights[name]) * fold.by_reader(scales)
    return block.with_weights(changed)


def snap(block: Block, fold: Fold, scales: torch.Tensor) -> torch.Tensor:
    """The nearest scales that leave bfloat16 numbers of the producer's gain or bias.

    These run in 16 bits. Rounded after the fold, each feature would be off by up to 0.4%; this way the difference
    is in the scale, where it costs nothing.
    """
    vector = block.weights.get(f"model.{block.name}.{fold.exact_part}")
    if vector is None:
        return scales
    values = dense(vector)
    kept = (values / scales).bfloat16().float()
    return torch.where(kept == 0, scales, values / kept)


def refuse_fixed(name: str, linears: Iterable[str], schemes: Mapping[str, Scheme]) -> None:
    """Refuse to re-scale what is quantized.

    Args:
        name: of the pass.
        linears: full names of those that it would re-scale.

    Raises:
        InputError: one of them has a scheme.
    """
    for linear in linears:
        if linear in schemes:
            raise InputError(
                f"{name} re-scales {linear}, which is {schemes[linear]} already.", f"Put {name} before what rounds it."
            )


def cache_scales_after(name: str, folds: Iterable[Fold], present: bool) -> bool:
    """Whether there are scales of an fp8 key-value cache after the folds of a pass.

    Raises:
        InputError: there were before, and a fold changes values.
    """
    if present and any(fold.producer == "self_attn.v_proj" for fold in folds):
        raise InputError(
            f"{name} re-scales the values, whose fp8 cache has its scales already.",
            f"Put {name} before the pass that made them, or give {name}:o_proj=false.",
        )
    return present
