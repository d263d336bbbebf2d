"""Merged checkpoints against peft's own `merge_and_unload`, over the kinds of adapters that peft makes."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.families import FAMILIES
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from compressor.registry import make_pass

TOKENS = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TENSORS = "adapter_model.safetensors"


def merge(root, out, **options):
    one = make_pass("lora-merge", options)
    checkpoint = Checkpoint.open(root)
    one.plan(checkpoint.architecture, checkpoint.schemes)
    notes = []
    result = one.apply(checkpoint, PassContext(Path(out), {"pass": "lora-merge"}, None, 0, lambda *_: None, notes))
    return result, notes


def weights_of(checkpoint):
    return {name: weight for block in checkpoint.blocks() for name, weight in block.weights.items()}


def merged_by_peft(root, adapters, dtype, weights=None, combination=None, untie=False):
    """Parameters of the model as peft merges it, a copy of the embedding in a tied head if asked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(
            root, dtype=dtype, **({"tie_word_embeddings": False} if untie else {})
        )
        if untie:
            model.lm_head.weight.data = model.model.embed_tokens.weight.data.clone()
        peft = PeftModel.from_pretrained(model, adapters[0], adapter_name="a0")
        for number, adapter in enumerate(adapters[1:], start=1):
            peft.load_adapter(adapter, adapter_name=f"a{number}")
        if combination is not None:
            peft.add_weighted_adapter([f"a{n}" for n in range(len(adapters))], weights, "all", combination)
            peft.set_adapter("all")
        return {name: tensor.clone() for name, tensor in peft.merge_and_unload().state_dict().items()}


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def half(root, dtype=torch.bfloat16):
    """The model folder with its tensors in 16 bits."""
    state = load_file(root / "model.safetensors")
    save_file({name: tensor.to(dtype) for name, tensor in state.items()}, root / "model.safetensors", {"format": "pt"})
    config = json.loads((root / "config.json").read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    (root / "config.json").write_text(json.dumps(config))
    return root


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
    adapters = [adapter_of(root, KINDS[kind], name=kind) for kind in ("dora", "embedding", "lokr", "loha")]
    whole = [weights_of(merge(root, tmp_path / f"{one.name}-whole", adapter=[str(one)])[0]) for one in adapters]
    monkeypatch.setattr("passes.lora_delta.ELEMENTS_AT_ONCE", 7 * 64)
    parts = [weights_of(merge(root, tmp_path / f"{one.name}-parts", adapter=[str(one)])[0]) for one in adapters]
    for expected, found in zip(whole, parts, strict=True):
        assert [name for name in found if not torch.equal(found[name], expected[name])] == []


# ---- several adapters


@pytest.mark.parametrize("combination", ["cat", "linear"])
def test_several_adapters_with_weights(tiny_model, adapter_of, tmp_path, combination):
    root = tiny_model("llama", tied=False)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj", "embed_tokens"])
    other = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj", "embed_tokens"])
    adapters = [adapter_of(root, config, "a"), adapter_of(root, other, "b", seed=1)]
    options = {"adapter": [str(one) for one in adapters], "weights": [0.75, -0.5], "combination": combination}
    result, _ = merge(root, tmp_path / "out", **options)
    expected = merged_by_peft(root, adapters, torch.float32, [0.75, -0.5], combination)
    ours = weights_of(result)
    differing = [name for name in ours if not torch.equal(ours[name], expected[name])]
    # What one adapter alone changes is not cut into roots here, which is rounding in float32.
    assert all("down_proj" in name or "up_proj" in name for name in differing)
    for name in differing:
        torch.testing.assert_close(ours[name], expected[name])


def test_the_sum_of_unlike_adapters(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama", tied=False)
    adapters = [adapter_of(root, KINDS[kind], name=kind) for kind in ("lora", "loha", "lokr")]
    result, _ = merge(root, tmp_path / "out", adapter=[str(one) for one in adapters], weights=[1, 0.5, -2])
    base, ours = weights_of(Checkpoint.open(root)), weights_of(result)
    alone = [weights_of(merge(root, tmp_path / f"{one.name}-alone", adapter=[str(one)])[0]) for one in adapters]
    name = "model.layers.1.mlp.down_proj.weight"
    changes = [weight * (merged[name] - base[name]) for merged, weight in zip(alone, (1, 0.5, -2), strict=True)]
    torch.testing.assert_close(ours[name], base[name] + sum(changes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "options", "says"),
    [
        (("dora", "dora"), {}, "the DoRA magnitudes of"),
        (("modules to save", "modules to save"), {}, "the newly trained values of"),
        (("dora",), {"weights": [0.5]}, "cannot be weighted"),
        (("modules to save",), {"weights": [2]}, "cannot be weighted"),
        (("lora", "patterns"), {"combination": "linear"}, "differ in rank"),
        (("lora", "loha"), {"combination": "linear"}, "differ in rank or kind"),
        (("lora", "lora"), {"weights": [1]}, "2 adapters and 1 weights"),
    ],
)
def test_what_cannot_be_combined(tiny_model, adapter_of, tmp_path, kinds, options, says):
    root = tiny_model("llama", tied=False)
    adapters = [str(adapter_of(root, KINDS[kind], name=f"{n}")) for n, kind in enumerate(kinds)]
    with pytest.raises(InputError, match=says):
        merge(root, tmp_path / "out", adapter=adapters, **options)


# ---- tied weights


TIED = {
    "embedding": LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
    "head": LoraConfig(r=4, target_modules=["lm_head", "q_proj"]),
    "embedding and head": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]),
}


