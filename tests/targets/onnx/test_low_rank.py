"""Factors beside quantized linears and in the place of linears: in the graph, and read back."""

import onnx
import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import RunError
from compressor.low_rank import LowRank
from compressor.quantized import QuantizedWeight, Scheme
from targets.onnx.target import OnnxFp16, OnnxFp32, OnnxInt4, OnnxInt8


@pytest.fixture
def with_factors(tmp_path):
    """`with_factors(checkpoint, skip=(), dtype=...)`: every inner linear's quantized weight with random factors beside
    it, or such factors in the place of its float weight; ranks differ.
    """

    def make(checkpoint, skip=(), dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        inner = checkpoint.architecture.linears().keys() - {"lm_head"}

        def edit(block):
            changed = {}
            for name, weight in block.weights.items():
                layer = name.removesuffix(".weight")
                if layer in inner and layer != name and not layer.endswith(tuple(skip)):
                    rows, columns = checkpoint.architecture.linears()[layer]
                    rank = 3 + len(changed)
                    down, up = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank)
                    factors = LowRank(0.1 * down, 0.1 * up).to(dtype)
                    changed[name] = weight.beside(factors) if isinstance(weight, QuantizedWeight) else factors
            return block.with_weights(changed)

        return checkpoint.rewrite(tmp_path / "with-factors", edit, {})

    return make


def operators(model):
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt2", "gemma2"])
def test_factors_beside_int4(tiny_model, quantize, with_factors, assert_exact, family):
    plain = quantize(tiny_model(family), Scheme(4, 32))
    checkpoint = with_factors(plain)
    assert checkpoint.schemes != plain.schemes
    assert_exact(OnnxInt4(accuracy_level=0), checkpoint)


def test_factors_beside_int8_in_sixteen_bits(tiny_model, quantize, with_factors, lower, verified):
    checkpoint = with_factors(quantize(tiny_model("qwen2"), Scheme(8, None)), dtype=torch.bfloat16)
    artifact, _ = lower(OnnxInt8(), checkpoint)
    assert verified(OnnxInt8(), artifact, checkpoint).mismatches == []
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(artifact.root / "model.onnx").graph.initializer}
    assert stored["model.layers.0.mlp.up_proj.low_rank_up"] == onnx.TensorProto.BFLOAT16


def test_q_k_and_v_are_packed_where_all_or_none_have_factors(tiny_model, quantize, with_factors, assert_exact):
    plain = quantize(tiny_model("llama"), Scheme(4, 32))
    bare = operators(assert_exact(OnnxInt4(accuracy_level=0), plain))
    packed = operators(assert_exact(OnnxInt4(accuracy_level=0), with_factors(plain)))
    assert packed.count("MatMulNBits") == bare.count("MatMulNBits")
    assert bare.count("FusedMatMul") == 1  # the head: a graph without factors is what it was


def test_some_of_q_k_and_v_with_factors(tiny_model, quantize, with_factors, assert_exact):
    assert_exact(OnnxInt4(accuracy_level=0), with_factors(quantize(tiny_model("llama"), Scheme(4, 32)), ("v_proj",)))


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "qwen2"])
def test_factors_in_the_place_of_linears(tiny_model, with_factors, assert_exact, family):
    assert_exact(OnnxFp32(), with_factors(Checkpoint.open(tiny_model(family)), ("down_proj",)))


def test_factors_in_the_place_of_linears_in_float16(tiny_model, with_factors, lower, verified):
    checkpoint = with_factors(Checkpoint.open(tiny_model("llama")))
    assert verified(OnnxFp16(), lower(OnnxFp16(), checkpoint)[0], checkpoint).mismatches == []


@pytest.mark.parametrize("part", ["low_rank_down", "low_rank_up"])
def test_a_changed_bit_of_a_factor_is_found(tiny_model, quantize, with_factors, lower, verified, flip_bit, part):
    checkpoint = with_factors(quantize(tiny_model("llama"), Scheme(4, 32)))
    artifact, _ = lower(OnnxInt4(), checkpoint)
    flip_bit(artifact.root, f"model.layers.1.self_attn.k_proj.{part}")
    found = verified(OnnxInt4(), artifact, checkpoint).mismatches
    assert found == ["model.layers.1.self_attn.k_proj.weight"]


@pytest.mark.parametrize("fault", ["another sum", "other features", "another order"])
def test_factors_that_the_graph_uses_otherwise_are_refused(tiny_model, quantize, with_factors, lower, verified, fault):
    checkpoint = with_factors(quantize(tiny_model("llama"), Scheme(4, 32)))
    artifact, _ = lower(OnnxInt4(), checkpoint)
    path = artifact.root / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    nodes = {node.name: node for node in model.graph.node}
    prefix = "model.layers.1.self_attn."
    if fault == "another sum":
        nodes[f"{prefix}o_proj/sum"].input[0] = "model.layers.0.self_attn.o_proj"
    elif fault == "other features":
        nodes[f"{prefix}o_proj/down"].input[0] = "model.layers.1.input_layernorm"
    else:
        joined = nodes[f"{prefix}qkv_proj/factors"].input
        joined[1], joined[2] = joined[2], joined[1]
    onnx.save(model, path)
    with pytest.raises(RunError, match="does not add the factors of"):
        verified(OnnxInt4(), artifact, checkpoint)
