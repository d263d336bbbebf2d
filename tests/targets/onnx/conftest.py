"""Helpers of the ONNX tests: round-to-nearest checkpoints, lowering, and transformers as the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.checkpoint import Block, Checkpoint
from compressor.decoder import dense
from compressor.quantized import QuantizedWeight, Scheme, shared_scale
from compressor.target import Artifact, Target


def round_to_nearest(weight: torch.Tensor, scheme: Scheme) -> QuantizedWeight:
    rows, columns = weight.shape
    grouped = weight.float().view(rows, -1, scheme.group_width(columns))
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    if scheme.symmetric:
        scales = shared_scale(torch.maximum(-low, high) / scheme.highest, scheme.bits)
        points = torch.zeros_like(scales)
    else:
        scales = shared_scale((high - low) / (2**scheme.bits - 1), scheme.bits)
        points = (scheme.lowest - low / scales).round().clamp(scheme.lowest, scheme.highest)
    codes = (grouped / scales.unsqueeze(-1) + points.unsqueeze(-1)).round().clamp(scheme.lowest, scheme.highest)
    zero_points = None if scheme.symmetric else points.to(torch.int8)
    return QuantizedWeight(codes.view(rows, columns).to(torch.int8), scales, zero_points, scheme)


@pytest.fixture
def quantized(tmp_path: Path) -> Callable[..., Checkpoint]:
    """`quantized(model, scheme, skip=(), overrides={})`: the linears of a folder rounded to nearest."""

    def make(
        model: Path, scheme: Scheme, skip: Iterable[str] = ("lm_head",), overrides: dict[str, Scheme] | None = None
    ) -> Checkpoint:
        checkpoint = Checkpoint.open(model)
        linears = checkpoint.architecture.linears()

        def edit(block: Block) -> Block:
            changed = {}
            for name, weight in block.weights.items():
                layer = name.removesuffix(".weight")
                if layer != name and layer in linears and not layer.endswith(tuple(skip)):
                    chosen = next((s for end, s in (overrides or {}).items() if layer.endswith(end)), scheme)
                    changed[name] = round_to_nearest(weight, chosen)
            return block.with_weights(changed)

        return checkpoint.rewrite(tmp_path / f"quantized-{len(list(tmp_path.iterdir()))}", edit, {})

    return make


@pytest.fixture
def lowered(tmp_path: Path) -> Callable[[Target, Checkpoint], Artifact]:
    def make(target: Target, checkpoint: Checkpoint) -> Artifact:
        out = tmp_path / f"artifact-{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        target.lower(checkpoint, out, lambda *_: None)
        return Artifact(out, target.name)

    return make


@pytest.fixture
def reference() -> Callable[[Checkpoint], Any]:
    """The transformers model, in float32, of a checkpoint's dequantized weights."""

    def load(checkpoint: Checkpoint) -> Any:
        from transformers import AutoModelForCausalLM

        from compressor.architecture import full_config

        model = AutoModelForCausalLM.from_config(full_config(checkpoint.config), dtype=torch.float32)
        weights = {name: dense(weight) for block in checkpoint.blocks() for name, weight in block.weights.items()}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}
        model.tie_weights()
        return model.eval()

    return load


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, 24)
