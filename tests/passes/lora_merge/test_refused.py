"""Adapters that do not fit are refused before any work."""

import pytest
from merging import configure, merge
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.quantized import Scheme
from compressor.registry import make_pass

TENSORS = "adapter_model.safetensors"
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


def test_an_adapter_for_other_names(tiny_model, adapter_of, tmp_path):
    adapter = adapter_of(tiny_model("llama", num_hidden_layers=3), LORA)
    with pytest.raises(InputError, match=r"model\.layers\.2\.\S+ \(and 6 more\), which the model lacks"):
        merge(tiny_model("llama"), tmp_path / "out", adapter=[str(adapter)])
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_other_shapes(tiny_model, adapter_of, tmp_path):
    adapter = adapter_of(tiny_model("llama", intermediate_size=96), LoraConfig(r=4, target_modules=["up_proj"]))
    with pytest.raises(InputError, match=r"up_proj\.weight is 128 × 64 here and 96 × 64 there \(and 1 more\)"):
        merge(tiny_model("llama"), tmp_path / "out", adapter=[str(adapter)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_adapter_with_nan(tiny_model, adapter_of, tmp_path, bad):
    root = tiny_model("llama")
    adapter = adapter_of(root, LORA)
    tensors = load_file(adapter / TENSORS)
    next(iter(tensors.values()))[0, 0] = bad
    save_file(tensors, adapter / TENSORS)
    with pytest.raises(InputError, match=r"lora_A\.weight holds (NaN|Inf)"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])


def test_half_an_adapter(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapter = adapter_of(root, LORA)
    tensors = load_file(adapter / TENSORS)
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
    save_file(tensors, adapter / TENSORS)
    with pytest.raises(InputError, match=r"of model\.layers\.0\.mlp\.up_proj it has only lora_B"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])


def test_a_rank_that_is_not_the_configured_one(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapter = adapter_of(root, LORA)
    configure(adapter, r=8)
    with pytest.raises(InputError, match=r"says rank 8 for .*, whose tensors have 4"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])


def test_a_quantized_base(tiny_model, adapter_of):
    root = tiny_model("llama")
    one = make_pass("lora-merge", {"adapter": [str(adapter_of(root, LORA))]})
    with pytest.raises(InputError, match="merged into float weights") as raised:
        one.plan(Checkpoint.open(root).architecture, {"lm_head": Scheme(4, 32)})
    assert "Merge into the float model" in raised.value.hint


def test_it_needs_an_adapter(tiny_model, tmp_path):
    with pytest.raises(InputError, match="needs an adapter"):
        merge(tiny_model("llama"), tmp_path / "out")


def test_a_base_with_nan(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapter = adapter_of(root, LORA)
    tensors = load_file(root / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, root / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert not [path for path in tmp_path.iterdir() if "out" in path.name], "nothing half-written is left"