@pytest.mark.parametrize("which", TIED)
def test_a_change_of_half_a_tied_pair_unties_it_as_it_was_trained(tiny_model, adapter_of, tmp_path, which):
    root = tiny_model("llama", tied=True)
    adapter = adapter_of(root, TIED[which])
    result, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root), adapter)
        expected = logits(trained)
        torch.testing.assert_close(
            logits(AutoModelForCausalLM.from_pretrained(result.root)), expected, rtol=1e-4, atol=1e-4
        )
        assert (logits(trained.merge_and_unload()) - expected).abs().max() > 0.1, "peft's merge is another model"
    assert any("lm_head is untied" in note and "not what was trained" in note for note in notes)
    assert not result.architecture.tied_embeddings


def test_newly_trained_halves_untie_as_in_peft(tiny_model, adapter_of, tmp_path):
    root = half(tiny_model("llama", tied=True))
    adapter = adapter_of(root, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    result, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    expected, ours = merged_by_peft(root, [adapter], torch.bfloat16), weights_of(result)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []
    assert HEAD in ours and any("lm_head is untied" in note for note in notes)


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True),
        LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 200]),
    ],
    ids=["lora", "modules to save", "new tokens"],
)
def test_a_pair_that_was_trained_tied_stays_tied(tiny_model, adapter_of, tmp_path, config):
    root = half(tiny_model("llama", tied=True))
    adapter = adapter_of(root, config)
    result, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert result.architecture.tied_embeddings and HEAD not in weights_of(result)
    expected = merged_by_peft(root, [adapter], torch.bfloat16)
    if config.target_modules == {"q_proj"}:
        assert torch.equal(weights_of(result)[EMBEDDING], expected[EMBEDDING])
    assert any("tied" in note for note in notes)


def test_a_tied_model_whose_pair_is_not_touched_stays_tied(tiny_model, adapter_of, tmp_path):
    root = half(tiny_model("qwen3", tied=True))
    adapter = adapter_of(root, KINDS["lora"])
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert result.architecture.tied_embeddings
    expected, ours = merged_by_peft(root, [adapter], torch.bfloat16), weights_of(result)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []


# ---- the original, and the dtype


def test_the_original_is_the_fine_tuned_model_not_rounded(tiny_model, adapter_of, tmp_path):
    root = half(tiny_model("llama", tied=True))
    adapter = adapter_of(root, TIED["embedding"])
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
    adapter = adapter_of(root, KINDS["lora"])
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)], dtype="float32")
    exact = weights_of(make_pass("lora-merge", {"adapter": [str(adapter)]}).original(Checkpoint.open(root)))
    assert result.dtype == torch.float32
    assert all(torch.equal(weight, exact[name].float()) for name, weight in weights_of(result).items())


# ---- identity, and what is known of the base


