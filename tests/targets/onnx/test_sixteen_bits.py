"""A 16-bit checkpoint: kept as it is in a float32 graph, or computed with in a float16 one."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.quantized import Scheme
from compressor.registry import make_target
from targets.onnx.session import empty_cache, run
from targets.onnx.target import OnnxFp16, OnnxFp32, OnnxInt4

EMBEDDING = "model.embed_tokens"

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2"]
BITS16 = [torch.bfloat16, torch.float16]


def types(artifact) -> dict[str, int]:
    """Types of the stored weights by name."""
    graph = onnx.load(artifact.root / "model.onnx", load_external_data=False).graph
    return {tensor.name: tensor.data_type for tensor in graph.initializer if tensor.external_data}


def edges(artifact) -> set[int]:
    """Types of the cache and the logits."""
    graph = onnx.load(artifact.root / "model.onnx", load_external_data=False).graph
    values = [*graph.input, *graph.output]
    return {value.type.tensor_type.elem_type for value in values if value.name not in ("input_ids", "attention_mask")}


# ---- 16-bit matrices in a float32 graph


@pytest.mark.parametrize("dtype", BITS16, ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_keep_their_16_bits(tiny_model, recast, lower, assert_exact, family, tied, dtype):
    checkpoint = Checkpoint.open(recast(tiny_model(family, tied), dtype))
    assert_exact(OnnxFp32(), checkpoint)
    artifact, notes = lower(OnnxFp32(), checkpoint)
    found, kept = types(artifact), {torch.bfloat16: TensorProto.BFLOAT16, torch.float16: TensorProto.FLOAT16}[dtype]
    assert {found[name] for name in found if "proj.weight" in name or "embed" in name or "lm_head" in name} == {kept}
    assert {found[name] for name in found if "norm" in name or ".bias" in name or "rotary" in name} == {
        TensorProto.FLOAT
    }
    assert edges(artifact) == {TensorProto.FLOAT}
    name = str(dtype).removeprefix("torch.")
    assert notes == [f"norms and biases cast {name} -> float32, which holds them exactly"]


@pytest.mark.parametrize("but", [{}, {"v_proj": None}, {EMBEDDING: Scheme(8, None, table=True)}], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_what_int4_leaves_float_keeps_its_16_bits(tiny_model, recast, quantize, assert_exact, tied, but):
    checkpoint = quantize(recast(tiny_model("llama", tied), torch.bfloat16), Scheme(4, 32), but)
    assert_exact(OnnxInt4(), checkpoint)


def test_rows_of_two_dtypes_in_one_matrix_are_float32(tiny_model, recast, lower, verified):
    name = "model.layers.0.self_attn.k_proj.weight"
    root = tiny_model("llama")
    key = Checkpoint.open(root).read([name])[name]
    checkpoint = Checkpoint.open(recast(root, torch.bfloat16, {name: key}))
    artifact, _ = lower(OnnxFp32(), checkpoint)
    found = types(artifact)
    assert found["model.layers.0.self_attn.qkv_proj.weight"] == TensorProto.FLOAT
    assert found["model.layers.1.self_attn.qkv_proj.weight"] == TensorProto.BFLOAT16
    assert verified(OnnxFp32(), artifact, checkpoint).mismatches == []


# ---- a float16 graph


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_float16_graph(tiny_model, lower, verified, wanted, computed, tokens, family, tied):  # noqa: PLR0917
    overrides = {"sliding_window": 7} if family == "mistral" else {}
    checkpoint, target = Checkpoint.open(tiny_model(family, tied, **overrides)), OnnxFp16()
    artifact, notes = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    assert set(types(artifact).values()) == edges(artifact) == {TensorProto.FLOAT16}
    assert notes == [f"{len(checkpoint.parameters)} unquantized tensors cast float32 -> float16"]
    got, want = computed(target, artifact, tokens), wanted(checkpoint, tokens)
    assert got.dtype == np.float32
    assert 1e-5 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.01


@pytest.mark.parametrize("dtype", BITS16, ids=str)
def test_float16_of_16_bits(tiny_model, recast, lower, verified, dtype):
    checkpoint = Checkpoint.open(recast(tiny_model("qwen2"), dtype))
    artifact, notes = lower(OnnxFp16(), checkpoint)
    assert verified(OnnxFp16(), artifact, checkpoint).mismatches == []
    assert notes == ([] if dtype == torch.float16 else ["26 unquantized tensors cast bfloat16 -> float16"])
    assert json.loads((artifact.root / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("head_dim", [16, 24])
def test_left_padding_in_float16(tiny_model, lower, wanted, head_dim):
    checkpoint = Checkpoint.open(tiny_model("llama", head_dim=head_dim))
    root = lower(OnnxFp16(), checkpoint)[0].root
    session = onnxruntime.InferenceSession(root / "model.onnx")
    rows = np.random.default_rng(1).integers(0, 256, (2, 9))
    mask = np.array([[1] * 9, [0] * 4 + [1] * 5])
    logits, cache = run(session, rows, mask, empty_cache(session, 2))
    assert logits.dtype == np.float16
    for row, pad in enumerate((0, 4)):
        np.testing.assert_allclose(logits[row, 0], wanted(checkpoint, rows[row, pad:])[-1], atol=0.05)
    logits, _ = run(session, rows[:, :1], np.concatenate([mask, [[1], [1]]], axis=1), cache)
    assert np.isfinite(logits).all()


def test_values_beyond_float16_are_refused_by_name(tiny_model, recast, lower):
    name = "model.layers.1.mlp.down_proj.weight"
    root = tiny_model("llama")
    weight = Checkpoint.open(root).read([name])[name].clone()
    weight[3, 5] = -7e4
    checkpoint = Checkpoint.open(recast(root, torch.float32, {name: weight}))
    with pytest.raises(InputError, match=rf"{name} holds -7e\+04, which float16 does not reach") as caught:
        lower(OnnxFp16(), checkpoint)
    assert caught.value.hint == "The target onnx-fp32 works."


def test_a_flipped_bit_is_found(tiny_model, lower, verified, flip_bit):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    artifact, _ = lower(OnnxFp16(), checkpoint)
    flip_bit(artifact.root, f"{EMBEDDING}.weight")
    assert verified(OnnxFp16(), artifact, checkpoint).mismatches == [f"{EMBEDDING}.weight"]


def test_fp16_takes_no_quantized_weights(tiny_model):
    target, architecture = make_target("onnx-fp16", {}), Checkpoint.open(tiny_model("llama")).architecture
    assert target.problems(architecture, {}) == []
    (problem,) = target.problems(architecture, {"lm_head": Scheme(4, 32)})
    assert problem == (
        "onnx-fp16 takes no quantized weights, and lm_head has int4; "
        "choose onnx-int4, or leave out the quantizing pass."
    )
    assert (target.baseline, target.compute) == ("onnx-fp32", torch.float16)
