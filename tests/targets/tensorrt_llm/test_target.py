"""trt-int4: the folder, its read-back, and what is refused before any work; test_algorithms.py has the others."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

import compressor.writer
from compressor.architecture import read_config
from compressor.errors import InputError, RunError
from compressor.plan import Plan, check_plan, check_values
from compressor.quantized import QuantizedWeight, Scheme
from compressor.recipe import make_recipe
from compressor.registry import make_target
from compressor.source import open_model
from compressor.verify import same_bits
from targets.tensorrt_llm import TrtInt4, check_loadable

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]
INT4 = Scheme(4, 64)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_reads_back_bit_for_bit(tiny_model, quantize, lower, verified, family, tied):
    checkpoint = quantize(tiny_model(family, tied=tied), INT4)
    assert TrtInt4().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(TrtInt4(), checkpoint)
    assert verified(TrtInt4(), artifact, checkpoint).mismatches == []
    assert check_loadable(artifact.root) == []
    assert ("lm_head.weight" in load_file(artifact.root / "model.safetensors")) == (not tied)


def test_tensors_of_a_folder(tiny_model, quantize, lower):
    artifact, notes = lower(TrtInt4(), quantize(tiny_model("qwen2", tied=False), INT4))
    found = {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for name, tensor in load_file(artifact.root / "model.safetensors").items()
        if "layers.1." not in name
    }
    layer = "model.layers.0."
    assert found == {
        "model.embed_tokens.weight": ("bfloat16", (288, 64)),
        layer + "input_layernorm.weight": ("bfloat16", (64,)),
        layer + "post_attention_layernorm.weight": ("bfloat16", (64,)),
        layer + "self_attn.q_proj.weight": ("uint8", (32, 64)),
        layer + "self_attn.q_proj.weight_scale": ("float32", (64, 1)),
        layer + "self_attn.q_proj.bias": ("bfloat16", (64,)),
        layer + "self_attn.k_proj.weight": ("uint8", (16, 64)),
        layer + "self_attn.k_proj.weight_scale": ("float32", (32, 1)),
        layer + "self_attn.k_proj.bias": ("bfloat16", (32,)),
        layer + "self_attn.v_proj.weight": ("uint8", (16, 64)),
        layer + "self_attn.v_proj.weight_scale": ("float32", (32, 1)),
        layer + "self_attn.v_proj.bias": ("bfloat16", (32,)),
        layer + "self_attn.o_proj.weight": ("uint8", (32, 64)),
        layer + "self_attn.o_proj.weight_scale": ("float32", (64, 1)),
        layer + "self_attn.o_proj.pre_quant_scale": ("bfloat16", (64,)),
        layer + "mlp.gate_proj.weight": ("uint8", (64, 64)),
        layer + "mlp.gate_proj.weight_scale": ("float32", (128, 1)),
        layer + "mlp.up_proj.weight": ("uint8", (64, 64)),
        layer + "mlp.up_proj.weight_scale": ("float32", (128, 1)),
        layer + "mlp.down_proj.weight": ("uint8", (32, 128)),
        layer + "mlp.down_proj.weight_scale": ("float32", (64, 2)),
        layer + "mlp.down_proj.pre_quant_scale": ("bfloat16", (128,)),
        "model.norm.weight": ("bfloat16", (64,)),
        "lm_head.weight": ("bfloat16", (288, 64)),
    }
    assert notes == [
        "13 unquantized tensors cast float32 -> bfloat16",
        "4 activation scales of ones added, which TensorRT-LLM wants on o_proj and down_proj",
    ]


def test_files_and_configs_of_a_folder(tiny_model, quantize, lower):
    artifact, _ = lower(TrtInt4(), quantize(tiny_model("llama"), INT4, {"o_proj": None}))
    names = {path.name for path in artifact.root.iterdir()}
    assert names >= {"config.json", "hf_quant_config.json", "model.safetensors", "tokenizer.json"}
    assert not any(name.startswith("llmc-") for name in names)
    left_float = ["model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.o_proj", "lm_head"]
    nested = json.loads((artifact.root / "hf_quant_config.json").read_text())
    assert nested.pop("producer")["name"] == "llmc"
    assert nested == {
        "quantization": {
            "quant_algo": "W4A16_AWQ",
            "kv_cache_quant_algo": None,
            "group_size": 64,
            "has_zero_point": False,
            "pre_quant_scale": True,
            "exclude_modules": left_float,
        }
    }
    flat = json.loads((artifact.root / "config.json").read_text())["quantization_config"]
    del flat["producer"]
    assert flat == {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 64, "ignore": left_float}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_dtype_option(tiny_model, quantize, lower, verified, recast, stored, dtype):
    target = make_target("trt-int4", {"dtype": dtype})
    assert target.spelled() == f"trt-int4:dtype={dtype}"
    checkpoint = quantize(recast(tiny_model("llama"), stored), INT4)
    artifact, notes = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    config = json.loads((artifact.root / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == dtype
    assert any("cast" in note for note in notes) == (str(stored) != f"torch.{dtype}")


def test_float16_overflow_is_refused(tiny_model, quantize, lower, recast):
    root = recast(tiny_model("llama"), torch.float32, {"model.norm.weight": torch.full((64,), 1e5)})
    with pytest.raises(InputError, match=r"model.norm.weight holds 1e\+05"):
        lower(TrtInt4(dtype="float16"), quantize(root, INT4))


@pytest.mark.parametrize("skipped", ["o_proj", "down_proj", "self_attn", "mlp", "layers.1"])
def test_layers_left_float(tiny_model, quantize, lower, verified, skipped):
    endings = {
        "self_attn": ("q_proj", "k_proj", "v_proj"),
        "mlp": ("gate_proj", "up_proj"),
        "layers.1": [f"layers.1.{name}" for name in ("mlp.down_proj", "self_attn.o_proj")],
    }.get(skipped, (skipped,))
    checkpoint = quantize(tiny_model("llama"), INT4, dict.fromkeys(endings))
    assert TrtInt4().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(TrtInt4(), checkpoint)
    assert verified(TrtInt4(), artifact, checkpoint).mismatches == []


def test_many_shards(tiny_model, quantize, lower, verified, monkeypatch):
    monkeypatch.setattr(compressor.writer, "SHARD_BYTES", 10_000)
    checkpoint = quantize(tiny_model("llama", tied=False), INT4)
    artifact, _ = lower(TrtInt4(), checkpoint)
    assert len(list(artifact.root.glob("model-*-of-00004.safetensors"))) == 4
    assert verified(TrtInt4(), artifact, checkpoint).mismatches == []
    assert check_loadable(artifact.root) == []


FLIPPED = ["self_attn.q_proj.weight", "mlp.down_proj.weight_scale", "input_layernorm.weight"]


@pytest.mark.parametrize("tensor", FLIPPED)
def test_a_flipped_byte_is_found(tiny_model, quantize, lower, verified, flip_byte, tensor):
    checkpoint = quantize(tiny_model("llama"), INT4)
    artifact, _ = lower(TrtInt4(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"model.layers.1.{tensor}")
    changed = f"model.layers.1.{tensor.removesuffix('_scale')}"
    assert verified(TrtInt4(), artifact, checkpoint).mismatches == [changed]


def test_a_changed_activation_scale_is_found(tiny_model, quantize, lower, verified, flip_byte):
    checkpoint = quantize(tiny_model("llama"), INT4)
    artifact, _ = lower(TrtInt4(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", "model.layers.1.mlp.down_proj.pre_quant_scale")
    assert verified(TrtInt4(), artifact, checkpoint).mismatches == ["model.layers.1.mlp.down_proj.weight"]


def test_factors_of_inputs_are_the_activation_scales(tiny_model, quantize, multiplied, lower, verified):
    checkpoint = multiplied(quantize(tiny_model("llama"), INT4), "o_proj", "layers.1.mlp.down_proj")
    check_plan(checkpoint, [], TrtInt4())
    artifact, notes = lower(TrtInt4(), checkpoint)
    assert verified(TrtInt4(), artifact, checkpoint).mismatches == []
    assert check_loadable(artifact.root) == []
    stored = load_file(artifact.root / "model.safetensors")
    factors = checkpoint.input_factors("model.layers.0.self_attn.o_proj")
    assert torch.equal(stored["model.layers.0.self_attn.o_proj.pre_quant_scale"], factors.bfloat16())
    assert bool((stored["model.layers.0.mlp.down_proj.pre_quant_scale"] == 1).all())
    assert notes[-1].startswith("1 activation scales of ones added")


def test_a_folder_with_activation_scales_goes_through_as_it_is(tiny_model, quantize, multiplied, lower, tmp_path):
    """Scales of every bit, as ModelOpt computes them: neither of the 16-bit dtypes holds them."""
    step = quantize(tiny_model("llama"), INT4, shared_scales=False)
    first, _ = lower(TrtInt4(), multiplied(step, "o_proj", "down_proj"))
    opened = open_model(str(first.root), tmp_path / "import", progress=lambda *_: None)
    assert opened.imported.endswith("is held beside them")
    plan = Plan.of(make_recipe({"model": str(first.root), "target": "trt-int4"}), opened.checkpoint, False)
    assert plan.passes == []
    again, notes = lower(plan.target, opened.checkpoint)
    tensors = [load_file(artifact.root / "model.safetensors") for artifact in (first, again)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(same_bits(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert notes == [
        "the scales of 14 layers are not exact in bfloat16; they are stored as they are, and TensorRT-LLM casts them "
        "when it loads them"
    ]


def test_factors_that_would_be_lost_are_refused_before_work(tiny_model, quantize, multiplied, tmp_path):
    step = quantize(tiny_model("llama"), INT4)
    with pytest.raises(
        InputError, match=r"q_proj: TensorRT-LLM multiplies inputs .* of int4 o_proj and down_proj only"
    ):
        check_plan(multiplied(step, "q_proj", "k_proj", "v_proj"), [], TrtInt4())
    beyond = partial(with_part, name="o_proj", part="input_factors", value=2.0**20)
    checkpoint = multiplied(step, "o_proj").rewrite(tmp_path / "large", beyond, {})
    with pytest.raises(InputError, match=r"o_proj are not exact in float16, .* dtype=bfloat16 works"):
        check_values(checkpoint, [], checkpoint.schemes, TrtInt4(dtype="float16"))
    check_values(checkpoint, [], checkpoint.schemes, TrtInt4())


def with_part(block, name, part, value):
    """The block with one number everywhere in a part of its quantized weights of this name."""
    changed = {
        parameter: replace(weight, **{part: torch.full_like(getattr(weight, part), value)})
        for parameter, weight in block.weights.items()
        if f".{name}." in parameter and isinstance(weight, QuantizedWeight)
    }
    return block.with_weights(changed)


def test_scales_that_the_other_dtype_holds(tiny_model, quantize, tmp_path):
    edit = partial(with_part, name="up_proj", part="scales", value=1 + 2.0**-10)
    checkpoint = quantize(tiny_model("llama"), INT4).rewrite(tmp_path / "step", edit, {})
    with pytest.raises(InputError, match=r"up_proj are not exact in bfloat16, .* dtype=float16 works"):
        check_values(checkpoint, [], checkpoint.schemes, TrtInt4())


def test_a_folder_that_would_not_load_is_refused(tiny_model, quantize, lower, monkeypatch):
    monkeypatch.setattr("targets.tensorrt_llm.target.check_loadable", lambda folder: ["This is wrong.", "That too."])
    with pytest.raises(RunError, match=r"would not load what was written: This is wrong. \(1 more"):
        lower(TrtInt4(), quantize(tiny_model("llama"), INT4))


REFUSALS = [
    (Scheme(8, 64), {}, "model.layers.0.self_attn.q_proj and 13 more layers: int8 is not what this target holds"),
    (Scheme(4, 64, False), {}, "and 13 more layers: zero points are not read by TensorRT-LLM; symmetric=true works"),
    (Scheme(4, 32), {}, "and 11 more layers: group 32 is not served by TensorRT-LLM; group_size 64 works"),
    (Scheme(4, None), {}, "and 11 more layers: one scale per channel is not served"),
    (INT4, {"k_proj": None}, "model.layers.0.self_attn.k_proj and 1 more layer: left float, but TensorRT-LLM fuses"),
    (INT4, {"up_proj": Scheme(4, 32)}, "model.layers.0.mlp.gate_proj and 1 more layer: TensorRT-LLM fuses gate_proj/"),
    (INT4, {"lm_head": INT4}, "lm_head: TensorRT-LLM serves no quantized head; lm_head=false works."),
]


@pytest.mark.parametrize(("scheme", "but", "sentence"), REFUSALS)
def test_refusals_name_a_remedy(tiny_model, scheme, but, sentence):
    architecture = architecture_of(tiny_model("llama"))
    schemes = {}
    for layer in architecture.linears():
        special = [other for ending, other in but.items() if layer.endswith(ending)]
        chosen = special[0] if special else scheme if layer != "lm_head" else None
        if chosen is not None:
            schemes[layer] = chosen
    assert sentence in " ".join(TrtInt4().problems(architecture, schemes))


def test_sizes_that_the_kernels_do_not_take(tiny_model):
    architecture = architecture_of(tiny_model("llama", hidden_size=96, intermediate_size=72, head_dim=24))
    schemes = {layer: Scheme(4, 64) for layer in architecture.linears() if layer != "lm_head"}
    text = " ".join(TrtInt4().problems(architecture, schemes))
    assert "the input width 96 is no multiple of 64" in text
    assert "model.layers.0.mlp.gate_proj and 3 more layers: the output width 72 is no multiple of 16" in text


def test_nothing_quantized_is_refused(tiny_model):
    assert "add a quantizing pass" in TrtInt4().problems(architecture_of(tiny_model("llama")), {})[0]


def test_run_command(tiny_model, quantize, lower):
    artifact, _ = lower(TrtInt4(), quantize(tiny_model("llama"), INT4))
    options = "--host 0.0.0.0 --port 8000 --tp_size 1 --max_batch_size 8 --max_num_tokens 8192"
    memory = "--kv_cache_free_gpu_memory_fraction 0.9"
    config = read_config(artifact.root)
    assert TrtInt4().run_command("/a b", config) == f"trtllm-serve '/a b' {options} --max_seq_len 512 {memory}"


def architecture_of(root):
    from compressor.checkpoint import Checkpoint

    return Checkpoint.open(root).architecture
