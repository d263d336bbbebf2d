"""The float graph computes what transformers computes, for every family, with caches, windows and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from compressor.checkpoint import Checkpoint
from targets.onnx.session import empty_cache, run
from targets.onnx.target import OnnxFp32

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 32, "num_key_value_heads": 4}),
    ("llama", {"head_dim": 8}),  # too narrow for the attention kernel to rotate
    ("qwen3", {"head_dim": 24}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}),
    ("mistral", {"sliding_window": 7}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen3", {}),
    ("qwen3", {"attention_bias": True}),
    ("gemma2", {"sliding_window": 7}),
    ("gemma2", {"head_dim": 8, "attn_logit_softcapping": None}),
    ("gemma3_text", {"sliding_window": 7}),
    ("phi3", {"head_dim": 32}),  # rotates 16 of 32 features
    ("phi3", {"sliding_window": 7}),  # rotates 8 of 16, which the attention kernel does not
    ("gpt2", {}),
]


def opened(artifact: Any) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(artifact.root / "model.onnx", options)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("family", "overrides"), FAMILIES)
def test_logits_of_every_position(tiny_model, lower, reference, tokens, family, overrides, tied):
    checkpoint = Checkpoint.open(tiny_model(family, tied, **overrides))
    session = OnnxFp32().open(lower(OnnxFp32(), checkpoint)[0], threads=1)
    got = np.concatenate([logits for _, logits in session.logits(tokens)])
    with torch.no_grad():
        want = reference(checkpoint)(torch.tensor(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("padding", [(0, 5), (3, 1)])
@pytest.mark.parametrize(("family", "overrides"), FAMILIES)
def test_prefill_and_decode_with_left_padding(tiny_model, lower, reference, family, overrides, padding):
    checkpoint = Checkpoint.open(tiny_model(family, **overrides))
    session, model = opened(lower(OnnxFp32(), checkpoint)[0]), reference(checkpoint)
    steps = np.random.default_rng(1).integers(0, 256, (2, 14))
    mask = np.array([[0] * pad + [1] * (14 - pad) for pad in padding])
    cache, past = empty_cache(session, 2), None
    for start, end in ((0, 11), (11, 12), (12, 13), (13, 14)):
        got, cache = run(session, steps[:, start:end], mask[:, :end], cache)
        with torch.no_grad():
            positions = torch.tensor(mask.cumsum(1) - 1).clamp(min=0)[:, start:end]
            output = model(
                torch.tensor(steps[:, start:end]),
                attention_mask=torch.tensor(mask[:, :end]),
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
            )
        past = output.past_key_values
        np.testing.assert_allclose(got, output.logits[:, -1:].numpy(), atol=1e-4)


@pytest.mark.parametrize("head_dim", [16, 24])
def test_right_padding_as_genai_does_it(tiny_model, lower, reference, head_dim):
    """A shorter row is padded behind its prompt; what it generates takes the place of the padding."""
    checkpoint = Checkpoint.open(tiny_model("mistral", sliding_window=4, head_dim=head_dim))
    session, model = opened(lower(OnnxFp32(), checkpoint)[0]), reference(checkpoint)
    rows = np.random.default_rng(2).integers(0, 256, (2, 11))
    prompts = (8, 5)
    mask = np.array([[1] * n + [0] * (8 - n) for n in prompts])
    got, cache = run(session, rows[:, :8], mask, empty_cache(session, 2))
    for step in range(3):
        for row, prompt in enumerate(prompts):
            seen = np.concatenate([rows[row, :prompt], rows[row, 8 : 8 + step]])
            with torch.no_grad():
                want = model(torch.tensor(seen)[None]).logits[0, -1]
            np.testing.assert_allclose(got[row, 0], want.numpy(), atol=1e-4)
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        got, cache = run(session, rows[:, 8 + step : 9 + step], mask, cache)


def test_chunks_of_one_sequence_go_through_the_cache(tiny_model, lower, tokens, monkeypatch):
    artifact, _ = lower(OnnxFp32(), Checkpoint.open(tiny_model("mistral", sliding_window=7)))
    session = OnnxFp32().open(artifact, threads=1)
    whole = np.concatenate([logits for _, logits in session.logits(tokens)])
    monkeypatch.setattr("targets.onnx.session.POSITIONS_PER_CHUNK", 5)
    pieces = list(session.logits(tokens))
    assert [start for start, _ in pieces] == [0, 5, 10, 15, 20]
    np.testing.assert_allclose(np.concatenate([logits for _, logits in pieces]), whole, atol=1e-5)
