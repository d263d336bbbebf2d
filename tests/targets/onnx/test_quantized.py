"""Quantized graphs carry exactly the integers of the checkpoint, and compute with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.quantized import QuantizedWeight, Scheme
from compressor.target import Artifact, Target
from targets.onnx.target import OnnxFp32, OnnxInt4, OnnxInt8

TARGETS: dict[int, Target] = {4: OnnxInt4(), 8: OnnxInt8()}
SCHEMES = [Scheme(bits, group, symmetric) for bits in (4, 8) for group in (32, 64, None) for symmetric in (True, False)]


def mismatches(target: Target, checkpoint: Checkpoint, artifact: Artifact) -> list[str]:
    expected = {name: weight for block in checkpoint.blocks() for name, weight in block.weights.items()}
    found = dict(target.read_back(artifact))
    assert found.keys() == expected.keys()
    return [name for name, weight in expected.items() if not same(target.expected(name, weight), found[name])]


def same(expected: Any, found: Any) -> bool:
    if isinstance(expected, QuantizedWeight):
        return expected.same_bits(found) and expected.scheme == found.scheme
    return found.dtype == torch.float32 and torch.equal(expected, found)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_level_0_computes_with_the_dequantized_weights(tiny_model, quantized, lowered, reference, tokens, scheme):
    checkpoint = quantized(tiny_model("qwen3"), scheme)
    target = TARGETS[scheme.bits]
    session = target.open(lowered(target, checkpoint), accuracy_level=0, threads=1)
    got = np.concatenate([logits for _, logits in session.logits(tokens)])
    with torch.no_grad():
        want = reference(checkpoint)(torch.tensor(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_shipped_level_is_close(tiny_model, quantized, lowered, reference, tokens, bits):
    checkpoint = quantized(tiny_model("llama"), Scheme(bits, 32))
    target = TARGETS[bits]
    session = target.open(lowered(target, checkpoint), threads=1)
    got = np.concatenate([logits for _, logits in session.logits(tokens)])
    with torch.no_grad():
        want = reference(checkpoint)(torch.tensor(tokens)[None]).logits[0].numpy()
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 0 < error < 0.05  # activations are rounded to int8, so neither exact nor far


@pytest.mark.parametrize(
    ("family", "scheme"),
    [*(("qwen2", scheme) for scheme in SCHEMES), ("qwen3", SCHEMES[0]), ("mistral", SCHEMES[1])],
    ids=str,
)
def test_read_back_is_bit_for_bit(tiny_model, quantized, lowered, family, scheme):
    checkpoint = quantized(tiny_model(family), scheme)
    target = TARGETS[scheme.bits]
    assert mismatches(target, checkpoint, lowered(target, checkpoint)) == []


@pytest.mark.parametrize("group", [16, 48, 96, 256])
def test_groups_that_are_multiples_of_a_block(tiny_model, quantized, lowered, reference, tokens, group):
    """48 and 96 are no block size of onnxruntime's: their scales are repeated over blocks of 16 and 32."""
    sizes = {"hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 1, "head_dim": 192}
    checkpoint = quantized(tiny_model("llama", **sizes), Scheme(4, group, symmetric=False))
    artifact = lowered(OnnxInt4(accuracy_level=0), checkpoint)
    assert mismatches(OnnxInt4(), checkpoint, artifact) == []
    assert OnnxInt4().open(artifact, threads=1).prefill(tokens[None]) == best_next(reference(checkpoint), tokens)


def test_width_that_is_no_multiple_of_a_block(tiny_model, quantized, lowered, reference, tokens):
    checkpoint = quantized(tiny_model("llama", intermediate_size=72), Scheme(4, None, symmetric=False))
    artifact = lowered(OnnxInt4(accuracy_level=0), checkpoint)
    assert mismatches(OnnxInt4(), checkpoint, artifact) == []
    assert OnnxInt4().open(artifact, threads=1).prefill(tokens[None]) == best_next(reference(checkpoint), tokens)


@pytest.mark.parametrize(
    ("skip", "overrides", "nodes"),
    [
        (("lm_head",), {}, 10),
        ((), {}, 11),
        (("lm_head", "v_proj"), {}, 12),
        (("lm_head", "q_proj", "k_proj", "v_proj"), {}, 8),
        (("lm_head",), {"k_proj": Scheme(4, 64)}, 14),
        (("lm_head", "down_proj"), {"up_proj": Scheme(4, None)}, 8),
    ],
    ids=["packed", "head too", "float v", "float attention", "k differs", "mlp mixed"],
)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_layers_that_differ(tiny_model, quantized, lowered, reference, family, skip, overrides, nodes):  # noqa: PLR0917
    tokens = np.arange(20, 44)
    checkpoint = quantized(tiny_model(family, tied=False), Scheme(4, 32), skip, overrides)
    artifact = lowered(OnnxInt4(accuracy_level=0), checkpoint)
    model = onnx.load(artifact.root / "model.onnx", load_external_data=False)
    assert sum(node.op_type == "MatMulNBits" for node in model.graph.node) == nodes
    assert mismatches(OnnxInt4(), checkpoint, artifact) == []
    assert OnnxInt4().open(artifact, threads=1).prefill(tokens[None]) == best_next(reference(checkpoint), tokens)


def test_bfloat16_checkpoint_is_carried_exactly(tiny_model, tmp_path, lowered, quantized):
    from transformers import AutoModelForCausalLM

    root = tiny_model("llama", tied=False)
    AutoModelForCausalLM.from_pretrained(root, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    checkpoint = quantized(tmp_path / "half", Scheme(4, 64))
    assert checkpoint.dtype == torch.bfloat16
    assert mismatches(OnnxInt4(), checkpoint, lowered(OnnxInt4(), checkpoint)) == []


@pytest.mark.parametrize("suffix", ["codes", "scales", "zero_points"])
@pytest.mark.parametrize("bits", [4, 8])
def test_one_flipped_bit_is_found(tiny_model, quantized, lowered, bits, suffix):
    checkpoint = quantized(tiny_model("llama"), Scheme(bits, 32, symmetric=False))
    target = TARGETS[bits]
    artifact = lowered(target, checkpoint)
    flip_bit(artifact.root, f"model.layers.1.self_attn.qkv_proj.weight.{suffix}")
    assert mismatches(target, checkpoint, artifact) == ["model.layers.1.self_attn.q_proj.weight"]


def test_a_flipped_bit_of_a_float_tensor_is_found(tiny_model, lowered):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    artifact = lowered(OnnxFp32(), checkpoint)
    flip_bit(artifact.root, "model.layers.0.input_layernorm.weight")
    assert mismatches(OnnxFp32(), checkpoint, artifact) == ["model.layers.0.input_layernorm.weight"]


def test_memory_of_weights_is_external(tiny_model, quantized, lowered):
    artifact = lowered(OnnxInt4(), quantized(tiny_model("llama", num_hidden_layers=4), Scheme(4, 64)))
    model = onnx.load(artifact.root / "model.onnx", load_external_data=False)
    assert all(tensor.external_data or tensor.ByteSize() < 200 for tensor in model.graph.initializer)
    places = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    assert all(int(entry.value) % 64 == 0 for entry in places if entry.key == "offset")


def flip_bit(root: Path, initializer: str) -> None:
    model = onnx.load(root / "model.onnx", load_external_data=False)
    place = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}[initializer]
    with (root / place["location"]).open("r+b") as file:
        file.seek(int(place["offset"]))
        byte = file.read(1)[0]
        file.seek(int(place["offset"]))
        file.write(bytes([byte ^ 1]))


def best_next(model: Callable[..., Any], tokens: np.ndarray) -> int:
    with torch.no_grad():
        return int(model(torch.tensor(tokens)[None]).logits[0, -1].argmax())
