"""Running a model block by block gives the logits that transformers gives for the whole."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor import decoder as decoder_module
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder, dense, full_model, rotary_tables
from compressor.quantized import FP8, Activations, QuantizedWeight, Scheme

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 32}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 16, "factor": 4.0,
            "short_factor": [1.0 + 0.1 * i for i in range(4)], "long_factor": [2.0 + i for i in range(4)],
            "partial_rotary_factor": 0.5}  # fmt: skip
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
    ("gemma2", True, {}),
    ("gemma2", False, {"attention_bias": True, "head_dim": 32}),
    ("gemma3_text", True, {}),
    ("gemma3_text", False, {"final_logit_softcapping": None, "layer_types": ["sliding_attention"] * 2}),
    ("phi3", True, {}),
    ("phi3", False, {"sliding_window": 8, "partial_rotary_factor": 1.0}),
    ("phi3", False, {"rope_parameters": LONGROPE}),
    ("gpt2", True, {}),
    ("gpt2", False, {"n_inner": None, "activation_function": "relu"}),
]
LENGTH = 24


@pytest.fixture
def tokens():
    return torch.randint(0, 288, (3, LENGTH), generator=torch.Generator().manual_seed(1))


def logits(checkpoint, tokens):
    decoder = Decoder(checkpoint)
    return decoder.logits(decoder.final_states(tokens), decoder.head())


@torch.no_grad()
def expected_logits(root, tokens):
    # Its fused attention leaves soft-capping out.
    return AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, attn_implementation="eager")(tokens).logits


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
    monkeypatch.setattr(decoder_module, "ELEMENTS_PER_BATCH", 1)
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


@pytest.mark.parametrize("activations", [None, Activations(dynamic=True)], ids=str)
@torch.no_grad()
def test_inputs_are_multiplied_before_they_are_rounded(tiny_model, tokens, tmp_path, activations):
    scheme = Scheme(8, None, activations=activations, input_factors=True)
    generator = torch.Generator().manual_seed(0)

    def quantize(weight):
        scales = weight.abs().amax(1, keepdim=True) / 127
        factors = torch.rand(weight.shape[1], generator=generator) + 0.5
        codes = (weight / scales).round().to(torch.int8)
        return QuantizedWeight(codes, scales, None, scheme, input_factors=factors)

    def edit(block):
        return block.with_weights({n: quantize(w) for n, w in block.weights.items() if "proj.weight" in n})

    def by_hand(checkpoint):
        """The factors in hooks of transformers' own model, in front of those that round."""
        plain = checkpoint.rewrite(tmp_path / "plain", lambda block: block.with_weights(cores(block)), {})
        model = full_model(plain, rounds_inputs=True)
        for block in checkpoint.blocks():
            for name, weight in block.weights.items():
                if isinstance(weight, QuantizedWeight):
                    hook = partial(multiplied, factors=weight.input_factors)
                    model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(hook, prepend=True)
        return model(tokens).logits

    def cores(block):
        return {n: w.core for n, w in block.weights.items() if isinstance(w, QuantizedWeight)}

    def multiplied(module, inputs, factors):
        return (inputs[0] * factors,)

    checkpoint = Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "quantized", edit, {})
    expected = by_hand(checkpoint)
    torch.testing.assert_close(logits(checkpoint, tokens), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(full_model(checkpoint, rounds_inputs=True)(tokens).logits, expected)
    if activations is None:
        torch.testing.assert_close(full_model(checkpoint)(tokens).logits, expected, atol=1e-4, rtol=1e-4)


ROUNDED = [
    Scheme(8, None, activations=Activations(dynamic=True)),
    Scheme(8, None, activations=Activations(dynamic=False)),
    Scheme(8, None, type="float", activations=Activations(type="float", dynamic=True)),
    Scheme(8, None, type="float", activations=Activations(type="float", dynamic=False)),
]
INPUT_SCALE, K_SCALE, V_SCALE = 0.03, 2.0**-8, 2.0**-9


def rounded(values, scheme, scale=None):
    """Float64 values as the codes of a scheme's type mean them; without a scale, one for each token."""
    levels = 448.0 if scheme.type == "float" else 127.0
    scale = values.abs().amax(-1, keepdim=True) / levels if scale is None else scale
    if scheme.type == "float":
        return (values / scale).clamp(-448, 448).to(FP8).double() * scale
    return (values / scale).round().clamp(-128, 127) * scale


def reference_logits(checkpoint, tokens, scheme, kv_cache):
    """A llama with equally many heads for keys and queries, written out in float64."""
    shape, weights = checkpoint.architecture, checkpoint.read(list(checkpoint.parameters))

    def value(name):
        weight = weights[name + ".weight"]
        return (weight.dequantize() if isinstance(weight, QuantizedWeight) else weight).double()

    def linear(name, inputs):
        scale = None if scheme.activations.dynamic else INPUT_SCALE
        return rounded(inputs, scheme, scale) @ value(name).T

    def norm(name, states):
        return states / (states.square().mean(-1, keepdim=True) + shape.norm_epsilon).sqrt() * value(name)

    def heads(states):
        return states.unflatten(-1, (shape.heads, shape.head_dim)).transpose(1, 2)

    def rotate(states):
        first, second = states.chunk(2, -1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    cos, sin = (table.double() for table in rotary_tables(checkpoint.config, tokens.shape[1]))
    mask = torch.full((tokens.shape[1],) * 2, -torch.inf).triu(1)
    states = value("model.embed_tokens")[tokens]
    for index in range(shape.layers):
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        inputs = norm(f"model.layers.{index}.input_layernorm", states)
        query, key, content = (heads(linear(f"{attention}{x}_proj", inputs)) for x in "qkv")
        query, key = rotate(query), rotate(key)
        if kv_cache:
            key, content = rounded(key, ROUNDED[3], K_SCALE), rounded(content, ROUNDED[3], V_SCALE)
        weighted = (query @ key.transpose(2, 3) / shape.head_dim**0.5 + mask).softmax(-1) @ content
        states = states + linear(f"{attention}o_proj", weighted.transpose(1, 2).flatten(2))
        inputs = norm(f"model.layers.{index}.post_attention_layernorm", states)
        gate, up = linear(f"{mlp}gate_proj", inputs), linear(f"{mlp}up_proj", inputs)
        states = states + linear(f"{mlp}down_proj", gate * gate.sigmoid() * up)
    return linear("lm_head", norm("model.norm", states))


@pytest.mark.parametrize("kv_cache", [False, True])
@pytest.mark.parametrize("scheme", ROUNDED, ids=str)
def test_rounded_activations_and_cache_as_written_out_by_hand(tiny_model, tokens, tmp_path, scheme, kv_cache):
    def quantize(weight):
        scales = weight.abs().amax(-1, keepdim=True) / (448 if scheme.type == "float" else 127)
        codes = (weight / scales).to(FP8) if scheme.type == "float" else (weight / scales).round().to(torch.int8)
        scale = None if scheme.activations.dynamic else torch.tensor(INPUT_SCALE)
        return QuantizedWeight(codes, scales, None, scheme, scale)

    def edit(block):
        changed = {n: quantize(w) for n, w in block.weights.items() if "proj.weight" in n or "lm_head" in n}
        if kv_cache and block.index is not None:
            prefix = f"model.{block.name}.self_attn."
            changed |= {prefix + "k_scale": torch.tensor([K_SCALE]), prefix + "v_scale": torch.tensor([V_SCALE])}
        return block.with_weights(changed)

    checkpoint = Checkpoint.open(tiny_model("llama", tied=False, num_key_value_heads=4))
    quantized = checkpoint.rewrite(tmp_path / "quantized", edit, {})
    assert quantized.kv_cache == kv_cache
    expected = reference_logits(quantized, tokens, scheme, kv_cache)
    # Mostly equal to 1e-7; a value that lies half way between two codes may go either way in float32.
    assert float((logits(quantized, tokens) - expected).abs().mean()) < 5e-4
    assert float((logits(checkpoint, tokens) - expected).abs().mean()) > 1e-2


def test_rounding_survives_another_rewrite(tiny_model, tokens, tmp_path):
    scale, scheme = torch.tensor(INPUT_SCALE), ROUNDED[3]

    def edit(block):
        if block.index is None:
            return block
        name = f"model.{block.name}.mlp.up_proj.weight"
        weight = QuantizedWeight(block.weights[name].to(FP8), torch.ones(128, 1), None, scheme, scale)
        cache = {f"model.{block.name}.self_attn.{x}_scale": torch.tensor([K_SCALE]) for x in "kv"}
        return block.with_weights({name: weight, **cache})

    first = Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "first", edit, {})
    second = first.rewrite(tmp_path / "second", lambda block: block, {})
    assert second.kv_cache
    assert second.schemes == first.schemes
    assert torch.equal(logits(second, tokens), logits(first, tokens))
    ours, theirs = (c.block("layers.1").weights["model.layers.1.mlp.up_proj.weight"] for c in (first, second))
    assert ours.same_bits(theirs)
    assert float(theirs.input_scale) == float(scale)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rows", [3, 600])
def test_weights_in_16_bits_are_the_rounded_values(rows, symmetric):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (rows, 64), generator=generator, dtype=torch.int8)
    zeros = None if symmetric else torch.randint(-8, 8, (rows, 2), generator=generator, dtype=torch.int8)
    weight = QuantizedWeight(codes, torch.rand(rows, 2, generator=generator), zeros, Scheme(4, 32, symmetric))
    assert torch.equal(dense(weight, torch.bfloat16), weight.dequantize().bfloat16())


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_norms_of_the_residual_stream_stay_in_float32(family, tiny_model):
    decoder = Decoder(Checkpoint.open(tiny_model(family)))
    layer = decoder.layer(decoder.checkpoint.block("layers.0"), torch.bfloat16)
    wide = {name for name, parameter in layer.named_parameters() if parameter.dtype == torch.float32}
    assert wide == {"input_layernorm.weight", "post_attention_layernorm.weight"}


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
