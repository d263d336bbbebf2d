"""The cast of what stays unquantized: which dtype, what is refused, what is reported, what config.json says."""

import json

import pytest
import torch

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.quantized import QuantizedWeight, Scheme
from targets.casting import Caster, cast, served_config

NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("choice", "stored", "served"),
    [
        ("auto", torch.float32, torch.bfloat16),
        ("auto", torch.float16, torch.float16),
        ("auto", torch.bfloat16, torch.bfloat16),
        ("float16", torch.float32, torch.float16),
        ("float16", torch.bfloat16, torch.float16),
        ("bfloat16", torch.float16, torch.bfloat16),
    ],
)
def test_served_dtype(tiny_model, recast, choice, stored, served):
    checkpoint = Checkpoint.open(recast(tiny_model("llama"), stored))
    caster = Caster(choice, checkpoint)
    weight = checkpoint.read([NORM])[NORM]
    found = caster.tensor(NORM, weight)
    assert found.dtype == caster.dtype == served
    assert torch.equal(found, weight.to(served))
    assert torch.equal(found, cast(choice, weight))
    names = [str(dtype).removeprefix("torch.") for dtype in (stored, served)]
    assert caster.notes == ([] if stored == served else [f"1 unquantized tensors cast {names[0]} -> {names[1]}"])


@pytest.mark.parametrize("value", [65520.0, -1e6])
def test_float16_overflow_is_refused(tiny_model, value):
    caster = Caster("float16", Checkpoint.open(tiny_model("llama")))
    with pytest.raises(InputError, match=rf"{NORM} holds .*, which float16 does not reach") as caught:
        caster.tensor(NORM, torch.tensor([1.0, value]))
    assert caught.value.hint == "dtype=bfloat16 works."


def test_values_that_become_zero_are_reported(tiny_model):
    caster = Caster("float16", Checkpoint.open(tiny_model("llama")))
    caster.tensor(NORM, torch.tensor([1.0, 1e-9, 0.0]))
    assert caster.notes == ["1 unquantized tensors cast float32 -> float16", "1 values became zero in float16"]


def test_auto_has_no_answer_for_a_mixed_checkpoint(tiny_model, recast):
    root = tiny_model("llama")
    norm = Checkpoint.open(root).read([NORM])[NORM]
    mixed = Checkpoint.open(recast(root, torch.float16, {NORM: norm}))
    with pytest.raises(InputError, match="mixes float16 and float32"):
        Caster("auto", mixed)
    assert Caster("bfloat16", mixed).dtype == torch.bfloat16


def test_auto_makes_one_dtype_of_bfloat16_and_float32(tiny_model, recast):
    root = tiny_model("llama")
    norm = Checkpoint.open(root).read([NORM])[NORM]
    assert Caster("auto", Checkpoint.open(recast(root, torch.bfloat16, {NORM: norm}))).dtype == torch.bfloat16


def test_scales_have_to_be_exact_in_the_served_dtype(tiny_model):
    caster = Caster("auto", Checkpoint.open(tiny_model("llama")))
    codes = torch.zeros(2, 64, dtype=torch.int8)
    caster.check_scales(NORM, QuantizedWeight(codes, torch.tensor([[1.0], [2.0**-9]]), None, Scheme(4, 64)))
    with pytest.raises(InputError, match="not exact in bfloat16") as caught:
        caster.check_scales(NORM, QuantizedWeight(codes, torch.tensor([[1.0], [1.001]]), None, Scheme(4, 64)))
    assert "dtype=float16" in caught.value.hint


ROPES = {
    "default": {"rope_type": "default", "rope_theta": 5000.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


@pytest.mark.parametrize("kind", ROPES)
def test_config_speaks_to_older_and_newer_readers(tiny_model, tmp_path, kind):
    from transformers import AutoConfig

    checkpoint = Checkpoint.open(tiny_model("llama", tied=False, rope_parameters=ROPES[kind]))
    config = served_config(checkpoint, torch.float16)
    assert config["dtype"] == config["torch_dtype"] == "float16"
    assert config["rope_theta"] == 5000.0
    scaling = {key: value for key, value in ROPES[kind].items() if key != "rope_theta"}
    assert config["rope_scaling"] == (None if kind == "default" else scaling)
    assert config["tie_word_embeddings"] is False
    (tmp_path / "config.json").write_text(json.dumps(config))
    opened = AutoConfig.from_pretrained(tmp_path)
    assert opened.rope_parameters == ROPES[kind]
    assert opened.dtype == torch.float16
