"""transformers as the reference of the ONNX tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from compressor.architecture import full_config
from compressor.checkpoint import Checkpoint
from compressor.decoder import dense


@pytest.fixture
def reference() -> Callable[[Checkpoint], Any]:
    """`reference(checkpoint)`: the transformers model, in float32, of the dequantized weights."""

    def load(checkpoint: Checkpoint) -> Any:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_config(full_config(checkpoint.config), dtype=torch.float32)
        weights = checkpoint.read(list(checkpoint.architecture.tensor_shapes()))
        result = model.load_state_dict({name: dense(weight) for name, weight in weights.items()}, strict=False)
        assert not result.unexpected_keys
        assert set(result.missing_keys) <= {"lm_head.weight"}
        return model.eval()

    return load


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, 24)
