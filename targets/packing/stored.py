"""Tensors of a folder as the safetensors library gives them, for readers that share nothing with our own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open


def tensor_holders(root: Path) -> dict[str, Path]:
    """Which file of a folder holds each tensor."""
    holders: dict[str, Path] = {}
    for path in sorted(root.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            holders |= dict.fromkeys(file.keys(), path)
    return holders


def read_tensor(name: str, holders: Mapping[str, Path]) -> torch.Tensor:
    """One tensor, copied out of its file."""
    # Opened anew for every tensor: a mapping kept open would keep its pages resident.
    with safe_open(holders[name], framework="pt") as file:
        return file.get_tensor(name).clone()
