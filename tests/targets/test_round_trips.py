"""Artifacts that are model folders or files come in again, and each target that can hold them gets the same bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import pytest
import torch

from compressor.errors import InputError
from compressor.plan import check_plan
from compressor.quantized import Activations, QuantizedWeight, Scheme
from compressor.registry import TARGETS, make_target, names
from compressor.source import open_model
from compressor.verify import same_bits, verify
from targets.tensorrt_rtx.description import PACKAGE

NVFP4 = Scheme(4, 16, type="float", activations=Activations(4, "float", dynamic=False))
STATIC, DYNAMIC = Activations(8, "float", dynamic=False), Activations(8, "float")


@dataclass(frozen=True)
class Case:
    """A scheme, and every target that holds it, by who gives it back as a readable model and who does not."""

    scheme: Scheme
    readable: tuple[str, ...]
    others: tuple[str, ...] = ()
    but: tuple[tuple[str, Scheme], ...] = ()
    kv_cache: bool = False


QDQ4, QDQ8 = ("onnx-qdq-int4", "trtrtx-int4"), ("onnx-qdq-int8", "trtrtx-int8")
NF4 = Scheme(4, 64, type="nf4")
CASES = {
    "int4 g64": Case(Scheme(4, 64), ("awq", "gguf-q4_0", "gptq", "hf", "trt-int4", "vllm-int4"), ("onnx-int4", *QDQ4)),
    "int4 g32": Case(Scheme(4, 32), ("awq", "gguf-q4_0", "gptq", "hf", "vllm-int4"), ("onnx-int4", *QDQ4)),
    "int4 channel": Case(Scheme(4, None), ("gguf-q4_0", "gptq", "hf", "vllm-int4"), ("onnx-int4", *QDQ4)),
    "int4 g32 asymmetric": Case(Scheme(4, 32, False), ("awq", "gptq", "hf", "vllm-int4"), ("onnx-int4",)),
    "int8 g32": Case(Scheme(8, 32), ("gguf-q8_0", "gptq", "hf"), ("onnx-int8", "onnx-qdq-int8")),
    "int8 channel": Case(Scheme(8, None), ("gguf-q8_0", "gptq", "hf", "trt-int8"), ("onnx-int8", *QDQ8)),
    "int8 asymmetric": Case(Scheme(8, 64, False), ("gptq", "hf"), ("onnx-int8",)),
    "int8 W8A8": Case(Scheme(8, None, activations=Activations(8)), ("hf", "vllm-int8")),
    "int8 W8A8 static": Case(Scheme(8, None, activations=Activations(8, dynamic=False)), ("hf", "vllm-int8"), QDQ8),
    "fp8 channel": Case(Scheme(8, None, type="float", activations=DYNAMIC), ("hf", "trt-fp8", "vllm-fp8")),
    "fp8 tensor, cache": Case(
        Scheme(8, None, type="float", activations=STATIC, per_tensor=True), ("hf", "trt-fp8", "vllm-fp8"), (), (), True
    ),
    "nvfp4": Case(NVFP4, ("hf", "trt-nvfp4", "vllm-nvfp4")),
    "nvfp4 weights": Case(replace(NVFP4, activations=None), ("hf", "trt-nvfp4", "vllm-nvfp4")),
    "nf4": Case(NF4, ("hf", "hf-nf4")),
    "nf4 double": Case(replace(NF4, double_quant=True), ("hf", "hf-nf4")),
    "int4 beside int8": Case(
        Scheme(4, 64), ("gguf-q4_0", "hf", "trt-int4"), ("onnx-int4", *QDQ4), (("o_proj", Scheme(8, None)),)
    ),
    "int8 embedding": Case(
        Scheme(8, 32),
        ("gguf-q8_0", "hf"),
        ("onnx-int8",),
        (("model.embed_tokens", Scheme(8, None, table=True)),),
    ),
    "int4 embedding": Case(
        Scheme(4, 32),
        ("gguf-q4_0", "hf"),
        ("onnx-int4",),
        (("model.embed_tokens", Scheme(4, 32, table=True)),),
    ),
    "int4 beside fp8": Case(
        Scheme(4, 64), ("hf", "trt-int4"), (), (("o_proj", Scheme(8, None, type="float", activations=DYNAMIC)),)
    ),
}
ROUTES = [
    pytest.param(case, source, id=f"{name} from {source}") for name, case in CASES.items() for source in case.readable
]


@pytest.fixture
def step(tiny_model, recast, made, quantize):
    """A step folder in bfloat16, as a run leaves it."""

    def make(case):
        if "bfloat16" not in made:
            made["bfloat16"] = recast(tiny_model("llama", tied=False), torch.bfloat16)
        return quantize(made["bfloat16"], case.scheme, but=dict(case.but), kv_cache=case.kv_cache)

    return make


def accepts(target, checkpoint):
    try:
        check_plan(checkpoint, [], target)
    except InputError:
        return False
    return True


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_table_is_what_the_targets_say(step, case):
    """A target that learns a scheme, or loses one, changes the table above."""
    checkpoint = step(case)
    takers = {name for name in names(TARGETS) if name in KNOWN and accepts(make_target(name, {}), checkpoint)}
    assert takers == {*case.readable, *case.others} & KNOWN


# They take seconds to build, and are built once a case where their builder is.
SHORT = {"sm": [89], "max_length": 64}
ENGINES = {"trtrtx-int4": SHORT, "trtrtx-int8": SHORT}
KNOWN = {
    *(ENGINES if find_spec(PACKAGE) else ()),
    *("hf-nf4", "onnx-qdq-int4", "onnx-qdq-int8"),
    *("awq", "gguf-q4_0", "gguf-q8_0", "gptq", "hf", "onnx-fp16", "onnx-fp32", "onnx-int4", "onnx-int8"),
    *("trt-fp8", "trt-int4", "trt-int8", "trt-nvfp4", "vllm-fp8", "vllm-int4", "vllm-int8", "vllm-nvfp4"),
}


@pytest.mark.parametrize(("case", "source"), ROUTES)
def test_the_same_bits_wherever_it_goes(step, lower, tmp_path, case, source):
    original = step(case)
    artifact, _ = lower(make_target(source, {}), original)
    path = artifact.root / "model.gguf" if source.startswith("gguf") else artifact.root
    taken = open_model(str(path), tmp_path / "import", progress=lambda *_: None).checkpoint
    assert taken.kv_cache == original.kv_cache
    assert taken.schemes == original.schemes
    assert_same(dict(original.read(list(original.parameters))), dict(taken.read(list(taken.parameters))))
    for name in (*case.readable, *case.others):
        if name in ENGINES and (name not in KNOWN or source != "hf"):
            continue
        target = make_target(name, ENGINES.get(name, {}))
        assert accepts(target, taken), name
        again, _ = lower(target, taken)
        verdict = verify(target, again, taken, lambda done, total: None)
        assert (name, verdict.mismatches) == (name, [])


def assert_same(expected, found):
    """Integers, scales and zero points are the same, and so are all floats, in the model's own dtype."""
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert same_bits(weight, found[name]), name
    quantized = {name for name, weight in found.items() if isinstance(weight, QuantizedWeight)}
    assert len(quantized) >= 14
