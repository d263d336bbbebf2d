"""What a GGUF file says of its model: llmc's importer understands it, and what cannot be said is refused."""

import numpy as np
import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gguf import import_gguf
from compressor.gguf.config import LLAMA3, llama3_factors
from compressor.gguf.container import GgufFile
from compressor.quantized import Scheme
from targets.gguf import GgufQ8

EMBEDDING = "model.embed_tokens"


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {"attention_bias": True, "mlp_bias": True}), ("llama", {"head_dim": 32}), ("qwen3", {"head_dim": 32}),
     ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}),
     ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
     ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
      "original_max_position_embeddings": 128}})],
)  # fmt: skip
def test_the_importer_gets_the_same_model(tiny_model, quantize, lower, logits_of, tmp_path, family, overrides):
    checkpoint = quantize(tiny_model(family, **overrides), Scheme(8, 32))
    assert GgufQ8().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(GgufQ8(), checkpoint)
    found, _ = import_gguf(artifact.root / "model.gguf", tmp_path / "imported", lambda *_: None)
    assert found.architecture == checkpoint.architecture
    served = checkpoint.rewrite(tmp_path / "served", with_the_served_table, {})
    torch.testing.assert_close(logits_of(found), logits_of(served), atol=1e-5, rtol=1e-5)


def with_the_served_table(block):
    name = f"{EMBEDDING}.weight"
    return block.with_weights({name: block.weights[name].bfloat16().float()}) if name in block.weights else block


def test_frequency_factors_are_those_of_the_converter(tiny_model, quantize, lower, verified):
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, **LLAMA3}
    root = tiny_model("llama", head_dim=64, rope_parameters=rope)
    checkpoint = quantize(root, Scheme(8, 32))
    artifact, _ = lower(GgufQ8(), checkpoint)
    assert verified(GgufQ8(), artifact, checkpoint).mismatches == []
    found = GgufFile.open(artifact.root / "model.gguf").read("rope_freqs.weight")
    assert found[0] == 1
    assert np.allclose(found, llama3_factors(500000.0, 64, 8.0), rtol=1e-6)


def test_yarn_with_parameters_of_its_own_is_refused(tiny_model, quantize, lower):
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
    usual = {"beta_fast": 32.0, "attention_factor": 0.1 * np.log(4.0) + 1}
    lower(GgufQ8(), quantize(tiny_model("qwen2", rope_parameters=rope | usual), Scheme(8, 32)))
    checkpoint = quantize(tiny_model("qwen2", rope_parameters=rope | {"beta_fast": 16.0}), Scheme(8, 32))
    with pytest.raises(InputError, match=r"YaRN with beta_fast=16.0 cannot be written"):
        lower(GgufQ8(), checkpoint)


def test_a_sliding_window_shortens_the_context(tiny_model, quantize, lower):
    checkpoint = quantize(tiny_model("mistral", sliding_window=128), Scheme(8, 32))
    artifact, notes = lower(GgufQ8(), checkpoint)
    assert "context of 128 instead of 512 tokens: llama.cpp does not apply the sliding window" in notes
    assert GgufFile.open(artifact.root / "model.gguf").metadata["llama.context_length"] == 128
    assert GgufQ8().run_command("here", checkpoint.config).endswith(" -c 128")


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("llama", {"hidden_act": "gelu"}, "computes a llama model with silu, not with gelu; the target hf works"),
        ("qwen3", {"attention_bias": True}, "reads no biases of o_proj or of the MLP in a qwen3 model"),
        ("qwen2", {"head_dim": 32}, "takes a qwen2 model's 4 heads for as wide as its hidden size 64"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
         "no rope scaling of type dynamic for a llama model"),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 2.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 256}},
         "no rope scaling of type llama3 for a qwen2 model"),
    ],
)  # fmt: skip
def test_models_that_are_refused(tiny_model, family, overrides, reason):
    architecture = Checkpoint.open(tiny_model(family, **overrides)).architecture
    schemes = {name: Scheme(8, 32) for name in architecture.linears() if name != "lm_head"}
    (problem,) = GgufQ8().problems(architecture, schemes)
    assert reason in problem
