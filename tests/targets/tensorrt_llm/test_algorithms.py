"""int8, fp8, mixed precision and cache scales for TensorRT-LLM: the folders, their read-back, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.plan import check_plan
from compressor.quantized import FP8 as E4M3
from compressor.quantized import Activations, QuantizedWeight, Scheme
from compressor.registry import make_pass, make_target, parse_spec
from targets.tensorrt_llm import TrtFp8, TrtInt4, TrtInt8, check_loadable
from targets.tensorrt_llm.algorithms import stored_linear

INT4, INT8 = Scheme(4, 64), Scheme(8, None)
FP8 = Scheme(8, None, type="float", activations=Activations(8, "float", dynamic=False), per_tensor=True)
ROWWISE = Scheme(8, None, type="float", activations=Activations(8, "float"))
HELD = {"int8": INT8, "fp8": FP8, "fp8 a channel": ROWWISE}
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
MIXTURES = {
    "groups of 64 and 128": ({"down_proj": Scheme(4, 128)}, {"W4A16_AWQ": 14}),
    "int8 attention": (dict.fromkeys(("q_proj", "k_proj", "v_proj"), INT8), {"W4A16_AWQ": 8, "W8A16": 6}),
    "fp8 attention": (dict.fromkeys(("q_proj", "k_proj", "v_proj"), FP8), {"W4A16_AWQ": 8, "FP8": 6}),
    "everything": (
        {"0.self_attn.o_proj": INT8, "1.self_attn.o_proj": ROWWISE, "0.mlp.down_proj": FP8, "1.mlp.down_proj": None},
        {"W4A16_AWQ": 10, "W8A16": 1, "FP8": 1, "FP8_PER_CHANNEL_PER_TOKEN": 1},
    ),
}


def tensors_of(artifact):
    return load_file(artifact.root / "model.safetensors")


def target_of(scheme):
    return TrtInt8() if scheme == INT8 else TrtFp8()


def nested(artifact):
    return json.loads((artifact.root / "hf_quant_config.json").read_text())["quantization"]


def test_codes_and_scales_of_a_layer_by_hand():
    codes = torch.tensor([[-128, -1, 0, 127], [1, 2, 3, -3]], dtype=torch.int8)
    found = stored_linear("x", QuantizedWeight(codes, torch.tensor([[0.5], [2.0]]), None, INT8), torch.bfloat16)
    assert set(found) == {"x.weight", "x.weight_scale"}
    assert found["x.weight"].numpy().tobytes() == bytes([0x80, 0xFF, 0x00, 0x7F, 1, 2, 3, 0xFD])
    assert found["x.weight_scale"].numpy().tobytes() == np.array([0.5, 2], "<f4").tobytes()

    # e4m3: a sign, four bits of exponent with a bias of 7, three of mantissa.
    floats = torch.tensor([[1.0, -1.125, 448.0, 2.0**-9]]).to(E4M3)
    one = QuantizedWeight(floats, torch.tensor([[0.25]]), None, FP8, torch.tensor(0.125))
    found = stored_linear("x", one, torch.bfloat16)
    assert found["x.weight"].view(torch.uint8).tolist() == [[0b0_0111_000, 0b1_0111_001, 0b0_1111_110, 0b0_0000_001]]
    assert {name: (tensor.shape, float(tensor)) for name, tensor in found.items() if "scale" in name} == {
        "x.weight_scale": ((), 0.25),
        "x.input_scale": ((), 0.125),
    }


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", HELD)
def test_reads_back_bit_for_bit(tiny_model, quantize, lower, verified, kind, family, tied):
    target, checkpoint = target_of(HELD[kind]), quantize(tiny_model(family, tied=tied), HELD[kind])
    assert target.problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, notes = lower(target, checkpoint)
    verification = verified(target, artifact, checkpoint)
    assert verification.mismatches == []
    assert verification.weights == len(checkpoint.parameters)
    assert check_loadable(artifact.root) == []
    assert not any("activation scales" in note for note in notes)


def test_tensors_and_settings_of_int8(tiny_model, quantize, lower):
    artifact, _ = lower(TrtInt8(), quantize(tiny_model("llama"), INT8))
    stored = tensors_of(artifact)
    down = {name: stored[name] for name in stored if name.startswith("model.layers.0.mlp.down_proj")}
    assert {name.rpartition(".")[2]: (tensor.dtype, tuple(tensor.shape)) for name, tensor in down.items()} == {
        "weight": (torch.int8, (64, 128)),
        "weight_scale": (torch.float32, (64,)),
    }
    settings = {"quant_algo": "W8A16", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    assert nested(artifact) == settings
    flat = json.loads((artifact.root / "config.json").read_text())["quantization_config"]
    del flat["producer"]
    assert flat == {"quant_method": "modelopt", "quant_algo": "W8A16", "ignore": ["lm_head"]}


@pytest.mark.parametrize(
    ("scheme", "algorithm", "parts"),
    [
        (FP8, "FP8", {"weight": (E4M3, (64, 128)), "weight_scale": (torch.float32, ()),
                      "input_scale": (torch.float32, ())}),
        (ROWWISE, "FP8_PER_CHANNEL_PER_TOKEN", {"weight": (E4M3, (64, 128)), "weight_scale": (torch.float32, (64,))}),
    ],
)  # fmt: skip
def test_tensors_and_settings_of_fp8(tiny_model, quantize, lower, scheme, algorithm, parts):
    artifact, _ = lower(TrtFp8(), quantize(tiny_model("llama"), scheme))
    stored = tensors_of(artifact)
    down = {name: stored[name] for name in stored if name.startswith("model.layers.0.mlp.down_proj")}
    assert {name.rpartition(".")[2]: (tensor.dtype, tuple(tensor.shape)) for name, tensor in down.items()} == parts
    assert nested(artifact) == {
        "quant_algo": algorithm, "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]
    }  # fmt: skip


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures(tiny_model, quantize, lower, verified, name):
    but, counts = MIXTURES[name]
    checkpoint = quantize(tiny_model("llama"), INT4, but)
    assert TrtInt4().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(TrtInt4(), checkpoint)
    assert verified(TrtInt4(), artifact, checkpoint).mismatches == []
    assert check_loadable(artifact.root) == []
    settings = nested(artifact)
    layers = settings["quantized_layers"]
    algorithms = [layer["quant_algo"] for layer in layers.values()]
    assert settings["quant_algo"] == "MIXED_PRECISION"
    assert {algorithm: algorithms.count(algorithm) for algorithm in algorithms} == counts
    assert set(layers) == set(checkpoint.schemes)
    awq = {"quant_algo": "W4A16_AWQ", "group_size": 64, "has_zero_point": False, "pre_quant_scale": True}
    assert layers["model.layers.1.mlp.up_proj"] == awq
    flat = json.loads((artifact.root / "config.json").read_text())["quantization_config"]
    assert flat["quantized_layers"] == layers
    assert flat["ignore"] == settings["exclude_modules"]
    (artifact.root / "hf_quant_config.json").unlink()
    assert check_loadable(artifact.root) == []


def test_both_kinds_of_fp8_side_by_side(tiny_model, quantize, lower, verified):
    checkpoint = quantize(tiny_model("llama"), FP8, {"down_proj": ROWWISE})
    assert TrtFp8().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(TrtFp8(), checkpoint)
    assert verified(TrtFp8(), artifact, checkpoint).mismatches == []
    assert nested(artifact)["quant_algo"] == "MIXED_PRECISION"


def test_cache_scales(tiny_model, quantize, lower, verified):
    checkpoint = quantize(tiny_model("llama"), FP8, kv_cache=True)
    artifact, notes = lower(TrtFp8(), checkpoint)
    stored = tensors_of(artifact)
    scales = {name: tensor for name, tensor in stored.items() if name.endswith(("k_scale", "v_scale"))}
    assert set(scales) == {f"model.layers.{i}.self_attn.{x}_proj.{x}_scale" for i in range(2) for x in "kv"}
    for tensor in scales.values():
        assert (tensor.dtype, tensor.shape, float(tensor)) == (torch.float32, (), 2.0**-8)
    verification = verified(TrtFp8(), artifact, checkpoint)
    assert verification.mismatches == []
    assert verification.weights == len(checkpoint.architecture.tensor_shapes()) + 4
    assert check_loadable(artifact.root) == []
    assert nested(artifact)["kv_cache_quant_algo"] == "FP8"
    flat = json.loads((artifact.root / "config.json").read_text())["quantization_config"]
    assert flat["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    assert any("was seen to take 1 for an fp8 cache" in note for note in notes)


FLIPPED = [
    ("int8", "mlp.up_proj.weight"),
    ("int8", "mlp.up_proj.weight_scale"),
    ("fp8", "mlp.down_proj.weight"),
    ("fp8", "mlp.down_proj.weight_scale"),
    ("fp8", "mlp.down_proj.input_scale"),
    ("fp8", "self_attn.v_proj.v_scale"),
    ("fp8 a channel", "self_attn.k_proj.weight_scale"),
]


@pytest.mark.parametrize(("kind", "tensor"), FLIPPED)
def test_a_flipped_byte_is_found(tiny_model, quantize, lower, verified, flip_byte, kind, tensor):
    target, checkpoint = target_of(HELD[kind]), quantize(tiny_model("llama"), HELD[kind], kv_cache=kind == "fp8")
    artifact, _ = lower(target, checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"model.layers.1.{tensor}")
    of_cache = tensor.endswith("v_scale")
    changed = tensor.replace("v_proj.", "") if of_cache else tensor.rpartition(".")[0] + ".weight"
    assert verified(target, artifact, checkpoint).mismatches == [f"model.layers.1.{changed}"]


def fp8(**changes):
    return Scheme(8, None, type="float", **changes)


BY_TOKEN, STATIC = Activations(8, "float"), Activations(8, "float", dynamic=False)
REFUSALS = [
    (TrtInt8(), INT4, {}, "int4 is not what this target holds; gptq:bits=8,group_size=channel works, or the target tr"),
    (TrtInt8(), Scheme(8, 64), {}, "group 64 is not served by TensorRT-LLM in int8; group_size=channel works"),
    (TrtInt8(), Scheme(8, None, False), {}, "zero points are not read by TensorRT-LLM; symmetric=true works"),
    (TrtInt8(), Scheme(8, None, activations=Activations()), {}, "int8 activations per token are not what this target"),
    (TrtInt8(), INT8, {"k_proj": None}, "left float, but TensorRT-LLM fuses q_proj/k_proj/v_proj"),
    (TrtInt8(), INT8, {"o_proj": FP8}, "fp8 is not what this target holds"),
    (TrtInt8(), INT8, {"lm_head": INT8}, "lm_head: TensorRT-LLM serves no quantized head; lm_head=false works."),
    (TrtFp8(), INT8, {}, "fp8:activations=static,scales=tensor works, or the target trt-int8"),
    (TrtFp8(), fp8(), {}, "fp8 channel is not served by TensorRT-LLM; fp8:scales=tensor,activations=static works"),
    (TrtFp8(), fp8(activations=STATIC), {}, "fp8 channel, static fp8 activations is not served"),
    (TrtFp8(), fp8(activations=BY_TOKEN, per_tensor=True), {}, "fp8 tensor, fp8 activations per token is not served"),
    (TrtFp8(), FP8, {"up_proj": ROWWISE}, "TensorRT-LLM fuses gate_proj/up_proj, which have different schemes"),
    (TrtInt4(), INT8, {}, "int8 is not what this target holds; gptq:bits=4 works, or the target trt-int8"),
    (TrtInt4(), INT4, {"o_proj": Scheme(8, 64)}, "group 64 is not served by TensorRT-LLM in int8"),
    (TrtInt4(), INT4, {"o_proj": fp8()}, "fp8 channel is not served"),
    (TrtInt4(), INT4, {"o_proj": Scheme(4, 64, type="nf4")}, "nf4 is not what this target holds"),
    (TrtInt4(), INT4, {"q_proj": FP8}, "TensorRT-LLM fuses q_proj/k_proj/v_proj, which have different schemes"),
]


@pytest.mark.parametrize(("target", "scheme", "but", "sentence"), REFUSALS)
def test_refusals_name_a_remedy(tiny_model, target, scheme, but, sentence):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    schemes = {layer: scheme for layer in architecture.linears() if layer != "lm_head"}
    for ending, other in but.items():
        schemes |= {layer: other for layer in architecture.linears() if layer.endswith(ending)}
    held = {layer: one for layer, one in schemes.items() if one is not None}
    assert sentence in " ".join(target.problems(architecture, held))


def test_widths_that_the_kernels_do_not_take(tiny_model):
    root = tiny_model("llama", hidden_size=96, intermediate_size=72, head_dim=24)
    architecture = Checkpoint.open(root).architecture
    inner = [layer for layer in architecture.linears() if layer != "lm_head"]
    integers = " ".join(TrtInt8().problems(architecture, dict.fromkeys(inner, INT8)))
    assert "the input width 96 is no multiple of 64" in integers
    assert "output width" not in integers  # 72 is a multiple of 8
    floats = " ".join(TrtFp8().problems(architecture, dict.fromkeys(inner, FP8)))
    assert "model.layers.0.mlp.gate_proj and 3 more layers: the output width 72 is no multiple of 16" in floats
    assert "the input width 72 is no multiple of 16" in floats


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("fp8:activations=static,scales=tensor,kv_cache=true", None),
        ("fp8:kv_cache=true", "beside fp8 weights with one scale a tensor, and NVFP4 with activations, only"),
        ("fp8:activations=static,scales=tensor,kv_cache=true,skip=*.self_attn.*", "and so does kv_cache=false"),
        ("fp8:activations=static,scales=tensor,kv_cache=true,skip=*.mlp.*", None),
    ],
)
def test_where_cache_scales_are_read(tiny_model, spec, sentence):
    checkpoint, asked = Checkpoint.open(tiny_model("llama")), make_pass(*parse_spec(spec))
    if sentence is None:
        check_plan(checkpoint, [asked], make_target("trt-fp8", {}))
        return
    with pytest.raises(InputError, match=sentence):
        check_plan(checkpoint, [asked], make_target("trt-fp8", {}))


@pytest.mark.parametrize("name", ["trt-int8", "trt-fp8"])
def test_the_preset_fits(tiny_model, name):
    target = make_target(name, {})
    passes = [make_pass(*parse_spec(spec)) for spec in target.preset]
    check_plan(Checkpoint.open(tiny_model("llama")), passes, target)


def test_parts_with_scales_of_their_own_are_refused(tiny_model, quantize, lower, changed):
    checkpoint = quantize(tiny_model("llama"), FP8)
    for part in ("scales", "input_scale"):
        other = changed(checkpoint, "model.layers.1.self_attn.v_proj", 2.0, part)
        with pytest.raises(InputError, match=r"q_proj and model.layers.1.self_attn.v_proj have different scales"):
            lower(TrtFp8(), other)
    lower(TrtFp8(), changed(checkpoint, "model.layers.1.self_attn.o_proj", 2.0))


def test_scales_that_fusing_in_float16_would_damage_are_refused(tiny_model, quantize, lower, changed):
    checkpoint = quantize(tiny_model("llama"), FP8)
    small = changed(checkpoint, "model.layers.1.mlp.", 2.0**-6)
    lower(TrtFp8(dtype="float16"), checkpoint)
    lower(TrtFp8(dtype="bfloat16"), small)
    with pytest.raises(InputError, match="loses bits when it fuses it in float16") as caught:
        lower(TrtFp8(dtype="float16"), small)
    assert caught.value.hint == "dtype=bfloat16 works."


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fusing_gives_back_the_codes_within_these_limits(dtype):
    """What the loader computes, tried on every code at the ends of the range that is let through."""
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3)
    codes = codes[~codes.float().isnan()]
    lowest, highest = (2.0**-14, 146.0) if dtype == torch.float16 else (2.0**-24, 65280.0)
    for scale in torch.logspace(np.log10(lowest), np.log10(highest), 200).clamp(lowest, highest):
        again = codes.to(dtype).mul_(scale).div_(scale).to(E4M3)
        assert torch.equal(again.float(), codes.float())
