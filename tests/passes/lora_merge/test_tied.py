"""An embedding that the head shares: what was trained is what comes out, tied or not."""

import warnings

import pytest
import torch
from merging import half, merge, merged_by_peft, weights_of
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

TOKENS = torch.randint(0, 256, (2, 32), generator=torch.Generator().manual_seed(0))
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


TIED = {
    "embedding": LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
    "head": LoraConfig(r=4, target_modules=["lm_head", "q_proj"]),
    "embedding and head": LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"]),
}


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


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
    adapter = adapter_of(root, LORA)
    result, _ = merge(root, tmp_path / "out", adapter=[str(adapter)])
    assert result.architecture.tied_embeddings
    expected, ours = merged_by_peft(root, [adapter], torch.bfloat16), weights_of(result)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []
