"""vllm-int4: the folder, its read-back through compressed-tensors, and what is refused."""

import json

import pytest
import torch

from compressor.architecture import read_config
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.quantized import Scheme
from targets.vllm import VllmInt4

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]  # test_families.py has the others


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_reads_back_bit_for_bit(tiny_model, quantize, lower, verified, family, tied):
    checkpoint = quantize(tiny_model(family, tied=tied), Scheme(4, 32))
    assert VllmInt4().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, notes = lower(VllmInt4(), checkpoint)
    assert verified(VllmInt4(), artifact, checkpoint).mismatches == []
    assert len(notes) == 1
    assert notes[0].endswith("unquantized tensors cast float32 -> bfloat16")
    assert not any(path.name.startswith("llmc-") for path in artifact.root.iterdir())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, None])
def test_every_scheme(tiny_model, quantize, lower, verified, group_size, symmetric):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, group_size, symmetric))
    assert VllmInt4().problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(VllmInt4(), checkpoint)
    assert verified(VllmInt4(), artifact, checkpoint).mismatches == []
    # The artifact is itself a checkpoint, so that it can be inspected and lowered again.
    again = Checkpoint.open(artifact.root)
    assert again.schemes == checkpoint.schemes
    assert again.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_transformers_opens_it(tiny_model, quantize, lower, logits_of, dtype):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64))
    artifact, _ = lower(VllmInt4(dtype=dtype), checkpoint)
    served = getattr(torch, dtype)
    assert torch.equal(logits_of(artifact.root, dtype=served), logits_of(checkpoint, dtype=served))


def test_config(tiny_model, quantize, lower):
    artifact, _ = lower(VllmInt4(dtype="float16"), quantize(tiny_model("llama"), Scheme(4, 64), {"down_proj": None}))
    config = json.loads((artifact.root / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float16"
    down = [f"model.layers.{index}.mlp.down_proj" for index in range(2)]
    assert config["quantization_config"]["ignore"] == [*down, "lm_head"]
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (4, 64, True)


FLIPPED = ["self_attn.q_proj.weight_packed", "self_attn.q_proj.weight_scale", "self_attn.q_proj.weight_zero_point"]


@pytest.mark.parametrize("tensor", FLIPPED)
def test_a_flipped_byte_is_found(tiny_model, quantize, lower, verified, flip_byte, tensor):
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64, symmetric=False))
    artifact, _ = lower(VllmInt4(), checkpoint)
    flip_byte(artifact.root / "model.safetensors", f"model.layers.0.{tensor}")
    assert verified(VllmInt4(), artifact, checkpoint).mismatches == ["model.layers.0.self_attn.q_proj.weight"]


def test_scales_that_the_served_dtype_does_not_hold(tiny_model, quantize, lower):
    """As a folder from another tool may have them: float32 scales that bfloat16 would round."""
    checkpoint = quantize(tiny_model("llama"), Scheme(4, 64), shared_scales=False)
    with pytest.raises(InputError, match=r"The scales of model.layers.0.self_attn.q_proj are not exact in bfloat16"):
        lower(VllmInt4(), checkpoint)


def test_refusals_name_a_remedy(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama", intermediate_size=80)).architecture

    def text(scheme, **but):
        linears = [layer for layer in architecture.linears() if layer != "lm_head" or "lm_head" in but]
        schemes = {layer: but.get(layer.rpartition(".")[2], scheme) for layer in linears}
        return " ".join(VllmInt4().problems(architecture, {k: v for k, v in schemes.items() if v is not None}))

    int4 = Scheme(4, 32)
    kind = "and 13 more layers: int8 is not what this target holds; gptq:bits=4 or the target hf works"
    assert kind in text(Scheme(8, 32))
    assert "group 16 has no kernel in vLLM; group_size 64 or 32 works" in text(Scheme(4, 16))
    assert "[80, 64] is no multiple of 32 both ways" in text(int4)
    assert "model.layers.0.self_attn.v_proj and 1 more layer: left float, but vLLM fuses" in text(int4, v_proj=None)
    assert "vLLM fuses gate_proj/up_proj, which have different schemes" in text(int4, up_proj=Scheme(4, 64))
    assert "lm_head: a quantized head" in text(int4, lm_head=int4)
    assert "add a quantizing pass" in VllmInt4().problems(architecture, {})[0]


def test_run_command(tiny_model, quantize, lower):
    artifact, _ = lower(VllmInt4(), quantize(tiny_model("llama"), Scheme(4, 64)))
    expected = f"vllm serve {artifact.root} --port 8000 --dtype bfloat16 --max-model-len 512"
    assert VllmInt4().run_command(str(artifact.root), read_config(artifact.root)) == expected
