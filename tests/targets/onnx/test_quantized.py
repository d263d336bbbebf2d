"""Quantized graphs carry exactly the integers of the checkpoint, and compute with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.plan import check_plan
from compressor.quantized import Scheme
from compressor.target import Target
from targets.onnx.plan import block_size
from targets.onnx.target import OnnxFp32, OnnxInt4, OnnxInt8

TARGETS: dict[int, Target] = {4: OnnxInt4(), 8: OnnxInt8()}
SCHEMES = [Scheme(bits, group, symmetric) for bits in (4, 8) for group in (32, 64, None) for symmetric in (True, False)]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_level_0_computes_with_the_dequantized_weights(tiny_model, quantize, lower, wanted, computed, tokens, scheme):
    checkpoint, target = quantize(tiny_model("qwen3"), scheme), TARGETS[scheme.bits]
    got = computed(target, lower(target, checkpoint)[0], tokens, accuracy_level=0)
    np.testing.assert_allclose(got, wanted(checkpoint, tokens), atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_shipped_level_is_close(tiny_model, quantize, lower, wanted, computed, tokens, bits):
    checkpoint, target = quantize(tiny_model("llama"), Scheme(bits, 32)), TARGETS[bits]
    got, want = computed(target, lower(target, checkpoint)[0], tokens), wanted(checkpoint, tokens)
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 1e-4 < error < 0.05  # activations are rounded to int8, so neither exact nor far


@pytest.mark.parametrize(
    ("family", "scheme"),
    [*(("qwen2", scheme) for scheme in SCHEMES), ("qwen3", SCHEMES[0]), ("mistral", SCHEMES[1])],
    ids=str,
)
def test_read_back_is_bit_for_bit(tiny_model, quantize, lower, verified, family, scheme):
    checkpoint, target = quantize(tiny_model(family), scheme), TARGETS[scheme.bits]
    assert verified(target, lower(target, checkpoint)[0], checkpoint).mismatches == []


@pytest.mark.parametrize("endings", [("o_proj", "down_proj"), ("q_proj", "k_proj", "v_proj", "up_proj")], ids=str)
@pytest.mark.parametrize("scheme", [Scheme(4, 32), Scheme(8, None, symmetric=False)], ids=str)
def test_inputs_are_multiplied_by_their_factors(tiny_model, quantize, multiplied, assert_exact, scheme, endings):
    checkpoint = multiplied(quantize(tiny_model("llama"), scheme), *endings)
    target = replace(TARGETS[scheme.bits], **({"accuracy_level": 0} if scheme.bits == 4 else {}))
    check_plan(checkpoint, [], target)
    assert_exact(target, checkpoint)


def test_a_changed_factor_is_found(tiny_model, quantize, multiplied, lower, verified):
    checkpoint = multiplied(quantize(tiny_model("llama"), Scheme(4, 32)), "down_proj")
    artifact, _ = lower(OnnxInt4(), checkpoint)
    name = "model.layers.1.mlp.down_proj.input_factors"
    place = next(one for one in OnnxInt4().stored_tensors(artifact) if one.name == name)
    content = bytearray((artifact.root / place.file).read_bytes())
    content[place.end - 1] ^= 1
    (artifact.root / place.file).write_bytes(content)
    assert verified(OnnxInt4(), artifact, checkpoint).mismatches == ["model.layers.1.mlp.down_proj.weight"]


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "phi3", "gpt2"])
def test_other_families_are_exact(tiny_model, quantize, assert_exact, family, symmetric):
    assert_exact(OnnxInt4(accuracy_level=0), quantize(tiny_model(family, not symmetric), Scheme(4, 32, symmetric)))


@pytest.mark.parametrize("group", [16, 48, 96, 256])
def test_groups_that_are_multiples_of_a_block(tiny_model, quantize, assert_exact, group):
    """48 and 96 are no block size of onnxruntime's: their scales are repeated over blocks of 16 and 32."""
    sizes = {"hidden_size": 768, "intermediate_size": 768, "num_hidden_layers": 1, "head_dim": 192}
    checkpoint = quantize(tiny_model("llama", **sizes), Scheme(4, group, symmetric=False))
    assert_exact(OnnxInt4(accuracy_level=0), checkpoint)


def test_width_that_is_no_multiple_of_a_block(tiny_model, quantize, assert_exact):
    checkpoint = quantize(tiny_model("llama", intermediate_size=72), Scheme(4, None, symmetric=False))
    assert_exact(OnnxInt4(accuracy_level=0), checkpoint)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_a_channel_is_in_large_blocks_and_padded(tiny_model, quantize, lower, verified, bits):
    sizes = {"hidden_size": 576, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 64}
    shape = sizes | {"num_attention_heads": 9, "num_key_value_heads": 3}
    checkpoint = quantize(tiny_model("llama", **shape), Scheme(bits, None, symmetric=False))
    artifact, _ = lower(TARGETS[bits], checkpoint)
    assert verified(TARGETS[bits], artifact, checkpoint).mismatches == []
    graph = onnx.load(artifact.root / "model.onnx", load_external_data=False).graph
    values = [{one.name: one.i for one in node.attribute} for node in graph.node if node.op_type == "MatMulNBits"]
    assert {(one["K"], one["block_size"]) for one in values} == {(576, 128), (512, 256)}


