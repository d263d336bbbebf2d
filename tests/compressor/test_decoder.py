"""Running a model block by block gives the logits that transformers gives for the whole."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor import decoder as decoder_module
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, full_model, rotary_tables
from compressor.quantized import QuantizedWeight, Scheme

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
CASES = [
    ("llama", True, {}),
    ("llama", False, {"attention_bias": True, "mlp_bias": True}),
    ("llama", True, {"num_key_value_heads": 4, "head_dim": 8}),
    ("llama", True, {"rope_parameters": LLAMA3}),
    ("mistral", True, {"sliding_window": None}),
    ("mistral", False, {"sliding_window": 8}),
    ("qwen2", True, {}),
    ("qwen2", False, {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("qwen2", True, {"rope_parameters": YARN}),
    ("qwen3", True, {}),
    ("qwen3", False, {"attention_bias": True, "head_dim": 32}),
]
LENGTH = 24


@pytest.fixture
def tokens():
    return torch.randint(0, 288, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def logits(checkpoint, tokens):
    decoder = Decoder(checkpoint)
    return decoder.final_states(tokens) @ decoder.head().T


@torch.no_grad()
def expected_logits(root, tokens):
    return AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)(tokens).logits


@pytest.mark.parametrize(("family", "tied", "overrides"), CASES, ids=str)
def test_logits_equal_transformers(tiny_model, tokens, family, tied, overrides):
    root = tiny_model(family, tied=tied, **overrides)
    expected = expected_logits(root, tokens)
    assert expected.std() > 0.5  # the comparison would see nothing in a flat output
    torch.testing.assert_close(logits(Checkpoint.open(root), tokens), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "tied", "overrides"), CASES, ids=str)
@torch.no_grad()
def test_full_model_equals_transformers(tiny_model, tokens, family, tied, overrides):
    root = tiny_model(family, tied=tied, **overrides)
    found = full_model(Checkpoint.open(root))(tokens).logits
    torch.testing.assert_close(found, expected_logits(root, tokens), atol=1e-5, rtol=1e-5)


def test_a_window_makes_a_difference(tiny_model, tokens):
    with_window, without = (tiny_model("mistral", sliding_window=window) for window in (8, None))
    found = [logits(Checkpoint.open(root), tokens) for root in (with_window, without)]
    torch.testing.assert_close(found[0][:, :8], found[1][:, :8], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[0][:, 8:], found[1][:, 8:], atol=1e-3)


def test_half_precision_weights_are_computed_in_float32(tiny_model, tokens):
    root = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.bfloat16)
    model.save_pretrained(root)
    torch.testing.assert_close(
        logits(Checkpoint.open(root), tokens), expected_logits(root, tokens), atol=1e-5, rtol=1e-5
    )


def test_batches_make_no_difference(tiny_model, tokens, monkeypatch):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    together = logits(checkpoint, tokens)
    monkeypatch.setattr(decoder_module, "TOKENS_PER_BATCH", 1)
    torch.testing.assert_close(logits(checkpoint, tokens), together, atol=1e-5, rtol=1e-5)


def test_quantized_weights_count_as_their_dequantized_values(tiny_model, tokens, tmp_path):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    scheme = Scheme(8, 32)

    def quantize(weight):
        grouped = weight.view(weight.shape[0], -1, 32)
        scales = grouped.abs().amax(-1) / 127
        codes = (grouped / scales.unsqueeze(-1)).round().to(torch.int8).view_as(weight)
        return QuantizedWeight(codes, scales, None, scheme)

    def edit(block):
        return block.with_weights({n: quantize(w) for n, w in block.weights.items() if "proj.weight" in n})

    def flatten(block):
        return block.with_weights({n: quantize(w).dequantize() for n, w in block.weights.items() if "proj.weight" in n})

    quantized = checkpoint.rewrite(tmp_path / "quantized", edit, {})
    dequantized = checkpoint.rewrite(tmp_path / "dequantized", flatten, {})
    assert len(quantized.schemes) == 14
    assert torch.equal(logits(quantized, tokens), logits(dequantized, tokens))
    assert not torch.equal(logits(quantized, tokens), logits(checkpoint, tokens))


@pytest.mark.parametrize("overrides", [{}, {"rope_parameters": LLAMA3}, {"rope_parameters": YARN}], ids=str)
def test_rotary_tables_are_those_of_the_model(tiny_model, overrides):
    root = tiny_model("llama", **overrides)
    model = AutoModelForCausalLM.from_pretrained(root)
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(100).unsqueeze(0))
    found = rotary_tables(Checkpoint.open(root).config, 100)
    assert torch.equal(torch.cat([found[0]] * 2, dim=-1), cos[0])
    assert torch.equal(torch.cat([found[1]] * 2, dim=-1), sin[0])


def test_progress_is_told_of_every_block(tiny_model, tokens):
    seen = []
    Decoder(Checkpoint.open(tiny_model("llama"))).final_states(tokens, progress=seen.append)
    assert seen == [1, 2]
