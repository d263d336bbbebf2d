"""Merged checkpoints against peft's own `merge_and_unload`, over the kinds of adapters that peft makes."""

import pytest
import torch
from merging import half, merge, merged_by_peft, weights_of
from peft import LoHaConfig, LoKrConfig, LoraConfig
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.families import FAMILIES
from passes.lora_delta import Change, LowRank

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDING = "model.embed_tokens.weight"
TENSORS = "adapter_model.safetensors"


KINDS = {
    "lora": LoraConfig(r=4, lora_alpha=8, target_modules=ALL),
    "some layers": LoraConfig(r=4, target_modules=r".*layers\.1\.mlp\.(up|down)_proj"),
    "rslora": LoraConfig(r=4, lora_alpha=3, use_rslora=True, target_modules="all-linear"),
    "dora": LoraConfig(r=4, lora_alpha=8, use_dora=True, target_modules=ALL),
    "dora and rslora": LoraConfig(r=4, use_dora=True, use_rslora=True, target_modules=["q_proj", "down_proj"]),
    "patterns": LoraConfig(
        r=4, lora_alpha=8, target_modules=ALL, rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.up_proj": 8},
        alpha_pattern={"k_proj": 3, "model.layers.0.self_attn.q_proj": 5},
    ),
    "fan in fan out": LoraConfig(r=4, target_modules=["q_proj", "o_proj"], fan_in_fan_out=True),
    "modules to save": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens", "norm"]),
    "embedding": LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "q_proj"]),
    "embedding and head": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]),
    "new tokens": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 200]),
    "tokens by module": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [7, 1]}),
    "minor components": LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="mica"),
    "loha": LoHaConfig(r=4, alpha=8, target_modules=ALL, rank_pattern={"q_proj": 2}),
    "lokr": LoKrConfig(r=2, alpha=4, target_modules=ALL),
    "lokr, both decomposed": LoKrConfig(r=1, alpha=4, target_modules=ALL, decompose_both=True, decompose_factor=4),
}  # fmt: skip


CASES = [(kind, torch.bfloat16) for kind in KINDS if kind != "minor components"]
CASES += [("lora", torch.float32), ("lora", torch.float16), ("dora", torch.float16), ("embedding", torch.float32)]
CASES += [("minor components", torch.float32)]  # in 16 bits peft rounds its change before it adds it


@pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)
def test_every_kind_is_merged_bit_for_bit_as_peft_does(tiny_model, adapter_of, tmp_path, kind, dtype):
    root = half(tiny_model("llama", tied=False), dtype)
    adapter = adapter_of(root, KINDS[kind])
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    ours, before, expected = (
        weights_of(result),
        weights_of(Checkpoint.open(root)),
        merged_by_peft(root, [adapter], dtype),
    )
    if "embedding" in kind:  # peft rounds the change of an embedding before it adds it; here it is rounded once
        expected[EMBEDDING] = merged_by_peft(root, [adapter], torch.float32)[EMBEDDING].to(dtype)
    assert ours.keys() == expected.keys()
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []
    assert [name for name in ours if not torch.equal(ours[name], before[name])], "something was merged"
    assert result.dtype == dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tiny_model, adapter_of, tmp_path, family):
    root = half(tiny_model(family))
    adapter = adapter_of(root, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    ours, expected = weights_of(result), merged_by_peft(root, [adapter], torch.bfloat16)
    assert [name for name in ours if not torch.equal(ours[name], _in_memory(expected[name], name, result))] == []
    before = weights_of(Checkpoint.open(root))
    changed = {name for name in ours if not torch.equal(ours[name], before[name])}
    assert changed == {f"{name}.weight" for name in result.architecture.linears()} - {"lm_head.weight"}


def test_transposed_weights_with_magnitudes_and_trained_whole(tiny_model, adapter_of, tmp_path):
    root = half(tiny_model("gpt2"))
    adapter = adapter_of(root, LoraConfig(r=4, use_dora=True, target_modules=["c_fc"], modules_to_save=["c_attn"]))
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    ours, expected = weights_of(result), merged_by_peft(root, [adapter], torch.bfloat16)
    assert [name for name in ours if not torch.equal(ours[name], _in_memory(expected[name], name, result))] == []


def _in_memory(weight, name, checkpoint):
    return weight.T if checkpoint.architecture.is_transposed(name) else weight


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases(tiny_model, adapter_of, tmp_path, bias):
    root = half(tiny_model("qwen2", tied=False))
    adapter = adapter_of(root, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], bias=bias))
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    expected, ours = merged_by_peft(root, [adapter], torch.bfloat16), weights_of(result)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []
    changed = weights_of(Checkpoint.open(root))["model.layers.0.self_attn.k_proj.bias"]
    assert torch.equal(ours["model.layers.0.self_attn.k_proj.bias"], changed) == (bias == "lora_only")


