"""Folders that leave something to decide: each is read as transformers reads it, and it is said."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError
from compressor.shards import INDEX, SINGLE_SHARD

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


def change(root, edit):
    tensors = load_file(root / SINGLE_SHARD)
    edit(tensors)
    save_file(tensors, root / SINGLE_SHARD, metadata={"format": "pt"})


def split(root, *parts):
    """Write tensors as shards with an index; of a tensor that several hold, the index names the first."""
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(part, root / name, metadata={"format": "pt"})
        weight_map = dict.fromkeys(part, name) | weight_map
    (root / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def logits_of(root):
    """What transformers computes, and what our decoder does."""
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(0, 250, 10).view(1, -1)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)(tokens).logits
    decoder = Decoder(Checkpoint.open(root))
    return theirs, decoder.final_states(tokens) @ decoder.head().T


def assert_same_logits(root):
    theirs, ours = logits_of(root)
    assert torch.allclose(theirs, ours, atol=1e-5)


# -- a head that config.json ties ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_with_values_of_its_own_is_not_tied(tiny_model, family):
    root = tiny_model(family)
    head = torch.linspace(-1, 1, 288 * 64).view(288, 64)
    change(root, lambda tensors: tensors.update({HEAD: head}))
    checkpoint = Checkpoint.open(root)
    assert torch.equal(checkpoint.block("head").weights[HEAD], head)
    assert checkpoint.config["tie_word_embeddings"] is False
    assert "lm_head.weight holds other values" in checkpoint.notes[0]
    assert_same_logits(root)


def test_a_copy_of_a_tied_head_is_left_out(tiny_model):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors.update({HEAD: tensors[TABLE].clone()}))
    checkpoint = Checkpoint.open(root)
    assert checkpoint.architecture.tied_embeddings
    assert list(checkpoint.block("head").weights) == ["model.norm.weight"]
    assert checkpoint.notes == ()
    assert_same_logits(root)


def test_one_other_value_at_the_end_unties(tiny_model, monkeypatch):
    monkeypatch.setattr("compressor.shards.ELEMENTS_AT_ONCE", 1000)
    root = tiny_model("llama")

    def add(tensors):
        tensors[HEAD] = tensors[TABLE].clone()
        tensors[HEAD][-1, -1] += 1

    change(root, add)
    assert not Checkpoint.open(root).architecture.tied_embeddings


def test_a_tied_table_may_be_stored_as_the_head(tiny_model):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors.update({HEAD: tensors.pop(TABLE)}))
    assert list(Checkpoint.open(root).block("embedding").weights) == [TABLE]
    assert_same_logits(root)


# -- files that say it twice --------------------------------------------------------------------------------------


def test_a_whole_file_goes_before_an_index_and_its_shards(tiny_model):
    root = tiny_model("llama")
    tensors = load_file(root / SINGLE_SHARD)
    split(root, {name: 2 * tensor for name, tensor in tensors.items()})
    checkpoint = Checkpoint.open(root)
    assert torch.equal(checkpoint.read([UP])[UP], tensors[UP])
    assert "left aside: model-00001-of-00001.safetensors, model.safetensors.index.json" in checkpoint.notes[0]
    assert_same_logits(root)


def test_an_index_whose_shards_are_gone_beside_a_whole_file(tiny_model):
    root = tiny_model("llama")
    (root / INDEX).write_text(json.dumps({"weight_map": {UP: "model-00001-of-00002.safetensors"}}))
    assert Checkpoint.open(root).notes == (
        "the weights are those of model.safetensors, as transformers takes them; left aside: "
        "model.safetensors.index.json",
    )


def test_a_tensor_in_two_shards_with_the_same_values(tiny_model):
    root = tiny_model("llama")
    tensors = load_file(root / SINGLE_SHARD)
    (root / SINGLE_SHARD).unlink()
    split(root, tensors, {UP: tensors[UP], NORM: tensors.pop(NORM)})
    checkpoint = Checkpoint.open(root)
    assert torch.equal(checkpoint.read([UP])[UP], tensors[UP])
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert checkpoint.notes == (f"{UP} lies in {first} and in {second}, with the same values",)
    assert_same_logits(root)


def test_a_tensor_in_two_shards_with_different_values_is_refused(tiny_model):
    root = tiny_model("llama")
    tensors = load_file(root / SINGLE_SHARD)
    (root / SINGLE_SHARD).unlink()
    split(root, tensors, {UP: 2 * tensors[UP], NORM: tensors.pop(NORM)})
    with pytest.raises(InputError, match=r"up_proj.*two different values") as caught:
        Checkpoint.open(root)
    assert "out of date" in caught.value.hint


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("model."),
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: name.replace(".layers.1.", ".layers.1._orig_mod."),
        lambda name: f"language_model.{name}",
        lambda name: f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name,
    ],
    ids=["base model", "compiled", "parallel", "compiled blocks", "part of a larger one", "newer spelling"],
)
def test_names_that_a_wrapper_left_behind(tiny_model, rename):
    root = tiny_model("llama", tied=False)
    tensors = load_file(root / SINGLE_SHARD)
    save_file({rename(name): tensor for name, tensor in tensors.items()}, root / SINGLE_SHARD)
    checkpoint = Checkpoint.open(root)
    assert checkpoint.tensors.keys() == tensors.keys()
    assert torch.equal(checkpoint.block("layers.1").weights[UP], tensors[UP])
    assert f"is read as {next(name for name in checkpoint.tensors if rename(name) != name)}" in checkpoint.notes[0]


def test_two_names_of_one_parameter(tiny_model):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors.update({f"_orig_mod.{UP}": tensors[UP] + 1}))
    with pytest.raises(InputError, match=r"_orig_mod.*two different values"):
        Checkpoint.open(root)
    change(root, lambda tensors: tensors.update({f"_orig_mod.{UP}": tensors[UP].clone()}))
    assert Checkpoint.open(root).read([UP])[UP].shape == (128, 64)


# -- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_matrix_of_one_value_is_refused_when_it_is_read(tiny_model, value):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors[UP].fill_(value))
    checkpoint = Checkpoint.open(root)
    checkpoint.block("layers.0")
    with pytest.raises(InputError, match=f"all values of tensor {UP} are {value:g}"):
        checkpoint.block("layers.1")


def test_rows_of_zeros_and_constant_norms_are_fine(tiny_model):
    root = tiny_model("llama")

    def edit(tensors):
        tensors[UP][:-1] = 0
        tensors[NORM].fill_(1)

    change(root, edit)
    for block in Checkpoint.open(root).blocks():
        assert block.weights


@pytest.mark.parametrize("ending", ["inv_freq", "cos_cached", "sin_cached"])
def test_rotary_tables_are_ignored(tiny_model, ending):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors.update({f"model.layers.0.self_attn.rotary_emb.{ending}": torch.ones(512, 16)}))
    checkpoint = Checkpoint.open(root)
    assert not any("rotary" in name for name in checkpoint.tensors)
    assert checkpoint.notes == ()


@pytest.mark.parametrize("names", [[NORM], [NORM, TABLE]])
def test_float64_is_read_as_float32(tiny_model, tmp_path, names):
    root = tiny_model("llama")
    values = {name: load_file(root / SINGLE_SHARD)[name].double() / 3 for name in names}
    change(root, lambda tensors: tensors.update(values))
    checkpoint = Checkpoint.open(root)
    assert checkpoint.dtype == torch.float32
    for name in names:
        assert torch.equal(checkpoint.read([name])[name], values[name].float())
        assert torch.equal(torch.cat(list(checkpoint.rows(name, 7))), values[name].float())
    assert f"{len(names)} tensors are stored in float64 and read as float32" in checkpoint.notes[0]
    copy = checkpoint.rewrite(tmp_path / "copy", lambda block: block, {})
    assert copy.notes == ()
    assert_same_logits(root)
