"""The graph of standard operators computes what transformers computes, and holds the weights bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.external_data_helper import ExternalDataInfo

from compressor.decoder import full_model
from compressor.errors import RunError
from compressor.plan import check_plan
from compressor.quantized import Activations, Scheme
from targets.onnx.qdq.target import OnnxQdqInt4, OnnxQdqInt8
from targets.onnx.session import empty_cache, run

FLOAT32 = {"dtype": "float32"}
INT4, INT8 = OnnxQdqInt4(**FLOAT32), OnnxQdqInt8(**FLOAT32)
CHANNEL = Scheme(8, None)
STATIC = replace(CHANNEL, activations=Activations(dynamic=False))
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 8, "num_key_value_heads": 4}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    ("mistral", {"sliding_window": 7}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    ("qwen3", {"attention_bias": True}),
    ("phi3", {}),
    ("gpt2", {}),
    ("gemma2", {}),
    ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e5},
                                         "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}}),
]  # fmt: skip


@pytest.fixture
def exact(lower, verified, wanted, computed, tokens):
    """`exact(target, checkpoint, atol)`: the artifact has the checkpoint's bits and logits; returns it."""

    def check(target, checkpoint, atol=2e-4):
        artifact, _ = lower(target, checkpoint)
        assert verified(target, artifact, checkpoint).mismatches == []
        assert target.broken_rules(artifact) == []
        np.testing.assert_allclose(computed(target, artifact, tokens), wanted(checkpoint, tokens), atol=atol)
        return artifact

    return check


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("family", "overrides"), FAMILIES)
def test_families(tiny_model, quantize, exact, family, overrides, tied):
    artifact = exact(INT4, quantize(tiny_model(family, tied, **overrides), Scheme(4, 32)))
    model = onnx.load(artifact.root / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {""}


@pytest.mark.parametrize(
    ("target", "scheme"),
    [
        *((INT4, Scheme(4, group)) for group in (16, 32, 64, None)),
        *((INT8, Scheme(8, group)) for group in (32, None)),
    ],
    ids=str,
)
def test_schemes(tiny_model, quantize, exact, target, scheme):
    exact(target, quantize(tiny_model("llama"), scheme))


def test_groups_that_are_two_blocks(tiny_model, quantize, exact):
    checkpoint = quantize(tiny_model("llama", intermediate_size=256), Scheme(4, 64), {"down_proj": Scheme(4, 256)})
    graph = onnx.load(exact(INT4, checkpoint).root / "model.onnx", load_external_data=False).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert shapes["model.layers.0.mlp.down_proj.weight.scales"] == [2, 64]


def test_some_layers_int8_or_float_and_a_quantized_head(tiny_model, quantize, exact):
    but = {"down_proj": CHANNEL, "o_proj": None, "lm_head": Scheme(4, 32)}
    exact(INT4, quantize(tiny_model("llama", tied=False), Scheme(4, 32), but))


def test_static_activations(tiny_model, quantize, lower, verified, computed, logits_of):
    """Rounded as compressed-tensors rounds them in transformers."""
    checkpoint = quantize(tiny_model("llama"), STATIC)
    artifact, _ = lower(INT8, checkpoint)
    assert verified(INT8, artifact, checkpoint).mismatches == []
    got = computed(INT8, artifact, np.arange(0, 250, 10))
    np.testing.assert_allclose(got, logits_of(checkpoint.root)[0].numpy(), atol=0.02)
    assert INT8.tolerance(artifact).logits == 0.5
    options = json.loads((artifact.root / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert options["session.x64quantprecision"] == "1"


@pytest.mark.parametrize("endings", [("o_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "up_proj")], ids=str)
@pytest.mark.parametrize(("target", "scheme"), [(INT4, Scheme(4, 32)), (INT8, CHANNEL)], ids=str)
def test_inputs_are_multiplied_by_their_factors(tiny_model, quantize, multiplied, exact, target, scheme, endings):
    checkpoint = multiplied(quantize(tiny_model("llama"), scheme), *endings)
    check_plan(checkpoint, [], target)
    exact(target, checkpoint)


@torch.no_grad()
def test_inputs_are_multiplied_before_they_are_rounded(
    tiny_model, quantize, multiplied, lower, verified, computed, tokens
):
    checkpoint = multiplied(quantize(tiny_model("llama"), STATIC), "o_proj", "up_proj")
    artifact, _ = lower(INT8, checkpoint)
    assert verified(INT8, artifact, checkpoint).mismatches == []
    meant = full_model(checkpoint, torch.float32, rounds_inputs=True)(torch.tensor(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(computed(INT8, artifact, tokens), meant, atol=0.02)


def test_features_that_are_rounded_by_the_scale_of_others(tiny_model, quantize, lower):
    artifact, _ = lower(INT8, quantize(tiny_model("llama"), STATIC))
    model = onnx.load(artifact.root / "model.onnx", load_external_data=False)
    first, second, *_ = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    first.input[1] = second.input[1]
    onnx.save(model, artifact.root / "model.onnx")
    with pytest.raises(RunError, match="was not rounded by"):
        list(INT8.read_back(artifact))


def test_a_zero_point_that_is_not_0_is_no_weight_of_ours(tiny_model, quantize, lower):
    artifact, _ = lower(INT8, quantize(tiny_model("llama"), STATIC))
    graph = onnx.load(artifact.root / "model.onnx", load_external_data=False).graph
    place = ExternalDataInfo(next(tensor for tensor in graph.initializer if tensor.name.endswith(".zeros")))
    with (artifact.root / place.location).open("r+b") as file:
        file.seek(place.offset)
        file.write(b"\x01")
    with pytest.raises(RunError, match="zero points other than 0"):
        list(INT8.read_back(artifact))


@pytest.mark.parametrize("scheme", [Scheme(4, 32), CHANNEL], ids=str)
@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"])
def test_float16(tiny_model, quantize, exact, recast, family, scheme):
    """Everything but integers and norms' means is float16; the weights are checked bit for bit."""
    target = OnnxQdqInt4() if scheme.bits == 4 else OnnxQdqInt8()
    artifact = exact(target, quantize(recast(tiny_model(family), torch.float16), scheme), atol=0.1)
    graph = onnx.load(artifact.root / "model.onnx", load_external_data=False).graph
    kinds = {tensor.data_type for tensor in graph.initializer if tensor.external_data}
    assert kinds == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT4 if scheme.bits == 4 else onnx.TensorProto.INT8}
    assert target.tolerance(artifact).logits == 0.1


@pytest.mark.parametrize("behind", [False, True], ids=["in front", "behind"])
@pytest.mark.parametrize(("family", "overrides"), [FAMILIES[0], *FAMILIES[4:]])
def test_prefill_and_decode_with_padding(tiny_model, quantize, lower, reference, family, overrides, behind):
    """Two rows of unequal length, through the cache: each as if it were alone."""
    checkpoint = quantize(tiny_model(family, **overrides), Scheme(4, 32))
    artifact, _ = lower(INT4, checkpoint)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(artifact.root / "model.onnx", options)
    model, rows = reference(checkpoint), np.random.default_rng(1).integers(0, 256, (2, 12))
    prompts = (9, 6)
    mask = np.array([[1] * n + [0] * (9 - n) for n in prompts])
    if not behind:
        mask = mask[:, ::-1].copy()
        rows[1, :9] = np.roll(rows[1, :9], 3)
    got, cache = run(session, rows[:, :9], mask, empty_cache(session, 2))
    for step in range(3):
        for row in range(2):
            seen = rows[row, : mask.shape[1]][mask[row] == 1]
            with torch.no_grad():
                want = model(torch.tensor(seen)[None]).logits[0, -1]
            np.testing.assert_allclose(got[row, 0], want.numpy(), atol=2e-4)
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], axis=1)
        got, cache = run(session, rows[:, 9 + step : 10 + step], mask, cache)
