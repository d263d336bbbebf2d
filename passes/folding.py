"""Moving scale between what makes an input and what reads it: exact on the float model, nothing left at run time.

Linears read x. Their columns are multiplied by s, and what makes x is divided by s: W diag(s) (x / s) = W x.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from compressor.architecture import Architecture
from compressor.checkpoint import Block, Weight
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
        is_norm: whether the producer is a norm.
        shift: what a norm adds to its weight to have its gain.
        first_row: of a linear, the first output feature that makes inputs of the readers.
    """

    producer: str
    readers: tuple[str, ...]
    sharing: int
    width: int
    is_norm: bool = False
    shift: float = 0.0
    first_row: int = 0

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
        return self.readers if self.is_norm else (*self.readers, self.producer)

    @property
    def exact_part(self) -> str:
        """The parameter of the producer that stays as it is stored: a norm's gain, a linear's bias if it has one."""
        return f"{self.producer}.{'weight' if self.is_norm else 'bias'}"

    def divided(self, parameter: str, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The `weight` or the `bias` of the producer, with the features that the readers see divided by `scales`."""
        shift = self.shift if parameter == "weight" else 0.0
        rows = slice(self.first_row, self.first_row + len(scales))
        made = values.clone()
        made[rows] = (values[rows] + shift) / (scales if values.dim() == 1 else scales.unsqueeze(1)) - shift
        return made


def folds(architecture: Architecture, *, o_proj: bool, down_proj: bool) -> list[Fold]:
    """What can be re-scaled in every decoder block, in forward order; the inputs of two linears only if asked for.

    Query heads that share a key-value head share the scales of its values. What an MLP without a gate makes of its
    inputs is no product, so that nothing can be moved through it.
    """
    attention, mlp = architecture.modules.branches
    hidden, inner, shift = architecture.hidden_size, architecture.intermediate_size, architecture.norm_shift
    sharing, (values, first_value) = architecture.heads // architecture.kv_heads, architecture.value_part
    found = [Fold(attention.norm, attention.first, 1, hidden, is_norm=True, shift=shift)]
    if o_proj:
        width = architecture.head_dim
        found.append(Fold(values, (attention.last,), sharing, width, first_row=first_value))
    found.append(Fold(mlp.norm, mlp.first, 1, hidden, is_norm=True, shift=shift))
    if down_proj and architecture.gated:
        up, first_up = architecture.up_part
        found.append(Fold(up, (mlp.last,), 1, inner, first_row=first_up))
    return found


def rescale(block: Block, fold: Fold, scales: torch.Tensor) -> Block:
    """The block with the readers' columns multiplied by `scales` and the producer divided by them, in float32.

    Args:
        scales: float32 [features of the producer], positive.
    """
    changed: dict[str, Weight] = {}
    for parameter in ("weight", "bias"):
        name = f"{block.prefix}{fold.producer}.{parameter}"
        if name in block.weights:
            changed[name] = fold.divided(parameter, dense(block.weights[name]), scales)
    for reader in fold.readers:
        name = f"{block.prefix}{reader}.weight"
        changed[name] = dense(block.weights[name]) * fold.by_reader(scales)
    return block.with_weights(changed)


def snap(block: Block, fold: Fold, scales: torch.Tensor) -> torch.Tensor:
    """The nearest scales that leave bfloat16 numbers of the producer's gain or bias.

    These run in 16 bits. Rounded after the fold, each feature would be off by up to 0.4%; this way the difference
    is in the scale, where it costs nothing.
    """
    vector = block.weights.get(f"{block.prefix}{fold.exact_part}")
    if vector is None:
        return scales
    values = dense(vector)[fold.first_row : fold.first_row + len(scales)] + fold.shift
    kept = (values / scales - fold.shift).bfloat16().float() + fold.shift
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
                f"{name} re-scales {linear}, which is {schemes[linear]} already.",
                f"Put {name} before what rounds it; --requantize dequantizes a model that came quantized.",
            )


def cache_scales_after(name: str, o_proj: bool, present: bool) -> bool:
    """Whether there are scales of an fp8 key-value cache after the folds of a pass.

    Args:
        o_proj: it re-scales what o_proj reads, so that it changes values.

    Raises:
        InputError: there were before, and values change.
    """
    if present and o_proj:
        raise InputError(
            f"{name} re-scales the values, whose fp8 cache has its scales already.",
            f"Put {name} before the pass that made them, or give {name}:o_proj=false.",
        )
    return present
