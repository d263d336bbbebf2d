"""trt-nvfp4: the tensors by hand, read back by other code, the loader's rules, and what is refused."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.nvfp4 import BlockScales
from compressor.plan import check_plan
from compressor.quantized import FP8 as E4M3
from compressor.quantized import Activations, QuantizedWeight, Scheme
from compressor.registry import make_pass, make_target, parse_spec
from targets.tensorrt_llm import TrtInt4, TrtNvfp4, check_loadable
from targets.tensorrt_llm.algorithms import stored_linear
from targets.tensorrt_llm.reader import decode_e2m1

WEIGHTS = Scheme(4, 16, type="float")
NVFP4 = replace(WEIGHTS, activations=Activations(4, "float", dynamic=False))
FP8 = Scheme(8, None, type="float", activations=Activations(8, "float", dynamic=False), per_tensor=True)
HELD = {"NVFP4": NVFP4, "W4A16_NVFP4": WEIGHTS}
Q, V, UP, DOWN = (f"model.layers.0.{part}_proj" for part in ("self_attn.q", "self_attn.v", "mlp.up", "mlp.down"))


def nested(root):
    return json.loads((root / "hf_quant_config.json").read_text())["quantization"]


def test_a_layer_by_hand():
    codes = torch.tensor([[0.5, -6.0, *([1.0] * 14)]]).to(E4M3)
    scales = BlockScales(torch.tensor([[1.5]]).to(E4M3), torch.tensor(0.25))
    weight = QuantizedWeight(codes, scales.values(), None, NVFP4, torch.tensor(0.125), scales)
    found = stored_linear("x", weight, torch.bfloat16)
    assert found["x.weight"].tolist() == [[0xF1, *([0x22] * 7)]]
    assert found["x.weight_scale"].view(torch.uint8).tolist() == [[0b0_0111_100]]
    assert {
        name: (tensor.dtype, tensor.shape, float(tensor)) for name, tensor in found.items() if not tensor.dim()
    } == {
        "x.weight_scale_2": (torch.float32, (), 0.25),
        "x.input_scale": (torch.float32, (), 0.125),
    }


def test_the_reader_knows_every_code():
    found = decode_e2m1(np.array([[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]], np.uint8))[0]
    positive = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert found.tolist() == [*positive, *(-number for number in positive)]
    assert np.signbit(found).tolist() == [False] * 8 + [True] * 8


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("algorithm", HELD)
def test_reads_back_bit_for_bit(tiny_model, quantize, lower, verified, algorithm, family, tied):
    checkpoint = quantize(tiny_model(family, tied=tied), HELD[algorithm])
    assert TrtNvfp4().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, notes = lower(TrtNvfp4(), checkpoint)
    verification = verified(TrtNvfp4(), artifact, checkpoint)
    assert verification.mismatches == []
    assert verification.weights == len(checkpoint.parameters)
    assert check_loadable(artifact.root) == []
    assert nested(artifact.root) == {
        "quant_algo": algorithm,
        "group_size": 16,
        "kv_cache_quant_algo": None,
        "exclude_modules": ["lm_head"],
    }
    assert any("later than 1.2" in note for note in notes) == (algorithm == "W4A16_NVFP4")


def test_a_step_of_the_pass_is_held_in_float16_too(tiny_model, lower, verified, tmp_path):
    from compressor.pass_ import PassContext

    context = PassContext(tmp_path / "step", {}, None, 0, lambda what, done, total: None, [])
    step = make_pass("nvfp4", {}).apply(Checkpoint.open(tiny_model("llama")), context)
    for dtype in ("float16", "bfloat16"):
        artifact, _ = lower(TrtNvfp4(dtype=dtype), step)
        assert verified(TrtNvfp4(dtype=dtype), artifact, step).mismatches == []


def test_fp8_layers_and_an_fp8_cache_beside_it(tiny_model, quantize, lower, verified):
    attention = dict.fromkeys(("q_proj", "k_proj", "v_proj"), FP8)
    checkpoint = quantize(tiny_model("llama"), NVFP4, {**attention, "1.mlp.down_proj": None}, kv_cache=True)
    assert TrtNvfp4().problems(checkpoint.architecture, checkpoint.schemes) == []
    assert TrtNvfp4().cache_problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(TrtNvfp4(), checkpoint)
    assert verified(TrtNvfp4(), artifact, checkpoint).mismatches == []
    assert check_loadable(artifact.root) == []
    settings = nested(artifact.root)
    assert (settings["quant_algo"], settings["kv_cache_quant_algo"]) == ("MIXED_PRECISION", "FP8")
    assert settings["quantized_layers"][UP] == {"quant_algo": "NVFP4", "group_size": 16}
    assert settings["quantized_layers"][Q] == {"quant_algo": "FP8"}


@pytest.mark.parametrize("part", ["weight", "weight_scale", "weight_scale_2", "input_scale"])
def test_a_flipped_byte_is_found(tiny_model, quantize, lower, verified, flip_byte, part):
    checkpoint = quantize(tiny_model("llama"), NVFP4)
    artifact, _ = lower(TrtNvfp4(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"{DOWN}.{part}")
    assert verified(TrtNvfp4(), artifact, checkpoint).mismatches == [f"{DOWN}.weight"]


def test_parts_with_scales_of_their_own_are_refused(tiny_model, quantize, lower, changed):
    checkpoint = quantize(tiny_model("llama"), NVFP4)
    with pytest.raises(InputError, match=r"q_proj and model.layers.1.self_attn.v_proj have different scales"):
        lower(TrtNvfp4(), changed(checkpoint, "model.layers.1.self_attn.v_proj", 2.0, "input_scale"))

    def edit(block):
        weight = block.weights.get(f"{UP}.weight")
        if weight is None:
            return block
        scales = replace(weight.block_scales, tensor_scale=weight.tensor_scale / 2)
        return block.with_weights({f"{UP}.weight": replace(weight, scales=scales.values(), rounded_scales=scales)})

    other = checkpoint.rewrite(checkpoint.root.parent / "other", edit, {})
    with pytest.raises(InputError, match=r"gate_proj and model.layers.0.mlp.up_proj have different scales"):
        lower(TrtNvfp4(), other)


REFUSALS = [
    (TrtNvfp4(), Scheme(4, 64), {}, "int4 is not what this target holds; nvfp4:activations=static works, or the targ"),
    (TrtNvfp4(), FP8, {}, "fp8 is not what this target holds"),
    (TrtNvfp4(), NVFP4, {"o_proj": Scheme(8, None)}, "int8 is not what this target holds"),
    (TrtNvfp4(), NVFP4, {"k_proj": None}, "left float, but TensorRT-LLM fuses q_proj/k_proj/v_proj"),
    (TrtNvfp4(), NVFP4, {"up_proj": WEIGHTS}, "fuses gate_proj/up_proj, which have different schemes"),
    (TrtNvfp4(), NVFP4, {"lm_head": NVFP4}, "lm_head: TensorRT-LLM serves no quantized head; lm_head=false works."),
    (TrtInt4(), NVFP4, {}, "nvfp4 is not what this target holds; gptq:bits=4 works, or the target trt-nvfp4"),
]


@pytest.mark.parametrize(("target", "scheme", "but", "sentence"), REFUSALS)
def test_refusals_name_a_remedy(tiny_model, target, scheme, but, sentence):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    schemes = {name: scheme for name in architecture.linears() if name != "lm_head"}
    for ending, other in but.items():
        schemes |= {name: other for name in architecture.linears() if name.endswith(ending)}
    held = {name: one for name, one in schemes.items() if one is not None}
    assert sentence in " ".join(target.problems(architecture, held))


def test_widths_that_the_kernels_do_not_take(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama", intermediate_size=144)).architecture
    problems = TrtNvfp4().problems(architecture, {n: NVFP4 for n in architecture.linears() if n != "lm_head"})
    assert any("down_proj and 1 more layer: the input width 144 is no multiple of 32" in one for one in problems)


@pytest.mark.parametrize(
    ("specs", "sentence"),
    [
        (("nvfp4:activations=static", "fp8:skip=*,kv_cache=true"), None),
        (("nvfp4", "fp8:skip=*,kv_cache=true"), "NVFP4 with activations, only; nvfp4:activations=static works"),
    ],
)
def test_where_cache_scales_are_read(tiny_model, specs, sentence):
    checkpoint, passes = Checkpoint.open(tiny_model("llama")), [make_pass(*parse_spec(spec)) for spec in specs]
    if sentence is None:
        check_plan(checkpoint, passes, make_target("trt-nvfp4", {}))
        return
    with pytest.raises(InputError, match=sentence):
        check_plan(checkpoint, passes, make_target("trt-nvfp4", {}))


def test_the_preset_fits(tiny_model):
    target = make_target("trt-nvfp4", {})
    check_plan(Checkpoint.open(tiny_model("llama")), [make_pass(*parse_spec(s)) for s in target.preset], target)


def scalar(value):
    return torch.tensor(value)


DAMAGES = {
    "no tensor scale": ("NVFP4", f"{Q}.weight_scale_2", None, f"{Q}.weight_scale_2 is missing"),
    "no input scale": ("NVFP4", f"{DOWN}.input_scale", None, f"{DOWN}.input_scale is missing"),
    "an input scale that nobody reads": (
        "W4A16_NVFP4",
        f"{DOWN}.input_scale",
        scalar(1.0),
        f"{DOWN}.input_scale is never read",
    ),
    "block scales in bfloat16": (
        "NVFP4",
        f"{DOWN}.weight_scale",
        torch.ones(64, 8, dtype=torch.bfloat16),
        f"{DOWN}.weight_scale is stored as BF16; the loader wants F8_E4M3",
    ),
    "blocks of 32": (
        "NVFP4",
        f"{DOWN}.weight_scale",
        torch.ones(64, 4).to(E4M3),
        f"{DOWN}.weight_scale has shape [64, 4]; the loader wants [64, 8]",
    ),
    "packed along the outputs": (
        "NVFP4",
        f"{DOWN}.weight",
        torch.zeros(32, 128, dtype=torch.uint8),
        f"{DOWN}.weight has shape [32, 128]; the loader wants [64, 64]",
    ),
    "unequal tensor scales": ("NVFP4", f"{V}.weight_scale_2", scalar(2.0), "differ; the loader wants one for all"),
    "unequal input scales": ("NVFP4", f"{UP}.input_scale", scalar(2.0), "gate_proj/up_proj differ; the loader wants"),
    "unequal tensor scales of weights": ("W4A16_NVFP4", f"{V}.weight_scale_2", scalar(2.0), "weight_scale_2: q_proj/"),
    "a tensor scale that is not finite": (
        "NVFP4",
        f"{DOWN}.weight_scale_2",
        scalar(float("inf")),
        f"{DOWN}.weight_scale_2 holds a value that float32 does not",
    ),
    "one cache scale": (
        "NVFP4",
        "model.layers.0.self_attn.k_proj.k_scale",
        scalar(1.0),
        "model.layers.0.self_attn.v_proj.v_scale is missing",
    ),
    "cache scales beside weights alone": (
        "W4A16_NVFP4",
        "model.layers.0.self_attn.k_proj.k_scale",
        scalar(1.0),
        "is never read, since the layer is neither FP8 nor NVFP4",
    ),
}


@pytest.fixture
def sound(tiny_model, quantize, lower, made, tmp_path):
    def make(algorithm):
        if algorithm not in made:
            made[algorithm] = lower(TrtNvfp4(), quantize(tiny_model("llama", tied=False), HELD[algorithm]))[0].root
        return shutil.copytree(made[algorithm], tmp_path / "copy")

    return make


@pytest.mark.parametrize("name", DAMAGES)
def test_each_rule_fires(sound, name):
    algorithm, tensor, value, sentence = DAMAGES[name]
    folder = sound(algorithm)
    assert check_loadable(folder) == []
    found = load_file(folder / "model.safetensors")
    found.pop(tensor, None)
    save_file(found | ({} if value is None else {tensor: value}), folder / "model.safetensors")
    broken = check_loadable(folder)
    assert any(sentence in one for one in broken), broken


def test_other_group_sizes_are_no_nvfp4(sound):
    folder = sound("NVFP4")
    whole = json.loads((folder / "hf_quant_config.json").read_text())
    whole["quantization"]["group_size"] = 32
    (folder / "hf_quant_config.json").write_text(json.dumps(whole))
    assert check_loadable(folder) == ["group_size is 32; the kernels take 16."]


def test_shares_of_several_gpus(sound):
    folder = sound("NVFP4")
    assert check_loadable(folder, 2) == [
        f"model.layers.{i}.self_attn.{x}_proj: 16 output channels a GPU are no multiple of 32."
        for i in range(2)
        for x in "kv"
    ]
