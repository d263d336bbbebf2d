"""Targets take the later families as their table says: what is lowered is read back, what is refused has a reason."""

from __future__ import annotations

import pytest
import torch

from benchmarks.families import preset, problems
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.pass_ import PassContext
from compressor.registry import make_pass, make_target

LATER = ["gemma2", "gemma3_text", "phi3", "gpt2"]
TARGETS = ["awq", "gguf-q4_0", "gguf-q8_0", "gptq", "onnx-fp16", "onnx-fp32", "onnx-int4", "onnx-int8", "onnx-qdq-int4",
           "onnx-qdq-int8", "trt-fp8", "trt-int4", "trt-int8", "trt-nvfp4", "vllm-fp8", "vllm-int4", "vllm-int8",
           "vllm-nvfp4"]  # fmt: skip
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "query_pre_attn_scalar": 32,
        "final_logit_softcapping": None}  # fmt: skip


def shaped(tiny_model, family):
    """Wide enough for groups of 128."""
    own = {"n_inner": 256, "intermediate_size": None, "head_dim": None} if family == "gpt2" else {}
    return tiny_model(family, **WIDE | own)


def quantized(quantize, root, target):
    """The model as the target's preset would quantize it, to the nearest."""
    passes = preset(target)
    return quantize(root, passes[-1].scheme) if passes else Checkpoint.open(root)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("family", LATER)
def test_a_preset_is_read_back_or_refused(tiny_model, quantize, lower, verified, family, name):
    root, target = shaped(tiny_model, family), make_target(name, {})
    refused = problems(Checkpoint.open(root).architecture, target)
    assert all(reason.endswith(".") for reason in refused)
    if refused:
        return
    checkpoint = quantized(quantize, root, target)
    artifact, _ = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    assert target.broken_rules(artifact) == []


def test_layers_left_float_beside_quantized_ones_keep_their_orientation(tiny_model, quantize, lower, verified):
    """GPT-2's weights are stored [in_features, out_features], but packed ones are not."""
    target = make_target("vllm-int4", {})
    checkpoint = quantize(shaped(tiny_model, "gpt2"), preset(target)[-1].scheme, {"mlp.c_proj": None})
    assert len(checkpoint.schemes) == 6
    artifact, _ = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []


def test_compressed_tensors_has_no_form_for_conv1d(tiny_model):
    architecture = Checkpoint.open(tiny_model("gpt2")).architecture
    with pytest.raises(InputError, match="no form for the Conv1D of gpt2"):
        make_pass("llmcompressor", {}).plan(architecture, {})
    (problem,) = make_target("hf", {}).problems(
        architecture, make_pass("rtn", {"group_size": 32}).plan(architecture, {})
    )
    assert "Conv1D, for which compressed-tensors has no form; nf4 works here" in problem


def test_compressed_tensors_itself_knows_no_conv1d(tiny_model):
    """What the refusal says: a module of that class is not found, whatever the settings say."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.quant_args import QuantizationArgs
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model("gpt2"))
    weights = QuantizationArgs(num_bits=4, group_size=32, strategy="group")
    groups = {"all": QuantizationScheme(targets=["Conv1D"], weights=weights)}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups))
    assert not [name for name in model.state_dict() if name.endswith("weight_scale")]


def test_gpt2_in_nf4_is_opened_by_transformers(tiny_model, lower, verified, tmp_path, logits_of):
    target = make_target("hf-nf4", {})
    context = PassContext(tmp_path / "step", {}, None, 0, lambda *_: None, [])
    checkpoint = make_pass("nf4", {}).apply(Checkpoint.open(tiny_model("gpt2")), context)
    assert target.problems(checkpoint.architecture, checkpoint.schemes) == []
    artifact, _ = lower(target, checkpoint)
    assert verified(target, artifact, checkpoint).mismatches == []
    # bitsandbytes computes in bfloat16 where the machine has instructions for it.
    torch.testing.assert_close(logits_of(artifact.root), logits_of(checkpoint), atol=0.05, rtol=0)


def test_the_table_has_every_family():
    from benchmarks.families import NAMES

    assert set(NAMES) == set(FAMILIES)
