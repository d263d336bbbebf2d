"""Which widths of the layers have a given size: how many MLP channels and heads, as config.json can say it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from compressor.architecture import Architecture, full_config
from compressor.errors import InputError
from compressor.families import family_of

MULTIPLES = (128, 64, 32)  # groups that quantizers share a scale in


@dataclass(frozen=True)
class Widths:
    """Of every layer.

    Attributes:
        channels: of the MLP.
        heads: that query.
        kv_heads: keys and values.
    """

    channels: int
    heads: int
    kv_heads: int

    def __str__(self) -> str:
        return f"{self.channels} MLP channels, {self.heads} heads, {self.kv_heads} of keys and values"


def layer_parameters(architecture: Architecture) -> int:
    """Number of parameters in one of the decoder's layers."""
    shapes, first = replace(architecture, layers=1).tensor_shapes(), architecture.modules.block(0)
    return sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(first))


def share_left_out(architecture: Architecture, widths: Widths) -> float:
    """Of the layers' parameters, that these widths leave out."""
    return 1 - layer_parameters(narrowed(architecture, widths)) / layer_parameters(architecture)


def narrowed(architecture: Architecture, widths: Widths) -> Architecture:
    """The architecture with these widths."""
    return replace(architecture, intermediate_size=widths.channels, heads=widths.heads, kv_heads=widths.kv_heads)


def narrow_config(config: Mapping[str, Any], widths: Widths) -> dict[str, Any]:
    """The config.json of a model with these widths, as transformers needs it."""
    full, family = full_config(config), family_of(config)
    changed: dict[str, Any] = {family.intermediate_size: widths.channels}
    if widths.heads != full.num_attention_heads:
        head_dim = getattr(full, "head_dim", None) or full.hidden_size // full.num_attention_heads
        changed |= {
            full.attribute_map.get("num_attention_heads", "num_attention_heads"): widths.heads,
            "num_key_value_heads": widths.kv_heads,
            "head_dim": head_dim,  # no longer what transformers derives
        }
    return {**config, **changed}


def candidates(
    architecture: Architecture, fraction: float, parts: Literal["both", "mlp", "heads"], multiple: int | Literal["auto"]
) -> list[Widths]:
    """Every split that leaves out this fraction of the layers' parameters, as near as multiples come; most heads first.

    Args:
        multiple: of the MLP's channels, and of the features of all heads.

    Raises:
        InputError: there is none.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction={fraction:g} is not between 0 and 1.", "0.2 leaves out a fifth.")
    if multiple != "auto" and multiple < 1:
        raise InputError(f"multiple={multiple} is less than 1.", "auto fits what the model has.")
    if parts != "mlp" and architecture.modules.positions:
        raise InputError(
            f"A {architecture.model_type} model has no setting for heads narrower than hidden_size / heads.",
            "prune-width:parts=mlp works.",
        )
    found = list(_splits(architecture, fraction, parts, multiple))
    if not found:
        shares = [share_left_out(architecture, one) for one in _possible(architecture, parts, multiple)]
        raise InputError(
            f"No widths leave out {fraction:g} of the layers' parameters.",
            f"Something between {min(shares):.3f} and {max(shares):.3f} works."
            if shares
            else "A smaller multiple, or other parts, may.",
        )
    return found


def _splits(
    architecture: Architecture, fraction: float, parts: str, multiple: int | Literal["auto"]
) -> Iterator[Widths]:
    """For each number of heads the widths that come nearest, if they come near."""
    possible = list(_possible(architecture, parts, multiple))
    if not possible:
        return
    shares = {widths: share_left_out(architecture, widths) for widths in possible}
    step = _step(architecture, parts, multiple)
    for kv_heads in dict.fromkeys(widths.kv_heads for widths in possible):
        these = [widths for widths in possible if widths.kv_heads == kv_heads]
        nearest = min(these, key=lambda widths: abs(shares[widths] - fraction))
        if abs(shares[nearest] - fraction) <= step / 2:
            yield nearest


def _possible(architecture: Architecture, parts: str, multiple: int | Literal["auto"]) -> Iterator[Widths]:
    """All widths that leave something out, and something of everything; most heads first."""
    channels, query = architecture.intermediate_size, architecture.heads * architecture.head_dim
    step, heads_step = _multiple(channels, multiple), _multiple(query, multiple)
    sharing = architecture.heads // architecture.kv_heads
    for kv_heads in range(architecture.kv_heads, 0, -1):
        heads = kv_heads * sharing
        fewer = kv_heads < architecture.kv_heads
        if fewer and (parts == "mlp" or heads * architecture.head_dim % heads_step or not _opens(architecture, heads)):
            continue
        if fewer:
            yield Widths(channels, heads, kv_heads)
        if parts != "heads":
            yield from (Widths(left, heads, kv_heads) for left in range((channels - 1) // step * step, 0, -step))


def _multiple(width: int, asked: int | Literal["auto"]) -> int:
    return next((size for size in MULTIPLES if width % size == 0), 1) if asked == "auto" else asked


def _step(architecture: Architecture, parts: str, multiple: int | Literal["auto"]) -> float:
    """The share of parameters that is left out or not as one more unit goes: channels, or a group of heads."""
    if parts == "heads":
        groups = architecture.kv_heads
        return share_left_out(architecture, Widths(architecture.intermediate_size, architecture.heads // groups, 1)) / (
            groups - 1
        )
    left = architecture.intermediate_size - _multiple(architecture.intermediate_size, multiple)
    return share_left_out(architecture, Widths(left, architecture.heads, architecture.kv_heads))


def _opens(architecture: Architecture, heads: int) -> bool:
    """Whether transformers takes so many heads of this width: some families want them to divide the hidden size."""
    shape = {
        "model_type": architecture.model_type,
        "hidden_size": architecture.hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": architecture.head_dim,
    }
    try:
        full_config(shape)
    except InputError:
        return False
    return True
