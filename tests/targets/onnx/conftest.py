"""transformers as the reference of the ONNX tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compressor.architecture import full_config
from compressor.checkpoint import Checkpoint
from compressor.decoder import dense
from compressor.target import Artifact, Target


@pytest.fixture
def reference() -> Callable[[Checkpoint], Any]:
    """`reference(checkpoint)`: the transformers model, in float32, of the dequantized weights."""

    def load(checkpoint: Checkpoint) -> Any:
        from transformers import AutoModelForCausalLM

        # Eager, since the fused attention leaves soft-capping out.
        config, shape = full_config(checkpoint.config), checkpoint.architecture
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
        weights = {name: dense(weight) for name, weight in checkpoint.read(list(shape.tensor_shapes())).items()}
        stored = {name: weight.T if shape.is_transposed(name) else weight for name, weight in weights.items()}
        result = model.load_state_dict(stored, strict=False)
        assert not result.unexpected_keys
        assert set(result.missing_keys) <= {"lm_head.weight"}
        return model.eval()

    return load


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, 24)


@pytest.fixture
def wanted(reference) -> Callable[[Checkpoint, np.ndarray], np.ndarray]:
    """`wanted(checkpoint, tokens)`: logits of every position of the reference, float32 [length, vocab_size]."""

    @torch.no_grad()
    def run(checkpoint: Checkpoint, tokens: np.ndarray) -> np.ndarray:
        return reference(checkpoint)(torch.tensor(tokens)[None]).logits[0].numpy()

    return run


@pytest.fixture
def computed() -> Callable[..., np.ndarray]:
    """`computed(target, artifact, tokens, **options)`: the same of an artifact."""

    def run(target: Target, artifact: Artifact, tokens: np.ndarray, **options: Any) -> np.ndarray:
        session = target.open(artifact, threads=1, **options)
        return np.concatenate([logits for _, logits in session.logits(tokens)])

    return run


@pytest.fixture
def assert_exact(lower, verified, wanted, computed, tokens) -> Callable[[Target, Checkpoint], onnx.ModelProto]:
    """The artifact holds the checkpoint's bits and computes its logits at level 0; returns the graph."""

    def check(target: Target, checkpoint: Checkpoint) -> onnx.ModelProto:
        artifact, _ = lower(target, checkpoint)
        assert verified(target, artifact, checkpoint).mismatches == []
        got = computed(target, artifact, tokens, accuracy_level=0)
        np.testing.assert_allclose(got, wanted(checkpoint, tokens), atol=2e-4)
        return onnx.load(artifact.root / "model.onnx", load_external_data=False)

    return check


@pytest.fixture
def flip_bit() -> Callable[[Path, str], None]:
    """`flip_bit(root, initializer)`: the lowest bit of the tensor's first byte."""

    def flip(root: Path, initializer: str) -> None:
        model = onnx.load(root / "model.onnx", load_external_data=False)
        place = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}[initializer]
        with (root / place["location"]).open("r+b") as file:
            file.seek(int(place["offset"]))
            byte = file.read(1)[0]
            file.seek(int(place["offset"]))
            file.write(bytes([byte ^ 1]))

    return flip
