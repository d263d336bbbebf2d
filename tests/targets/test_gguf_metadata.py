"""What a GGUF file says of its model: llmc's importer understands it, and what cannot be said is refused."""

import numpy as np
import pytest
import torch

from compressor.architecture import resolve
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.gguf import import_gguf
from compressor.gguf.config import LLAMA3, llama3_factors
from compressor.gguf.container import GgufFile
from compressor.quantized import Scheme
from targets.gguf import GgufQ8
from targets.gguf.metadata import architecture_problems

GEMMA = {"query_pre_attn_scalar": 16}
# Of a quarter of the context: the text of `logits_of` is longer.
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5,
            "short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.5, 5.0, 8.0]}  # fmt: skip


@pytest.mark.parametrize(
    ("family", "overrides"),
    [("llama", {"attention_bias": True, "mlp_bias": True}), ("llama", {"head_dim": 32}), ("qwen3", {"head_dim": 32}),
     ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}}),
     ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
      "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
     ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
      "original_max_position_embeddings": 128}}),
     ("phi3", {}),
     ("phi3", {"original_max_position_embeddings": 16, "rope_parameters": LONGROPE}),
     ("gpt2", {}), ("gpt2", {"tie_word_embeddings": False}),
     ("gemma2", GEMMA), ("gemma2", GEMMA | {"layer_types": ["full_attention", "sliding_attention"]}),
     ("gemma3_text", GEMMA | {"rope_parameters": {
      "full_attention": {"rope_type": "linear", "rope_theta": 1e5, "factor": 4.0},
      "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}}),
     ("gemma3_text", GEMMA | {"layer_types": ["full_attention"] * 2, "final_logit_softcapping": None})],
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
    served = [name for name in block.weights if name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight"))]
    return block.with_weights({name: block.weights[name].bfloat16().float() for name in served})


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
    (problem,) = GgufQ8().value_problems(checkpoint, [])
    assert problem == "YaRN with beta_fast=16.0 cannot be written for llama.cpp; the target hf works."
    with pytest.raises(InputError, match=r"YaRN with beta_fast=16.0 cannot be written"):
        lower(GgufQ8(), checkpoint)


def test_scaled_positions_within_windows_are_refused(tiny_model, quantize):
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    rope = {"full_attention": rope, "sliding_attention": rope}
    checkpoint = quantize(tiny_model("gemma3_text", rope_parameters=rope, **GEMMA), Scheme(8, 32))
    assert GgufQ8().problems(checkpoint.architecture, checkpoint.schemes) == []
    (problem,) = GgufQ8().value_problems(checkpoint, [])
    assert problem.startswith("llama.cpp scales no rotary positions of layers with a sliding window")


def test_long_factors_are_for_contexts_and_not_for_texts(tiny_model, quantize, lower, verified):
    overrides = {"original_max_position_embeddings": 128, "rope_parameters": LONGROPE}
    checkpoint = quantize(tiny_model("phi3", **overrides), Scheme(8, 32))
    artifact, notes = lower(GgufQ8(), checkpoint)
    assert verified(GgufQ8(), artifact, checkpoint).mismatches == []
    assert any("serves 128 tokens: where more are asked for" in note for note in notes)
    assert GgufQ8().run_command("here", checkpoint.config).endswith(" -c 128")
    file = GgufFile.open(artifact.root / "model.gguf")
    assert np.array_equal(file.read("rope_factors_long.weight"), np.float32(LONGROPE["long_factor"]))
    assert file.metadata["phi3.rope.scaling.attn_factor"] == pytest.approx(np.sqrt(1 + np.log(4) / np.log(128)))


def test_a_gain_holds_what_float32_has_room_for(tiny_model, recast, quantize, lower, verified, tmp_path):
    """llama.cpp's tensor of a Gemma norm is one plus the weight, which loses the last bits of small weights."""
    name = "model.layers.0.pre_feedforward_layernorm.weight"
    small = {name: torch.linspace(-1e-6, 1e-6, 64).bfloat16()}
    checkpoint = quantize(recast(tiny_model("gemma2", **GEMMA), torch.bfloat16, small), Scheme(8, 32))
    artifact, _ = lower(GgufQ8(), checkpoint)
    assert verified(GgufQ8(), artifact, checkpoint).mismatches == []
    found, _ = import_gguf(artifact.root / "model.gguf", tmp_path / "imported", lambda *_: None)
    gains = 1 + found.read([name])[name].float()
    assert torch.equal(gains, 1 + small[name].float())
    assert not torch.equal(gains - 1, small[name].float())


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
        ("gpt2", {"activation_function": "gelu"}, "computes a gpt2 model with gelu_new, not with gelu;"),
        ("phi3", {"head_dim": 32, "rope_parameters": None}, "takes a phi3 model's 4 heads for as wide as its hidden"),
        ("gemma2", GEMMA | {"tie_word_embeddings": False}, "ties the head of a gemma2 model to its embedding"),
        ("gemma2", GEMMA | {"layer_types": ["full_attention"] * 2}, "takes no gemma2 model without a sliding window"),
        ("gemma2", {}, "divides attention scores of this gemma2 model by the root of 16, not of 24; the target hf"),
        ("gemma3_text", GEMMA | {"rope_parameters": {
         "full_attention": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0},
         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
         "no rope scaling of type yarn for a gemma3 model"),
    ],
)  # fmt: skip
def test_models_that_are_refused(tiny_model, family, overrides, reason):
    architecture = Checkpoint.open(tiny_model(family, **overrides)).architecture
    schemes = {name: Scheme(8, 32) for name in architecture.linears() if name != "lm_head"}
    (problem,) = GgufQ8().problems(architecture, schemes)
    assert reason in problem


def test_gemma2_without_soft_caps_is_refused():
    problems = [
        problem
        for key in ("attn_logit_softcapping", "final_logit_softcapping")
        for problem in architecture_problems(resolve({"model_type": "gemma2", key: None}))
    ]
    what = "attention scores", "logits"
    assert problems == [f"llama.cpp soft-caps the {one} of every gemma2 model; the target hf works." for one in what]


@pytest.mark.parametrize(("family", "layers"), [("gemma2", 46), ("gemma3_text", 62)])
def test_the_largest_gemmas_scale_scores_by_the_width_for_each_head(family, layers):
    """Those of 27 billion parameters: 4608 / 32 and 5376 / 32."""
    width = {"gemma2": 4608, "gemma3_text": 5376}[family]
    config = {"model_type": family, "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 32,
              "head_dim": 128}  # fmt: skip
    assert architecture_problems(resolve(config | {"query_pre_attn_scalar": width // 32})) == []
    assert "by the root of" in architecture_problems(resolve(config | {"query_pre_attn_scalar": 128}))[0]