def test_the_key_is_that_of_the_content(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    first, second = adapter_of(root, KINDS["lora"], "a"), adapter_of(root, KINDS["lora"], "b")
    other = adapter_of(root, KINDS["lora"], "c", seed=1)
    keys = [make_pass("lora-merge", {"adapter": [str(one)]}).key for one in (first, second, other)]
    assert keys[0] == keys[1] != keys[2]
    assert make_pass("lora-merge", {"adapter": [str(first)], "weights": [0.5]}).key not in keys
    result, _ = merge(root, tmp_path / "out", adapter=[str(first)])
    step = json.loads((result.root / "llmc-step.json").read_text())
    assert len(step["adapters"][0]["digest"]) == 64


def _configure(adapter, **changed):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


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
    adapter = adapter_of(root, KINDS["lora"])
    _configure(adapter, base_model_name_or_path=base, revision="abc")
    _, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    (adapter / "README.md").unlink()
    import re

    assert re.search(says, notes[0])
    assert base is None or "at revision abc" in notes[0]
    assert "does not record whether its base was quantized" in notes[1]


@pytest.mark.parametrize("where", ["name", "card"])
def test_the_ledger_says_that_the_base_was_quantized(tiny_model, adapter_of, tmp_path, where):
    root = tiny_model("llama")
    adapter = adapter_of(root, KINDS["lora"])
    _configure(adapter, base_model_name_or_path="unsloth/model-bnb-4bit" if where == "name" else "someone/model")
    if where == "card":
        (adapter / "README.md").write_text(
            "The following `bitsandbytes` quantization config was used during training:\n"
        )
    _, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert any(note.startswith("WARNING") and "QLoRA" in note for note in notes)


def test_another_tokenizer_is_told(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapter = adapter_of(root, KINDS["lora"])
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    _, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert any("chat_template.jinja; the base's own is kept" in note for note in notes)


# ---- refused before work


def test_an_adapter_for_other_names(tiny_model, adapter_of, tmp_path):
    adapter = adapter_of(tiny_model("llama", num_hidden_layers=3), KINDS["lora"])
    with pytest.raises(InputError, match=r"model\.layers\.2\.\S+ \(and 6 more\), which the model lacks"):
        merge(tiny_model("llama"), tmp_path / "out", adapter=[str(adapter)])
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_other_shapes(tiny_model, adapter_of, tmp_path):
    adapter = adapter_of(tiny_model("llama", intermediate_size=96), LoraConfig(r=4, target_modules=["up_proj"]))
    with pytest.raises(InputError, match=r"up_proj\.weight is 128 × 64 here and 96 × 64 there \(and 1 more\)"):
        merge(tiny_model("llama"), tmp_path / "out", adapter=[str(adapter)])


def test_an_adapter_with_a_longer_vocabulary(tiny_model, adapter_of, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapter = adapter_of(tiny_model("llama", vocab_size=320), config)
    with pytest.raises(InputError) as raised:
        merge(tiny_model("llama"), tmp_path / "out", adapter=[str(adapter)])
    assert "resize_token_embeddings" in raised.value.hint


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_adapter_with_nan(tiny_model, adapter_of, tmp_path, bad):
    root = tiny_model("llama")
    adapter = adapter_of(root, KINDS["lora"])
    tensors = load_file(adapter / TENSORS)
    next(iter(tensors.values()))[0, 0] = bad
    save_file(tensors, adapter / TENSORS)
    with pytest.raises(InputError, match=r"lora_A\.weight holds (NaN|Inf)"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])


def test_half_an_adapter(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapter = adapter_of(root, KINDS["lora"])
    tensors = load_file(adapter / TENSORS)
    del tensors["base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"]
    save_file(tensors, adapter / TENSORS)
    with pytest.raises(InputError, match=r"of model\.layers\.0\.mlp\.up_proj it has only lora_B"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])


def test_a_rank_that_is_not_the_configured_one(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapter = adapter_of(root, KINDS["lora"])
    _configure(adapter, r=8)
    with pytest.raises(InputError, match=r"says rank 8 for .*, whose tensors have 4"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])


def test_a_quantized_base(tiny_model, adapter_of):
    root = tiny_model("llama")
    one = make_pass("lora-merge", {"adapter": [str(adapter_of(root, KINDS["lora"]))]})
    with pytest.raises(InputError, match="merged into float weights") as raised:
        one.plan(Checkpoint.open(root).architecture, {"lm_head": Scheme(4, 32)})
    assert "Merge into the float model" in raised.value.hint


def test_it_needs_an_adapter(tiny_model, tmp_path):
    with pytest.raises(InputError, match="needs an adapter"):
        merge(tiny_model("llama"), tmp_path / "out")
