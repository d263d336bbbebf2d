"""Checkpoints with scales that the loader does not take as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.checkpoint import Block, Checkpoint
from compressor.quantized import QuantizedWeight


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Checkpoint]:
    """`changed(checkpoint, name, factor)`: the weight scale of one layer, or `part` of it, times `factor`."""

    def make(checkpoint: Checkpoint, name: str, factor: float, part: str = "scales") -> Checkpoint:
        def edit(block: Block) -> Block:
            edited: dict[str, Any] = {}
            for parameter, weight in block.weights.items():
                if parameter.startswith(name):
                    assert isinstance(weight, QuantizedWeight)
                    value: torch.Tensor = getattr(weight, part)
                    edited[parameter] = replace(weight, **{part: value * factor})
            return block.with_weights(edited)

        return checkpoint.rewrite(tmp_path / f"changed-{len(list(tmp_path.iterdir()))}", edit, {})

    return make