def test_a_bias_of_the_low_rank_product(tiny_model, adapter_of, tmp_path):
    root = half(tiny_model("qwen2", tied=False))
    adapter = adapter_of(root, LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], lora_bias=True))
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    expected, ours = merged_by_peft(root, [adapter], torch.bfloat16), weights_of(result)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


def test_dora_on_an_embedding_to_what_sums_in_another_order_leave(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama", tied=False)
    adapter = adapter_of(root, LoraConfig(r=4, use_dora=True, target_modules=["embed_tokens", "q_proj"]))
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    expected, ours = merged_by_peft(root, [adapter], torch.float32), weights_of(result)
    torch.testing.assert_close(ours[EMBEDDING], expected[EMBEDDING], rtol=1e-6, atol=1e-7)


def test_a_module_that_was_not_trained_stays_as_it_is(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama", tied=False)
    adapter = adapter_of(root, KINDS["lora"])
    untrained = {key: 0 * x if "q_proj.lora_B" in key else x for key, x in load_file(adapter / TENSORS).items()}
    save_file(untrained, adapter / TENSORS)
    ours = weights_of(merge(root, tmp_path / "out", adapter=[str(adapter)])[0])
    expected = merged_by_peft(root, [adapter], torch.float32)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_adapters_in_16_bits_are_computed_with_in_float32_as_peft_loads_them(tiny_model, adapter_of, tmp_path, dtype):
    root = half(tiny_model("llama", tied=False))
    adapter = adapter_of(root, KINDS["dora"], dtype=dtype)
    assert {tensor.dtype for tensor in load_file(adapter / TENSORS).values()} == {dtype}
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    expected, ours = merged_by_peft(root, [adapter], torch.bfloat16), weights_of(result)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


def test_weights_that_are_merged_in_parts_have_the_same_bits(tiny_model, adapter_of, tmp_path, monkeypatch):
    root = half(tiny_model("llama", tied=False))
    adapters = [
        adapter_of(root, KINDS[kind], name=kind)
        for kind in ("dora", "embedding", "new tokens", "modules to save", "lokr", "loha")
    ]
    whole = [weights_of(merge(root, tmp_path / f"{one.name}-whole", adapter=[str(one)])[0]) for one in adapters]
    monkeypatch.setattr("passes.lora_delta.ELEMENTS_AT_ONCE", 33 * 64)
    monkeypatch.setattr("passes.lora_stream.ELEMENTS_AT_ONCE", 40 * 64)
    parts = [weights_of(merge(root, tmp_path / f"{one.name}-parts", adapter=[str(one)])[0]) for one in adapters]
    for expected, found in zip(whole, parts, strict=True):
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_no_part_has_so_few_rows_that_its_product_is_summed_in_another_order(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randn(shape, generator=generator) for shape in ((131, 16), (16, 576)))
    weight = torch.randn((131, 576), generator=generator)
    expected = weight + (b @ a) * 1.5
    monkeypatch.setattr("passes.lora_delta.ELEMENTS_AT_ONCE", 1)
    assert torch.equal(Change(deltas=[LowRank(1.5, b, a)]).apply(weight, torch.float32), expected)
