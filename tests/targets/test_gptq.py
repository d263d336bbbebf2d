"""gptq: the folder, its two readers and a third one that we did not write, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from compressor.architecture import read_config
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, RunError
from compressor.prequantized import PackedFolder
from compressor.quantized import Activations, Scheme
from targets.gptq import GptqFolder

LAYER = "model.layers.1.mlp.up_proj"
SCHEMES = [Scheme(bits, size, symmetric) for bits in (4, 8) for size in (32, 64, None) for symmetric in (True, False)]


def imported(root):
    """Every weight of the folder as our import of such folders reads it."""
    return {name: weight for block in PackedFolder.open(root).blocks() for name, weight in block.items()}


@pytest.fixture
def with_zero(tmp_path):
    """`with_zero(checkpoint)`: the same with a zero point of 0 in LAYER."""

    def make(checkpoint):
        def edit(block):
            weight = block.weights.get(f"{LAYER}.weight")
            if weight is None:
                return block
            zero_points = weight.zero_points.clone()
            zero_points[5, 1] = weight.scheme.lowest
            return block.with_weights({f"{LAYER}.weight": replace(weight, zero_points=zero_points)})

        return checkpoint.rewrite(tmp_path / "with-zero", edit, {})

    return make


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_scheme_by_both_readers(tiny_model, quantize, lower, verified, scheme):
    checkpoint = quantize(tiny_model("llama"), scheme)
    target = GptqFolder()
    assert target.problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    again = imported(artifact.root)
    for layer in checkpoint.schemes:
        wanted = checkpoint.read([f"{layer}.weight"])[f"{layer}.weight"]
        assert wanted.same_bits(again[f"{layer}.weight"])
        assert again[f"{layer}.weight"].scheme == scheme


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_families(tiny_model, quantize, lower, verified, family, tied):
    checkpoint = quantize(tiny_model(family, tied=tied), Scheme(4, 64))
    artifact, _ = lower(GptqFolder(dtype="float16"), checkpoint)
    assert verified(GptqFolder(dtype="float16"), artifact, checkpoint).mismatches == []
    assert set(imported(artifact.root)) == set(checkpoint.architecture.tensor_shapes())


def test_tensors_and_config_of_a_folder(tiny_model, quantize, lower):
    artifact, _ = lower(GptqFolder(), quantize(tiny_model("llama"), Scheme(4, 32), {"layers.1.mlp.down_proj": None}))
    tensors = load_file(artifact.root / "model.safetensors")
    found = {name.removeprefix(f"{LAYER}."): tensors[name] for name in tensors if name.startswith(LAYER)}
    assert {part: (str(tensor.dtype), tuple(tensor.shape)) for part, tensor in found.items()} == {
        "qweight": ("torch.int32", (8, 128)),
        "qzeros": ("torch.int32", (2, 16)),
        "scales": ("torch.float16", (2, 128)),
        "g_idx": ("torch.int32", (64,)),
    }
    settings = json.loads((artifact.root / "quantize_config.json").read_text())
    assert json.loads((artifact.root / "config.json").read_text())["quantization_config"] == settings
    del settings["meta"]
    assert settings == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 32,
        "sym": True,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq",
        "format": "gptq",
        "pack_dtype": "int32",
        "dynamic": {r"-:^model\.layers\.1\.mlp\.down_proj$": {}},
    }


def test_transformers_understands_the_settings(tiny_model, quantize, lower):
    from transformers.utils.quantization_config import GPTQConfig

    artifact, _ = lower(GptqFolder(), quantize(tiny_model("llama"), Scheme(8, None, symmetric=False)))
    settings = GPTQConfig.from_dict(read_config(artifact.root)["quantization_config"])
    assert (settings.bits, settings.group_size, settings.sym, settings.desc_act) == (8, -1, False, False)
    assert settings.format == settings.to_dict()["checkpoint_format"]


# ---- zero points of 0


def test_auto_takes_the_second_version_for_a_zero_point_of_0(tiny_model, quantize, lower, verified, with_zero):
    checkpoint = with_zero(quantize(tiny_model("llama"), Scheme(4, 32, symmetric=False)))
    artifact, notes = lower(GptqFolder(), checkpoint)
    assert notes[-1] == f"written as gptq_v2: a zero point of {LAYER} is 0, which gptq cannot hold"
    assert read_config(artifact.root)["quantization_config"]["checkpoint_format"] == "gptq_v2"
    assert verified(GptqFolder(), artifact, checkpoint).mismatches == []
    assert checkpoint.read([f"{LAYER}.weight"])[f"{LAYER}.weight"].same_bits(imported(artifact.root)[f"{LAYER}.weight"])


def test_the_first_version_is_refused_for_it(tiny_model, quantize, lower, with_zero):
    checkpoint = with_zero(quantize(tiny_model("llama"), Scheme(4, 32, symmetric=False)))
    with pytest.raises(InputError, match=f"A zero point of {LAYER} is 0, which the format gptq cannot hold") as caught:
        lower(GptqFolder(checkpoint_format="gptq"), checkpoint)
    assert "checkpoint_format=gptq_v2 works" in caught.value.hint


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_version_can_be_asked_for(tiny_model, quantize, lower, verified, version, symmetric):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64, symmetric))
    target = GptqFolder(checkpoint_format=version)
    artifact, _ = lower(target, checkpoint)
    assert read_config(artifact.root)["quantization_config"]["format"] == version
    assert verified(target, artifact, checkpoint).mismatches == []


# ---- damage


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_flipped_bit_is_found(tiny_model, quantize, lower, verified, flip_byte, part, symmetric):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32, symmetric))
    artifact, _ = lower(GptqFolder(checkpoint_format="gptq_v2"), checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"{LAYER}.{part}")
    assert verified(GptqFolder(), artifact, checkpoint).mismatches == [f"{LAYER}.weight"]


def test_a_flipped_bit_of_the_group_index_is_found(tiny_model, quantize, lower, verified, flip_byte):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 32))
    artifact, _ = lower(GptqFolder(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"{LAYER}.g_idx")
    with pytest.raises(RunError, match=f"g_idx of {LAYER}"):
        verified(GptqFolder(), artifact, checkpoint)


# ---- a reader of another project


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_onnxruntime_genai_reads_the_same_integers(tiny_model, quantize, lower, bits, symmetric):
    loader = pytest.importorskip("onnxruntime_genai.models.loaders.gptq", reason="onnxruntime-genai is not installed")
    checkpoint = quantize(tiny_model("llama"), Scheme(bits, 32, symmetric))
    artifact, _ = lower(GptqFolder(dtype="float16", checkpoint_format="gptq"), checkpoint)
    attributes = {"config": read_config(artifact.root)["quantization_config"], "use_g_idx": False}
    theirs = loader.GPTQModel("gptq", str(artifact.root), attributes, 64, 32, 128, 2)
    for index, layer in enumerate(theirs.layers):
        name = f"model.layers.{index}.mlp.down_proj.weight"
        ours, module = checkpoint.read([name])[name], layer.mlp.down_proj
        assert torch.equal(module.scales.float().reshape(ours.scales.shape), ours.scales)
        assert torch.equal(unpacked(module.qweight, bits, ours.codes.shape), ours.codes.int() + 2 ** (bits - 1))
        zeros = torch.zeros_like(ours.scales) if ours.zero_points is None else ours.zero_points
        assert torch.equal(unpacked(module.qzeros, bits, zeros.shape), zeros.int() + 2 ** (bits - 1))


def unpacked(blocks, bits, shape):
    """Integers of a MatMulNBits weight: uint8 [out, bytes], low first."""
    if bits == 4:
        blocks = torch.stack((blocks & 15, blocks >> 4), dim=-1)
    return blocks.reshape(shape).int()


# ---- what is refused


def test_scales_that_float16_does_not_hold(tiny_model, quantize, lower):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64), shared_scales=False)
    with pytest.raises(InputError, match=r"The scales of model.layers.0.self_attn.q_proj are not exact in"):
        lower(GptqFolder(), checkpoint)


REFUSALS = [
    (
        Scheme(8, None, type="float"),
        {},
        "13 more layers: fp8 is not what this target holds; gptq:bits=4 or gptq:bits=8",
    ),
    (Scheme(8, None, activations=Activations()), {}, "activations=none works, or the target hf"),
    (Scheme(4, 16), {}, "group 16 has no kernel in vLLM; group_size 64 or 32 works"),
    (Scheme(4, 64), {"v_proj": None}, "left float, but vLLM fuses"),
    (Scheme(4, 64), {"down_proj": Scheme(8, None)}, "mlp.down_proj is int8 channel symmetric; this format has one"),
    (Scheme(4, 64), {"lm_head": Scheme(4, 64)}, "lm_head=false works"),
    (None, {}, "such as gptq:bits=4."),
]


@pytest.mark.parametrize(("scheme", "but", "sentence"), REFUSALS)
def test_refusals_name_a_remedy(tiny_model, scheme, but, sentence):
    architecture = Checkpoint.open(tiny_model("llama")).architecture
    names = [name for name in architecture.linears() if name != "lm_head" or "lm_head" in but]
    chosen = {name: but.get(name.rpartition(".")[2], scheme) for name in names}
    problems = GptqFolder().problems(architecture, {name: one for name, one in chosen.items() if one is not None})
    assert sentence in " ".join(problems)


@pytest.mark.parametrize(("symmetric", "server"), [(True, "vllm serve a --port 8000 --dtype bfloat16 --max-model-len"),
                                                   (False, "transformers serve a --port 8080")])  # fmt: skip
def test_run_command(tiny_model, quantize, lower, symmetric, server):
    artifact, _ = lower(GptqFolder(), quantize(tiny_model("llama"), Scheme(4, 64, symmetric)))
    assert GptqFolder().run_command("a", read_config(artifact.root)).startswith(server)
