from __future__ import annotations

import math
from pathlib import Path

import pytest
import shapes
import torch

from compressor.architecture import resolve
from compressor.checkpoint import Checkpoint


def test_the_big_shape() -> None:
    architecture = resolve(shapes.llama(layers=16, width=2048))
    assert (architecture.heads, architecture.kv_heads, architecture.intermediate_size) == (32, 8, 8192)
    assert sum(math.prod(shape) for shape in architecture.tensor_shapes().values()) == pytest.approx(1.1e9, rel=0.01)


def test_a_random_model_opens_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "VOCABULARY", 64)
    config = shapes.llama(layers=3, width=64)
    checkpoint = Checkpoint.open(shapes.random_model(tmp_path / "model", config))
    again = Checkpoint.open(shapes.random_model(tmp_path / "model", config))
    other = Checkpoint.open(shapes.random_model(tmp_path / "other", config))
    assert checkpoint.architecture.layers == 3
    assert checkpoint.digest == again.digest == other.digest
    weights = checkpoint.block("layers.2").weights
    up = weights["model.layers.2.mlp.up_proj.weight"]
    assert isinstance(up, torch.Tensor)
    assert up.dtype == torch.bfloat16
    assert float(up.float().std()) == pytest.approx(shapes.DEVIATION, rel=0.05)
    assert shapes.random_tokens(2, 16).max() < 64
