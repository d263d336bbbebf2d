"""Adapters that were trained after tokens were added: the merge has their vocabulary, whatever the base had."""

import warnings
from copy import deepcopy  # peft changes the lists that it is given

import pytest
import torch
from merging import configure, half, merge, merged_by_peft, weights_of
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.registry import make_pass

TENSORS = "adapter_model.safetensors"
TOKENS = torch.randint(0, 296, (2, 32), generator=torch.Generator().manual_seed(0))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BOTH = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
KINDS = {
    "modules to save": BOTH,
    "modules to save, tied": BOTH | {"ensure_weight_tying": True},
    "embedding to save": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "new tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [288, 290, 3]},
    "new tokens by module": {"target_modules": ["q_proj"], "trainable_token_indices": {"model.embed_tokens": [289]}},
}


def larger_model(base, rows):
    """The base with so many rows in its tables, the same ones every time."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model.resize_token_embeddings(rows, mean_resizing=False)
    return model


@pytest.fixture
def resized(tiny_model, tmp_path):
    """A factory: a base, and the same as `resize_token_embeddings` leaves it."""

    def make(rows=296, tied=False):
        base = half(tiny_model("llama", tied=tied))
        larger_model(base, rows).save_pretrained(tmp_path / f"resized-{rows}")
        return base, tmp_path / f"resized-{rows}"

    return make


def saved(base, out, rows=296, **config):
    """An adapter for the resized base, as peft saves it, which looks at how many tokens the base had."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        model = larger_model(base, rows).float()
        torch.manual_seed(1)
        peft = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM", **deepcopy(config)))
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        peft.save_pretrained(out)
    return out


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_added_tokens_are_merged_as_peft_does_on_either_base(resized, tmp_path, kind, tied):
    base, larger = resized(tied=tied)
    adapter = saved(base, tmp_path / "lora", **KINDS[kind])
    expected = merged_by_peft(larger, [adapter], torch.bfloat16)
    for root, name in ((base, "from base"), (larger, "from resized")):
        result, notes = merge(root, tmp_path / name, adapter=[str(adapter)])
        ours = weights_of(result)
        assert [key for key in ours if not torch.equal(ours[key], expected[key])] == []
        assert (HEAD in ours) == (not torch.equal(expected[EMBEDDING], expected[HEAD]))
        assert result.architecture.vocab_size == len(ours[EMBEDDING]) == 296
        grew = "the vocabulary goes from 288 to 296 tokens, as the adapter was trained"
        assert (grew in notes) == (root == base)


@pytest.mark.parametrize("rows", [296, 272])
def test_the_logits_are_those_of_merge_and_unload(resized, tmp_path, rows):
    base, larger = resized(rows)
    adapter = saved(base, tmp_path / "lora", rows, **BOTH)
    result, _ = merge(base, tmp_path / "out", adapter=[str(adapter)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(larger), adapter).merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(result.root)
    tokens = TOKENS % rows
    assert torch.equal(ours(tokens).logits, merged(tokens).logits)
    assert ours.config.vocab_size == rows


def test_the_original_has_the_new_rows_too(resized, tmp_path):
    base, _ = resized()
    one = make_pass("lora-merge", {"adapter": [str(saved(base, tmp_path / "lora", **BOTH))]})
    checkpoint = Checkpoint.open(base)
    original = one.original(checkpoint)
    assert original.architecture == one.reshaped(checkpoint.architecture)
    assert original.block("embedding").weights[EMBEDDING].shape == (296, 64)
    assert original.config["vocab_size"] == 296


def test_a_change_of_tables_without_their_new_rows(resized, tmp_path):
    base, _ = resized()
    adapter = saved(base, tmp_path / "lora", target_modules=["lm_head", "q_proj"])
    tensors = {key: tensor for key, tensor in load_file(adapter / TENSORS).items() if "lora" in key}
    save_file(tensors, adapter / TENSORS)
    with pytest.raises(
        InputError, match=r"with 296 tokens, and the model has 288; .* new rows of model\.embed"
    ) as raised:
        merge(base, tmp_path / "out", adapter=[str(adapter)])
    assert "resize_token_embeddings" in raised.value.hint


def test_the_name_that_peft_reads_counts(resized, tmp_path):
    base, _ = resized()
    adapter = saved(base, tmp_path / "lora", **BOTH)
    tensors = load_file(adapter / TENSORS)
    tensors["base_model.model.lm_head.modules_to_save.weight"] *= 2
    tensors["base_model.model.lm_head.original_module.weight"] *= float("nan")
    save_file(tensors, adapter / TENSORS)
    result, _ = merge(base, tmp_path / "out", adapter=[str(adapter)])
    expected = tensors["base_model.model.lm_head.weight"].bfloat16()
    assert torch.equal(weights_of(result)[HEAD], expected)


def test_adapters_for_two_vocabularies(resized, tmp_path):
    base, _ = resized()
    first = saved(base, tmp_path / "a", **BOTH)
    second = saved(base, tmp_path / "b", 288, target_modules=["lm_head"])
    with pytest.raises(InputError, match=r"do not fit one vocabulary: \S+ for 288 tokens and \S+ for 296 tokens"):
        merge(base, tmp_path / "out", adapter=[str(first), str(second)])


def test_a_trained_token_outside_of_the_table(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapter = adapter_of(root, LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 287]))
    configure(adapter, trainable_token_indices=[3, 288])
    with pytest.raises(
        InputError, match=r"trained token 288 of model\.embed_tokens, which has 288 rows here"
    ) as raised:
        merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert "resize_token_embeddings" in raised.value.hint
    configure(adapter, trainable_token_indices=[3])
    with pytest.raises(InputError, match=r"has 2 trained rows of model\.embed_tokens, and .* names 1 tokens"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])
