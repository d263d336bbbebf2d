"""What no weight-only integer target holds is refused by each of them, with what works instead."""

from __future__ import annotations

import pytest

from compressor.checkpoint import Checkpoint
from compressor.quantized import Activations, Scheme
from targets.awq import AwqFolder
from targets.gguf import GgufQ4, GgufQ8
from targets.gptq import GptqFolder
from targets.onnx.target import OnnxFp16, OnnxFp32, OnnxInt4, OnnxInt8
from targets.tensorrt_llm import TrtInt4
from targets.vllm import VllmInt4

ONNX = [OnnxFp32(), OnnxFp16(), OnnxInt4(), OnnxInt8()]
TARGETS = [*ONNX, TrtInt4(), VllmInt4(), GptqFolder(), AwqFolder(), GgufQ4(), GgufQ8()]
FP8 = Scheme(8, None, type="float")
FOREIGN = [
    Scheme(4, 64, activations=Activations()),
    Scheme(8, None, activations=Activations()),
    Scheme(8, None, activations=Activations(dynamic=False)),
    FP8,
    Scheme(8, None, type="float", activations=Activations(type="float")),
    Scheme(4, 64, type="nf4"),
]


def problems(target, root, scheme):
    architecture = Checkpoint.open(root).architecture
    schemes = {name: scheme for name in architecture.linears() if name != "lm_head"}
    return " ".join(target.problems(architecture, schemes))


@pytest.mark.parametrize("scheme", FOREIGN, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_other_kinds_are_refused_with_what_works(tiny_model, target, scheme):
    text = problems(target, tiny_model("llama"), scheme)
    assert "13 more" in text
    assert scheme.kind in text or str(scheme.activations) in text
    assert any(remedy in text for remedy in ("works", "choose hf", "choose onnx-int"))


def test_sentences(tiny_model):
    root = tiny_model("llama")
    assert "fp8 is not what this target holds; gptq:bits=4 or the target hf works" in problems(VllmInt4(), root, FP8)
    rounded = "int8 activations per token are not what this target computes with; activations=none works"
    assert rounded in problems(VllmInt4(), root, FOREIGN[0])
    mixed = "onnx-int8 takes int8 weights, and model.layers.0.self_attn.q_proj and 13 more have int8 and int8 activat"
    assert mixed in problems(OnnxInt8(), root, FOREIGN[1])


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_none_of_them_says_that_it_holds_cache_scales(target):
    assert not target.holds_cache_scales
