"""The largest values that a model makes on the calibration text: what its linears read, and what its cache keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from compressor.architecture import Architecture
from compressor.checkpoint import Block
from compressor.decoder import Decoder
from compressor.rounding import cache_argument


@dataclass
class Ranges:
    """Absolute maxima, float32 [] each; NaN where any value was NaN.

    Attributes:
        inputs: of what each linear reads, by its full name.
        cache: of keys after the rotary embedding and of values as projected, by the names of their scales.
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    cache: dict[str, torch.Tensor] = field(default_factory=dict)


class RangeStream:
    """The calibration text on its way through a model, observed block by block."""

    def __init__(self, decoder: Decoder, tokens: torch.Tensor) -> None:
        self._decoder, self._hidden = decoder, decoder.embed(tokens)

    def observe(self, block: Block) -> Ranges:
        """Run the text through the next block. Blocks come in forward order."""
        ranges = Ranges()
        if block.index is not None:
            layer = self._decoder.layer(block)
            with _observed(layer, block, self._decoder.architecture, ranges):
                self._decoder.run(layer, block.index, self._hidden)
        elif block.name == "head":
            self._decoder.final_norm(self._hidden)
            _widen(ranges.inputs, "lm_head", self._hidden)
        return ranges


@contextmanager
def _observed(layer: nn.Module, block: Block, architecture: Architecture, ranges: Ranges) -> Iterator[None]:
    assert block.index is not None
    scales = architecture.cache_scales(block.index)
    attention = layer.get_submodule(architecture.modules.attention.body)
    cache = cache_argument(attention)

    def read(name: str) -> Any:
        return lambda _, inputs: _widen(ranges.inputs, block.prefix + name, inputs[0])

    def hand_over(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, cache: _ObservedCache(scales, ranges, kwargs.get(cache))}

    linears = {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    # First in line, so that what they see is not rounded yet.
    handles = [module.register_forward_pre_hook(read(name), prepend=True) for name, module in linears.items()]
    handles.append(attention.register_forward_pre_hook(hand_over, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _ObservedCache:
    """Looks like a cache to transformers' attention; keeps nothing."""

    def __init__(self, names: tuple[str, ...], ranges: Ranges, inner: Any) -> None:
        self._names, self._ranges, self._inner = names, ranges, inner

    def update(self, keys: torch.Tensor, values: torch.Tensor, *rest: Any, **named: Any) -> Any:
        for name, states in zip(self._names, (keys, values), strict=True):
            _widen(self._ranges.cache, name, states)
        return (keys, values) if self._inner is None else self._inner.update(keys, values, *rest, **named)


def _widen(found: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
    low, high = values.aminmax()
    largest = torch.maximum(-low, high).float()
    found[name] = torch.maximum(found[name], largest) if name in found else largest
