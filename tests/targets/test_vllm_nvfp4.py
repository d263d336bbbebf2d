"""vllm-nvfp4 and the steps themselves as artifacts of hf: read back through compressed-tensors, run, refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from compressor.architecture import read_config
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.quantized import Activations, QuantizedWeight, Scheme
from targets.huggingface import HuggingFace
from targets.tensorrt_llm import TrtNvfp4
from targets.vllm import VllmFp8, VllmNvfp4

WEIGHTS = Scheme(4, 16, type="float")
NVFP4 = replace(WEIGHTS, activations=Activations(4, "float", dynamic=False))
SCHEMES = [WEIGHTS, NVFP4]
UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize("target", [VllmNvfp4(), HuggingFace()], ids=lambda target: target.name)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_reads_back_bit_for_bit(tiny_model, quantize, lower, verified, target, scheme, family):
    checkpoint = quantize(tiny_model(family, tied=family != "qwen2"), scheme, kv_cache=family == "llama")
    assert target.problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(target, checkpoint)
    verification = verified(target, artifact, checkpoint)
    assert verification.mismatches == []
    assert verification.weights == len(checkpoint.parameters)
    assert Checkpoint.open(artifact.root).schemes == checkpoint.schemes
    assert target.broken_rules(artifact) == []


def test_tensors_and_config_of_a_folder(tiny_model, quantize, lower):
    artifact, _ = lower(VllmNvfp4(), quantize(tiny_model("llama"), NVFP4, {"down_proj": None}))
    tensors = load_file(artifact.root / "model.safetensors")
    found = {name.removeprefix(f"{UP}."): tensors[name] for name in tensors if name.startswith(UP)}
    assert {part: (str(tensor.dtype), tuple(tensor.shape)) for part, tensor in found.items()} == {
        "weight_packed": ("torch.uint8", (128, 32)),
        "weight_scale": ("torch.float8_e4m3fn", (128, 4)),
        "weight_global_scale": ("torch.float32", (1,)),
        "input_global_scale": ("torch.float32", (1,)),
    }
    assert float(found["weight_global_scale"]) == 2.0**10
    config = json.loads((artifact.root / "config.json").read_text())["quantization_config"]
    assert config["format"] == "nvfp4-pack-quantized"
    assert config["ignore"] == [*(f"model.layers.{index}.mlp.down_proj" for index in range(2)), "lm_head"]
    assert config["config_groups"]["group_0"]["input_activations"]["dynamic"] == "local"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_it_runs_in_transformers(tiny_model, quantize, lower, scheme):
    checkpoint = quantize(tiny_model("llama"), scheme)
    artifact, _ = lower(HuggingFace(), checkpoint)
    assert json.loads((artifact.root / "config.json").read_text())["dtype"] == "bfloat16"
    session = HuggingFace().open(artifact)
    tokens = torch.arange(10, 30)
    ((_, logits),) = session.logits(tokens.numpy())
    decoder = Decoder(checkpoint)
    ours = (decoder.final_states(tokens[None]) @ decoder.head().T)[0]
    distance = float((torch.from_numpy(logits) - ours).abs().max())
    assert distance < HuggingFace().tolerance(artifact).logits


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"])
def test_a_flipped_bit_is_found(tiny_model, quantize, lower, verified, flip_byte, part):
    checkpoint = quantize(tiny_model("llama"), NVFP4)
    artifact, _ = lower(VllmNvfp4(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"{UP}.{part}")
    assert verified(VllmNvfp4(), artifact, checkpoint).mismatches == [f"{UP}.weight"]


@pytest.mark.parametrize("part", ["input_scale", "tensor_scale"])
def test_fused_layers_share_their_scales(tiny_model, quantize, lower, tmp_path, part):
    checkpoint = quantize(tiny_model("llama"), NVFP4)

    def edit(block):
        weight = block.weights.get(f"{UP}.weight")
        if weight is None:
            return block
        scales = replace(weight.block_scales, tensor_scale=weight.tensor_scale * 2)
        changed = {
            "input_scale": lambda: replace(weight, input_scale=torch.tensor(0.5)),
            "tensor_scale": lambda: replace(weight, scales=scales.values(), rounded_scales=scales),
        }
        return block.with_weights({f"{UP}.weight": changed[part]()})

    named = part.replace("_", " ")
    with pytest.raises(
        InputError, match=f"vLLM reads one {named} for gate_proj/up_proj of layers.1, and theirs differ"
    ):
        lower(VllmNvfp4(), checkpoint.rewrite(tmp_path / "step", edit, {}))


def test_a_folder_of_one_target_is_re_laid_by_another(tiny_model, quantize, lower, verified):
    artifact, _ = lower(VllmNvfp4(), quantize(tiny_model("llama"), NVFP4))
    given = Checkpoint.open(artifact.root)
    for target in (HuggingFace(), TrtNvfp4()):
        assert verified(target, lower(target, given)[0], given).mismatches == []


@pytest.mark.parametrize("target", [VllmNvfp4(), HuggingFace(), TrtNvfp4()], ids=lambda target: target.name)
def test_scales_of_other_quantizers_are_kept(tiny_model, quantize, lower, verified, tmp_path, target):
    """Their tensor scales are no powers of two, and have reciprocals that are rounded."""
    checkpoint = quantize(tiny_model("llama"), NVFP4)

    def edit(block):
        changed = {}
        for name, weight in block.weights.items():
            if isinstance(weight, QuantizedWeight):
                scales = replace(weight.block_scales, tensor_scale=torch.tensor(0.00073))
                scaled = replace(weight, scales=scales.values(), rounded_scales=scales)
                changed[name] = replace(scaled, input_scale=torch.tensor(0.0123))
        return block.with_weights(changed)

    given = checkpoint.rewrite(tmp_path / "step", edit, {})
    assert verified(target, lower(target, given)[0], given).mismatches == []


REFUSALS = [
    (VllmNvfp4(), Scheme(4, 64), {}, "int4 is not what this target holds; nvfp4 works"),
    (VllmNvfp4(), NVFP4, {"v_proj": WEIGHTS}, "fuses q_proj/k_proj/v_proj, which have different schemes"),
    (VllmNvfp4(), NVFP4, {"lm_head": NVFP4}, "lm_head=false works"),
    (VllmFp8(), NVFP4, {}, "nvfp4 is not what this target holds; fp8 works"),
]


@pytest.mark.parametrize(("target", "scheme", "but", "sentence"), REFUSALS)
def test_refusals_name_a_remedy(tiny_model, target, scheme, but, sentence):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    names = [name for name in architecture.linears() if name != "lm_head" or "lm_head" in but]
    schemes = {name: but.get(name.rpartition(".")[2], scheme) for name in names}
    assert sentence in " ".join(target.problems(architecture, schemes))


def test_run_commands(tiny_model, quantize, lower):
    checkpoint = quantize(tiny_model("llama"), WEIGHTS)
    artifact, _ = lower(VllmNvfp4(), checkpoint)
    expected = "vllm serve a --port 8000 --dtype bfloat16 --max-model-len 512"
    assert VllmNvfp4().run_command("a", read_config(artifact.root)) == expected
    assert HuggingFace().run_command("a", read_config(checkpoint.root)) == "vllm serve a --port 8000"
