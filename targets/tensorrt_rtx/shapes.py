"""The shapes that an engine is built for."""

from __future__ import annotations

from dataclasses import dataclass

from compressor.architecture import Architecture

Shape = tuple[int, ...]
Range = tuple[Shape, Shape, Shape]  # the smallest shape of an input, the usual one, and the largest


@dataclass(frozen=True)
class Limits:
    """What an engine has room for: rows, tokens of a row in all, and tokens of a row in one step."""

    batch: int
    length: int
    step: int


def input_shapes(model: Architecture, limits: Limits) -> dict[str, Range]:
    """Shapes of every input of the graph; the usual step is one token behind half of the cache."""
    rows = (1, limits.batch, limits.batch)
    new = (1, 1, limits.step)
    old = (0, limits.length // 2, limits.length - 1)
    ranges = list(zip(rows, new, old, strict=True))
    cache = _range([(row, model.kv_heads, past, model.head_dim) for row, _, past in ranges])
    names = [f"past_key_values.{index}.{part}" for index in range(model.layers) for part in ("key", "value")]
    return {
        "input_ids": _range([(row, current) for row, current, _ in ranges]),
        "attention_mask": _range([(row, current + past) for row, current, past in ranges]),
        **dict.fromkeys(names, cache),
    }


def _range(shapes: list[Shape]) -> Range:
    smallest, usual, largest = shapes
    return smallest, usual, largest