@pytest.mark.parametrize(
    ("columns", "padding", "block"),
    [(576, 1 / 8, 128), (576, 0, 64), (1536, 1 / 8, 256), (72, 1 / 8, 16), (4096, 0, 256), (8, 0, 16)],
)
def test_blocks_of_one_scale_a_channel(columns, padding, block):
    assert block_size(Scheme(4, None), columns, padding) == block


@pytest.mark.parametrize(
    ("but", "nodes"),
    [
        ({}, 10),
        ({"v_proj": None}, 12),
        ({"q_proj": None, "k_proj": None, "v_proj": None}, 8),
        ({"k_proj": Scheme(4, 64)}, 14),
        ({"up_proj": Scheme(4, None, symmetric=False), "down_proj": None}, 8),
    ],
    ids=["packed", "float v", "float attention", "k differs", "mlp mixed"],
)
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_layers_that_differ(tiny_model, quantize, assert_exact, family, but, nodes):
    checkpoint = quantize(tiny_model(family, tied=False), Scheme(4, 32), but)
    model = assert_exact(OnnxInt4(accuracy_level=0), checkpoint)
    assert sum(node.op_type == "MatMulNBits" for node in model.graph.node) == nodes


@pytest.mark.parametrize("symmetric", [True, False])
def test_int8_layers_beside_int4_ones(  # noqa: PLR0917
    tiny_model, quantize, lower, assert_exact, wanted, computed, tokens, symmetric
):
    """Integers, scales and logits at level 0 are the checkpoint's; what ships is close."""
    but = {
        "v_proj": Scheme(8, None, symmetric),
        "o_proj": Scheme(4, None, symmetric),
        "up_proj": Scheme(8, 64, symmetric),
    }
    checkpoint = quantize(tiny_model("qwen2"), Scheme(4, 32, symmetric), but)
    assert_exact(OnnxInt4(), checkpoint)
    artifact, notes = lower(OnnxInt4(), checkpoint)
    assert notes == []
    shipped, want = computed(OnnxInt4(), artifact, tokens), wanted(checkpoint, tokens)
    assert 1e-4 < np.linalg.norm(shipped - want) / np.linalg.norm(want) < 0.05


def test_int8_layers_stay_at_the_fast_level_and_the_ledger_says_so(tiny_model, quantize, lower):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32), {"down_proj": Scheme(8, None)})
    artifact, notes = lower(OnnxInt4(accuracy_level=0), checkpoint)
    assert notes == ["2 int8 linears compute at accuracy level 4: level 0 is 20 times slower there"]
    nodes = onnx.load(artifact.root / "model.onnx", load_external_data=False).graph.node
    levels = [{a.name: a.i for a in node.attribute} for node in nodes if node.op_type == "MatMulNBits"]
    assert {(values["bits"], values["accuracy_level"]) for values in levels} == {(4, 0), (8, 4)}


@pytest.mark.parametrize("suffix", ["codes", "scales", "zero_points"])
@pytest.mark.parametrize("group", [32, None])
@pytest.mark.parametrize("bits", [4, 8])
def test_one_flipped_bit_is_found(  # noqa: PLR0917
    tiny_model, quantize, lower, verified, flip_bit, bits, group, suffix
):
    checkpoint, target = quantize(tiny_model("llama"), Scheme(bits, group, symmetric=False)), TARGETS[bits]
    artifact, _ = lower(target, checkpoint)
    flip_bit(artifact.root, f"model.layers.1.self_attn.qkv_proj.weight.{suffix}")
    assert "model.layers.1.self_attn.q_proj.weight" in verified(target, artifact, checkpoint).mismatches


def test_a_flipped_bit_of_a_float_tensor_is_found(tiny_model, lower, verified, flip_bit):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    artifact, _ = lower(OnnxFp32(), checkpoint)
    flip_bit(artifact.root, "model.layers.0.input_layernorm.weight")
    assert verified(OnnxFp32(), artifact, checkpoint).mismatches == ["model.layers.0.input_layernorm.weight"]


def test_a_truncated_data_file_is_one_sentence(tiny_model, lower, verified):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    artifact, _ = lower(OnnxFp32(), checkpoint)
    with (artifact.root / "model.onnx.data").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(InputError, match=r"model\.onnx\.data ends before tensor"):
        verified(OnnxFp32(), artifact, checkpoint)


def test_weights_are_external_and_aligned(tiny_model, quantize, lower):
    artifact, _ = lower(OnnxInt4(), quantize(tiny_model("llama", num_hidden_layers=4), Scheme(4, 64)))
    model = onnx.load(artifact.root / "model.onnx", load_external_data=False)
    assert all(tensor.external_data or tensor.ByteSize() < 200 for tensor in model.graph.initializer)
    places = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    assert all(int(entry.value) % 64 == 0 for entry in places if entry.key == "offset")
