"""vllm-int8 and vllm-fp8: the folders, their read-back through compressed-tensors, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor import rounding
from compressor.architecture import read_config
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.quantized import Activations, Scheme
from targets.vllm import VllmFp8, VllmInt8

W8A8 = [Scheme(8, None, activations=Activations(dynamic=dynamic)) for dynamic in (True, False)]
FP8 = [
    Scheme(8, None, type="float", activations=activations)
    for activations in (Activations(type="float"), Activations(type="float", dynamic=False), None)
]
CASES = [*((VllmInt8(), scheme) for scheme in W8A8), *((VllmFp8(), scheme) for scheme in FP8)]
IDS = [f"{target.name} {scheme}" for target, scheme in CASES]
TOKENS = torch.arange(0, 250, 10).view(1, -1)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("target", "scheme"), CASES, ids=IDS)
def test_reads_back_bit_for_bit(tiny_model, quantize, lower, verified, target, scheme, family):
    checkpoint = quantize(tiny_model(family, tied=family != "qwen2"), scheme)
    assert target.problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, notes = lower(target, checkpoint)
    verification = verified(target, artifact, checkpoint)
    assert verification.mismatches == []
    assert verification.weights == len(checkpoint.architecture.tensor_shapes())
    assert [note.partition("unquantized")[2] for note in notes] == [" tensors cast float32 -> bfloat16"]
    assert Checkpoint.open(artifact.root).schemes == checkpoint.schemes


def test_tensors_and_config_of_a_folder(tiny_model, quantize, lower):
    artifact, _ = lower(VllmInt8(), quantize(tiny_model("llama"), W8A8[1], {"down_proj": None}))
    tensors, layer = load_file(artifact.root / "model.safetensors"), "model.layers.0.self_attn.k_proj"
    found = {name.removeprefix(f"{layer}."): tensors[name] for name in tensors if name.startswith(layer)}
    assert {part: (str(tensor.dtype), tuple(tensor.shape)) for part, tensor in found.items()} == {
        "weight": ("torch.int8", (32, 64)),
        "weight_scale": ("torch.bfloat16", (32, 1)),
        "input_scale": ("torch.bfloat16", (1,)),
    }
    config = json.loads((artifact.root / "config.json").read_text())["quantization_config"]
    assert config["format"] == "int-quantized"
    assert config["ignore"] == [*(f"model.layers.{index}.mlp.down_proj" for index in range(2)), "lm_head"]
    group = config["config_groups"]["group_0"]
    assert group["weights"]["strategy"] == "channel"
    assert (group["input_activations"]["strategy"], group["input_activations"]["dynamic"]) == ("tensor", False)


@pytest.mark.parametrize(("target", "scheme"), CASES, ids=IDS)
def test_it_computes_what_the_step_does(tiny_model, quantize, lower, logits_of, monkeypatch, target, scheme):
    """transformers with compressed-tensors rounds activations as vLLM does; the model is bfloat16 to begin with."""
    monkeypatch.setattr(rounding, "INT8_LARGEST", 127.5)  # theirs; the rest of the arithmetic is the same
    checkpoint = quantize(tiny_model("qwen3", tied=False), scheme)
    artifact, _ = lower(target, checkpoint)
    served = Decoder(Checkpoint.open(artifact.root))
    ours = served.logits(served.final_states(TOKENS), served.head())
    torch.testing.assert_close(logits_of(artifact.root), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", FP8, ids=str)
def test_cache_scales_stay_float32(tiny_model, quantize, lower, verified, scheme):
    checkpoint = quantize(tiny_model("llama"), scheme, kv_cache=True)
    artifact, _ = lower(VllmFp8(), checkpoint)
    verification = verified(VllmFp8(), artifact, checkpoint)
    assert verification.mismatches == []
    assert verification.weights == len(checkpoint.architecture.tensor_shapes()) + 4
    tensors = load_file(artifact.root / "model.safetensors")
    assert tensors["model.layers.1.self_attn.v_scale"].dtype == torch.float32
    config = json.loads((artifact.root / "config.json").read_text())["quantization_config"]
    assert config["kv_cache_scheme"]["type"] == "float"
    assert Checkpoint.open(artifact.root).kv_cache


def test_fp8_holds_cache_scales_and_int8_does_not():
    assert VllmFp8().holds_cache_scales
    assert not VllmInt8().holds_cache_scales


@pytest.mark.parametrize("tensor", ["weight", "weight_scale", "input_scale"])
@pytest.mark.parametrize("case", [(VllmInt8(), W8A8[1]), (VllmFp8(), FP8[1])], ids=["int8", "fp8"])
def test_a_flipped_bit_is_found(tiny_model, quantize, lower, verified, flip_byte, case, tensor):
    target, scheme = case
    checkpoint = quantize(tiny_model("llama"), scheme)
    artifact, _ = lower(target, checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"model.layers.1.mlp.up_proj.{tensor}")
    assert verified(target, artifact, checkpoint).mismatches == ["model.layers.1.mlp.up_proj.weight"]


def test_a_flipped_bit_of_a_cache_scale_is_found(tiny_model, quantize, lower, verified, flip_byte):
    checkpoint = quantize(tiny_model("llama"), FP8[0], kv_cache=True)
    artifact, _ = lower(VllmFp8(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", "model.layers.0.self_attn.k_scale")
    assert verified(VllmFp8(), artifact, checkpoint).mismatches == ["model.layers.0.self_attn.k_scale"]


@pytest.mark.parametrize(("target", "scheme"), [(VllmInt8(), W8A8[0]), (VllmFp8(), FP8[0])], ids=["int8", "fp8"])
def test_float32_scales_are_kept(tiny_model, quantize, lower, verified, target, scheme):
    """vLLM multiplies by them in float32, so they need not fit the served dtype."""
    checkpoint = quantize(tiny_model("llama"), scheme, shared_scales=False)
    artifact, _ = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    scales = load_file(artifact.root / "model.safetensors")["model.layers.0.mlp.up_proj.weight_scale"]
    assert scales.dtype == torch.float32


@pytest.mark.parametrize("layer", ["self_attn.k_proj", "mlp.up_proj"])
def test_fused_layers_share_their_input_scale(tiny_model, quantize, lower, tmp_path, layer):
    checkpoint = quantize(tiny_model("llama"), W8A8[1])

    def edit(block):
        name = f"model.layers.1.{layer}.weight"
        weight = block.weights.get(name)
        return block if weight is None else block.with_weights({name: replace(weight, input_scale=torch.tensor(0.5))})

    changed = checkpoint.rewrite(tmp_path / "step", edit, {})
    with pytest.raises(InputError, match=r"vLLM reads one input scale for .* of layers.1, and theirs differ") as caught:
        lower(VllmInt8(), changed)
    assert "activations=dynamic works" in caught.value.hint


def test_a_16_bit_model_keeps_its_dtype(tiny_model, quantize, lower, verified, recast):
    checkpoint = quantize(recast(tiny_model("llama"), torch.float16), W8A8[0])
    artifact, notes = lower(VllmInt8(), checkpoint)
    assert notes == []
    assert verified(VllmInt8(), artifact, checkpoint).mismatches == []
    assert read_config(artifact.root)["dtype"] == "float16"


REFUSALS = [
    (VllmInt8(), Scheme(4, 64), {}, "13 more layers: int4 is not what this target holds; gptq:bits=8,group_size=chan"),
    (VllmInt8(), FP8[0], {}, "fp8 is not what this target holds"),
    (VllmInt8(), Scheme(8, None), {}, "int8 weights alone are for the target gptq; here activations=dynamic works"),
    (VllmInt8(), replace(W8A8[0], symmetric=False), {}, "has no kernel in vLLM; group_size=channel,symmetric=true"),
    (VllmInt8(), replace(W8A8[0], group_size=64), {}, "has no kernel in vLLM; group_size=channel,symmetric=true"),
    (VllmInt8(), W8A8[0], {"v_proj": W8A8[1]}, "fuses q_proj/k_proj/v_proj, which have different schemes"),
    (VllmInt8(), W8A8[0], {"v_proj": None}, "left float, but vLLM fuses"),
    (VllmInt8(), W8A8[0], {"lm_head": W8A8[0]}, "lm_head=false works"),
    (VllmFp8(), W8A8[0], {}, "int8 is not what this target holds; fp8 works"),
    (VllmFp8(), replace(FP8[0], activations=Activations()), {}, "under fp8 weights have no kernel in vLLM; fp8:activ"),
    (VllmInt8(), None, {}, "such as gptq:bits=8,group_size=channel,activations=dynamic."),
    (VllmFp8(), None, {}, "such as fp8."),
]


@pytest.mark.parametrize(("target", "scheme", "but", "sentence"), REFUSALS)
def test_refusals_name_a_remedy(tiny_model, target, scheme, but, sentence):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    names = [name for name in architecture.linears() if name != "lm_head" or "lm_head" in but]
    chosen = {name: but.get(name.rpartition(".")[2], scheme) for name in names}
    problems = target.problems(architecture, {name: one for name, one in chosen.items() if one is not None})
    assert sentence in " ".join(problems)


def test_run_command(tiny_model, quantize, lower):
    artifact, _ = lower(VllmFp8(), quantize(tiny_model("llama"), FP8[0]))
    expected = "vllm serve a --port 8000 --dtype bfloat16 --max-model-len 512"
    assert VllmFp8().run_command("a", read_config(artifact.root)) == expected


def test_a_mixed_float_checkpoint_still_has_no_dtype(tiny_model, quantize, lower, recast):
    root = tiny_model("llama")
    half = recast(root, torch.float16)
    tensors = load_file(half / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="mixes float16 and float32"):
        lower(VllmInt8(), quantize(half, W8A8[0]))
