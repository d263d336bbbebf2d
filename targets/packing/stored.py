"""Tensors of a folder as the safetensors library gives them, for readers that share nothing with our own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from compressor.architecture import read_config, resolve
from compressor.checkpoint import Weight


def tensor_holders(root: Path) -> dict[str, Path]:
    """Which file of a folder holds each tensor."""
    holders: dict[str, Path] = {}
    for path in sorted(root.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            holders |= dict.fromkeys(file.keys(), path)
    return holders


def in_memory(pairs: Iterable[tuple[str, Weight]], root: Path) -> Iterator[tuple[str, Weight]]:
    """Weights as they lie in a folder, those that it stores [in_features, out_features] turned around."""
    architecture = resolve(read_config(root))
    for name, weight in pairs:
        is_turned = isinstance(weight, torch.Tensor) and architecture.is_transposed(name)
        yield name, weight.T if is_turned else weight  # type: ignore[union-attr]


def read_tensor(name: str, holders: Mapping[str, Path]) -> torch.Tensor:
    """One tensor, copied out of its file."""
    # Opened anew for every tensor: a mapping kept open would keep its pages resident.
    with safe_open(holders[name], framework="pt") as file:
        return file.get_tensor(name).clone()
