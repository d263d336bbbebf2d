"""awq: the folder, its two readers and a third one that we did not write, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file

from compressor.architecture import read_config
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.prequantized import PackedFolder
from compressor.quantized import Activations, Scheme
from targets.awq import AwqFolder

LAYER = "model.layers.1.mlp.up_proj"


def imported(root):
    """Every weight of the folder as our import of such folders reads it."""
    return {name: weight for block in PackedFolder.open(root).blocks() for name, weight in block.items()}


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_every_scheme_by_both_readers(tiny_model, quantize, lower, verified, group_size, symmetric):
    checkpoint = quantize(tiny_model("llama", hidden_size=128, head_dim=32), Scheme(4, group_size, symmetric))
    target = AwqFolder()
    assert target.problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, notes = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    again = imported(artifact.root)
    for layer in checkpoint.schemes:
        name = f"{layer}.weight"
        wanted = target.expected(name, checkpoint.read([name])[name], checkpoint.architecture)
        assert wanted.same_bits(again[name])
        assert torch.equal(wanted.dequantize(), checkpoint.read([name])[name].dequantize())
    said = "14 symmetric weights are stored with zero points of 8, which this format always has"
    assert (said in notes) == symmetric


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_families(tiny_model, quantize, lower, verified, family, tied):
    checkpoint = quantize(tiny_model(family, tied=tied), Scheme(4, 64, symmetric=False))
    artifact, _ = lower(AwqFolder(dtype="float16"), checkpoint)
    assert verified(AwqFolder(dtype="float16"), artifact, checkpoint).mismatches == []
    assert set(imported(artifact.root)) == set(checkpoint.architecture.tensor_shapes())


def test_tensors_and_config_of_a_folder(tiny_model, quantize, lower):
    scheme = Scheme(4, 32, symmetric=False)
    artifact, _ = lower(AwqFolder(), quantize(tiny_model("llama"), scheme, {"layers.1.mlp.down_proj": None}))
    tensors = load_file(artifact.root / "model.safetensors")
    found = {name.removeprefix(f"{LAYER}."): tensors[name] for name in tensors if name.startswith(LAYER)}
    assert {part: (str(tensor.dtype), tuple(tensor.shape)) for part, tensor in found.items()} == {
        "qweight": ("torch.int32", (64, 16)),
        "qzeros": ("torch.int32", (2, 16)),
        "scales": ("torch.float16", (2, 128)),
    }
    assert read_config(artifact.root)["quantization_config"] == {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": ["model.layers.1.mlp.down_proj", "lm_head"],
    }


def test_transformers_understands_the_settings(tiny_model, quantize, lower):
    from transformers.utils.quantization_config import AwqConfig

    artifact, _ = lower(AwqFolder(), quantize(tiny_model("llama"), Scheme(4, 64)))
    settings = AwqConfig.from_dict(read_config(artifact.root)["quantization_config"])
    assert (settings.bits, settings.group_size, settings.zero_point, settings.format) == (4, 64, True, "gemm")


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_flipped_bit_is_found(tiny_model, quantize, lower, verified, flip_byte, part, symmetric):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32, symmetric))
    artifact, _ = lower(AwqFolder(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"{LAYER}.{part}")
    assert verified(AwqFolder(), artifact, checkpoint).mismatches == [f"{LAYER}.weight"]


@pytest.mark.parametrize("symmetric", [True, False])
def test_onnxruntime_genai_reads_the_same_integers(tiny_model, quantize, lower, symmetric):
    loader = pytest.importorskip("onnxruntime_genai.models.loaders.awq", reason="onnxruntime-genai is not installed")
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32, symmetric))
    artifact, _ = lower(AwqFolder(dtype="float16"), checkpoint)
    attributes = {"config": read_config(artifact.root)["quantization_config"], "use_g_idx": False}
    theirs = loader.AWQModel("awq", str(artifact.root), attributes, 64, 32, 128, 2)
    for index, layer in enumerate(theirs.layers):
        name = f"model.layers.{index}.mlp.down_proj.weight"
        ours, module = (
            AwqFolder().expected(name, checkpoint.read([name])[name], checkpoint.architecture),
            layer.mlp.down_proj,
        )
        assert torch.equal(module.scales.float().reshape(ours.scales.shape), ours.scales)
        assert torch.equal(unpacked(module.qweight, ours.codes.shape), ours.codes.int() + 8)
        assert torch.equal(unpacked(module.qzeros, ours.zero_points.shape), ours.zero_points.int() + 8)


def unpacked(blocks, shape):
    """Integers of a MatMulNBits weight: uint8 [out, bytes], low first."""
    return torch.stack((blocks & 15, blocks >> 4), dim=-1).reshape(shape).int()


def test_scales_that_float16_does_not_hold(tiny_model, quantize, lower):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64), shared_scales=False)
    with pytest.raises(InputError, match=r"The scales of model.layers.0.self_attn.q_proj are not exact in"):
        lower(AwqFolder(), checkpoint)


REFUSALS = [
    (Scheme(8, 64), {}, "13 more layers: int8 is not what this target holds; awq:bits=4 or the target gptq works"),
    (Scheme(4, 64, activations=Activations()), {}, "activations=none works, or the target hf"),
    (Scheme(4, None), {}, "11 more layers: one scale a channel is not what this format is for; group_size 64 or 32"),
    (Scheme(4, 16), {}, "group 16 has no kernel in vLLM; group_size 64 or 32 works"),
    (Scheme(4, 64), {"up_proj": None}, "left float, but vLLM fuses"),
    (Scheme(4, 64), {"down_proj": Scheme(4, 32)}, "this format has one scheme for all quantized layers, so"),
    (Scheme(4, 64), {"lm_head": Scheme(4, 64)}, "lm_head=false works"),
    (None, {}, "such as awq:symmetric=false."),
]


@pytest.mark.parametrize(("scheme", "but", "sentence"), REFUSALS)
def test_refusals_name_a_remedy(tiny_model, scheme, but, sentence):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    names = [name for name in architecture.linears() if name != "lm_head" or "lm_head" in but]
    chosen = {name: but.get(name.rpartition(".")[2], scheme) for name in names}
    problems = AwqFolder().problems(architecture, {name: one for name, one in chosen.items() if one is not None})
    assert sentence in " ".join(problems)


def test_run_command(tiny_model, quantize, lower):
    artifact, _ = lower(AwqFolder(dtype="float16"), quantize(tiny_model("llama"), Scheme(4, 64)))
    command = AwqFolder().run_command("a", read_config(artifact.root))
    assert command == "vllm serve a --port 8000 --dtype float16 --max-model-len 512"
