"""What a merge is known by: the original it is compared with, its key and its notes on the base."""

import json
import re

import pytest
import torch
from merging import configure, half, merge, weights_of
from peft import LoraConfig

from compressor.checkpoint import Checkpoint
from compressor.registry import make_pass

EMBEDDING = "model.embed_tokens.weight"
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


def test_the_original_is_the_fine_tuned_model_not_rounded(tiny_model, adapter_of, tmp_path):
    root = half(tiny_model("llama", tied=True))
    adapter = adapter_of(root, LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]))
    checkpoint = Checkpoint.open(root)
    one = make_pass("lora-merge", {"adapter": [str(adapter)]})
    original = one.original(checkpoint)
    exact, rounded = weights_of(original), weights_of(merge(root, tmp_path / "out", adapter=[str(adapter)])[0])
    assert exact.keys() == rounded.keys()
    for name, weight in rounded.items():
        assert torch.equal(exact[name].to(torch.bfloat16), weight)
    assert exact[EMBEDDING].dtype == torch.float32
    assert original.digest not in (checkpoint.digest, one.original(checkpoint).base.digest)


def test_float32_is_not_rounded(tiny_model, adapter_of, tmp_path):
    root = half(tiny_model("llama", tied=False))
    adapter = adapter_of(root, LORA)
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)], dtype="float32")
    exact = weights_of(make_pass("lora-merge", {"adapter": [str(adapter)]}).original(Checkpoint.open(root)))
    assert result.dtype == torch.float32
    assert all(torch.equal(weight, exact[name].float()) for name, weight in weights_of(result).items())


def test_the_key_is_that_of_the_content(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    first, second = adapter_of(root, LORA, "a"), adapter_of(root, LORA, "b")
    other = adapter_of(root, LORA, "c", seed=1)
    keys = [make_pass("lora-merge", {"adapter": [str(one)]}).key for one in (first, second, other)]
    assert keys[0] == keys[1] != keys[2]
    assert make_pass("lora-merge", {"adapter": [str(first)], "weights": [0.5]}).key not in keys
    result, _ = merge(root, tmp_path / "out", adapter=[str(first)])
    step = json.loads((result.root / "llmc-step.json").read_text())
    assert len(step["adapters"][0]["digest"]) == 64


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("someone/model", "which by its name is this model"),
        ("C:\\models\\MODEL\\", "which by its name is this model"),
        ("meta-llama/Llama-3.1-8B", "WARNING: .* another model than model"),
        (None, "does not say which model"),
    ],
)
def test_the_ledger_says_which_base(tiny_model, adapter_of, tmp_path, base, says):
    root = tiny_model("llama")
    adapter = adapter_of(root, LORA)
    configure(adapter, base_model_name_or_path=base, revision="abc")
    _, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    (adapter / "README.md").unlink()
    assert re.search(says, notes[0])
    assert base is None or "at revision abc" in notes[0]
    assert "does not record whether its base was quantized" in notes[1]


@pytest.mark.parametrize("where", ["name", "card"])
def test_the_ledger_says_that_the_base_was_quantized(tiny_model, adapter_of, tmp_path, where):
    root = tiny_model("llama")
    adapter = adapter_of(root, LORA)
    configure(adapter, base_model_name_or_path="unsloth/model-bnb-4bit" if where == "name" else "someone/model")
    if where == "card":
        (adapter / "README.md").write_text(
            "The following `bitsandbytes` quantization config was used during training:\n"
        )
    _, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert any(note.startswith("WARNING") and "QLoRA" in note for note in notes)
