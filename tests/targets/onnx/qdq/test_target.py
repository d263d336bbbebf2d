"""What the targets of standard ONNX refuse, and what damage they find."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.quantized import Activations, Scheme
from targets.onnx.qdq.target import OnnxQdqInt4, OnnxQdqInt8

INT4, INT8 = OnnxQdqInt4(), OnnxQdqInt8()
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture
def architecture(tiny_model):
    return Checkpoint.open(tiny_model("llama")).architecture


@pytest.mark.parametrize(
    ("target", "scheme"),
    [
        *((INT4, Scheme(4, group)) for group in (None, 16, 32, 64, 128)),
        *((INT8, Scheme(8, group)) for group in (None, 32)),
        (INT8, Scheme(8, None, activations=Activations(dynamic=False))),
    ],
    ids=str,
)
def test_taken(architecture, target, scheme):
    assert target.problems(architecture, {DOWN: scheme}) == []


@pytest.mark.parametrize(
    ("target", "scheme", "problem"),
    [
        (
            INT4,
            Scheme(4, 32, symmetric=False),
            "TensorRT's DequantizeLinear has no zero points; symmetric=true works, or the target onnx-int4",
        ),
        (INT4, Scheme(4, 24), "group 24 is no multiple of 16; group_size=32, 64 or 128 works"),
        (
            INT4,
            Scheme(4, 32, activations=Activations(dynamic=False)),
            "static int8 activations are not multiplied with int4 weights; activations=none works",
        ),
        (
            INT8,
            Scheme(8, None, activations=Activations()),
            "QuantizeLinear has one scale for all tokens; activations=static works, or gptq:bits=8,group_size=channel",
        ),
        (
            INT8,
            Scheme(8, 32, activations=Activations(dynamic=False)),
            "int8 products have no groups; group_size=channel works",
        ),
        (
            INT8,
            Scheme(4, 32),
            "int4 is not what this target holds; gptq:bits=8,group_size=channel or the target onnx-qdq-int4 works",
        ),
        (
            INT4,
            Scheme(8, None, type="float"),
            "fp8 is not what this target holds; gptq:bits=4 or the target hf works",
        ),
    ],
    ids=str,
)
def test_refused(architecture, target, scheme, problem):
    assert target.problems(architecture, {DOWN: scheme}) == [f"{DOWN}: {problem}."]


def test_a_width_that_no_block_divides(architecture):
    odd = replace(architecture, intermediate_size=120)
    assert INT4.problems(odd, {DOWN: Scheme(4, None)}) == [
        f"{DOWN}: the input width 120 is no multiple of 16; group_size=32, 64 or 128 works."
    ]


def test_int8_alone_is_another_target(architecture):
    assert INT4.problems(architecture, {DOWN: Scheme(8, None)}) == [
        "No layer is int4; the target onnx-qdq-int8 takes these, or quantize with gptq:bits=4."
    ]
    assert INT4.problems(architecture, {}) == ["No layer is quantized; add a quantizing pass such as gptq:bits=4."]


def test_models_that_the_graph_does_not_express(architecture):
    odd = replace(architecture, activation="quick_gelu", rope_types=("dynamic",))
    assert len(INT4.problems(odd, {DOWN: Scheme(4, 32)})) == 2


def test_scales_beyond_float16_are_refused(tiny_model, quantize, lower, verified):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32), shared_scales=False)
    with pytest.raises(InputError, match="not exact in float16"):
        lower(INT4, checkpoint)
    wide = OnnxQdqInt4(dtype="float32")
    artifact, _ = lower(wide, checkpoint)
    assert verified(wide, artifact, checkpoint).mismatches == []


def test_weights_beyond_float16_are_refused(tiny_model, quantize, lower, recast):
    norm = {"model.norm.weight": torch.full((64,), 1e5)}
    with pytest.raises(InputError, match=r"model.norm.weight holds 1e\+05, which float16 does not reach"):
        lower(INT4, quantize(recast(tiny_model("llama"), torch.float32, norm), Scheme(4, 32)))


def test_factors_of_inputs_beyond_float16_are_refused(tiny_model, quantize, multiplied):
    checkpoint = multiplied(quantize(tiny_model("llama"), Scheme(4, 32)), "down_proj", times=1 / 3)
    (problem,) = INT4.value_problems(checkpoint, [])
    assert "factors of the inputs of model.layers.0.mlp.down_proj are not exact in float16" in problem
    assert problem.endswith("dtype=float32 works.")
    assert list(OnnxQdqInt4(dtype="float32").value_problems(checkpoint, [])) == []


@pytest.mark.parametrize("part", ["codes", "scales", "input_factors"])
def test_a_changed_bit_is_found(tiny_model, quantize, multiplied, lower, verified, flip_bit, part):
    checkpoint = multiplied(quantize(tiny_model("llama"), Scheme(4, 32)), "down_proj")
    artifact, _ = lower(INT4, checkpoint)
    flip_bit(artifact.root, f"{DOWN}.weight.{part}")
    assert verified(INT4, artifact, checkpoint).mismatches == [f"{DOWN}.weight"]


def test_a_file_that_ends_early_is_found(tiny_model, quantize, lower, verified):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32))
    artifact, _ = lower(INT4, checkpoint)
    data = artifact.root / "model.onnx.data"
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    assert INT4.broken_rules(artifact)
    with pytest.raises(InputError, match="ends before tensor"):
        verified(INT4, artifact, checkpoint)
