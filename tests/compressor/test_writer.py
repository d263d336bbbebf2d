"""Streaming a checkpoint out: whole or not at all, and readable by everyone."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from compressor import writer as writer_module
from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, RunError
from compressor.files import TEMPORARY_PREFIX, digest_files, remove_leftovers
from compressor.shards import INDEX, SINGLE_SHARD, TensorInfo
from compressor.writer import STEP_FILE, ShardWriter


def unchanged(block):
    return block


def everything_in(root: Path):
    return digest_files(root, sorted(path.name for path in root.iterdir()))


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 100_000)


@pytest.mark.parametrize("tied", [True, False])
def test_rewritten_folder_is_the_same_model(tiny_model, tmp_path, small_shards, tied):
    root = tiny_model("llama", tied=tied)
    copy = Checkpoint.open(root).rewrite(tmp_path / "out", unchanged, {"pass": "none"})
    original = AutoModelForCausalLM.from_pretrained(root).state_dict()
    found = AutoModelForCausalLM.from_pretrained(copy.root).state_dict()
    assert found.keys() == original.keys()
    assert all(torch.equal(found[name], original[name]) for name in original)
    told = json.loads((copy.root / STEP_FILE).read_text())
    assert re.fullmatch("[0-9a-f]{64}", told.pop("beside"))  # of the tokenizer's files and the like
    assert told == {"pass": "none", "content": copy.digest}
    assert (
        AutoTokenizer.from_pretrained(copy.root)("a 1")["input_ids"]
        == AutoTokenizer.from_pretrained(root)("a 1")["input_ids"]
    )
    assert (copy.root / "generation_config.json").read_bytes() == (root / "generation_config.json").read_bytes()


def test_index_names_every_tensor_once(tiny_model, tmp_path, small_shards):
    copy = Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "out", unchanged, {})
    index = json.loads((copy.root / INDEX).read_text())
    shards = sorted(copy.root.glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)
    ]
    assert len(shards) > 1
    held = {name: path.name for path in shards for name in load_file(path)}
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == copy.nbytes


def test_one_shard_needs_no_index(tiny_model, tmp_path):
    copy = Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "out", unchanged, {})
    assert (copy.root / SINGLE_SHARD).is_file()
    assert not (copy.root / INDEX).exists()


def test_block_larger_than_a_shard_is_a_shard_of_its_own(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1)
    copy = Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "out", unchanged, {})
    assert len(list(copy.root.glob("*.safetensors"))) == len(copy.block_names)


def test_a_full_shard_is_written_at_once(tmp_path, monkeypatch):
    """Not when the next block comes: a large embedding would lie in memory until then."""
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1000)
    shards = ShardWriter(tmp_path)
    shards.add({"small": torch.zeros(10)})
    assert not list(tmp_path.iterdir())
    shards.add({"large": torch.zeros(1000)})
    assert len(list(tmp_path.iterdir())) == 2


def test_writing_a_head_unties_it(tiny_model, tmp_path):
    def untie(block):
        return block.with_weights({"lm_head.weight": torch.zeros(288, 64)} if block.name == "head" else {})

    copy = Checkpoint.open(tiny_model("llama", tied=True)).rewrite(tmp_path / "out", untie, {})
    assert not copy.architecture.tied_embeddings
    assert AutoModelForCausalLM.from_pretrained(copy.root).lm_head.weight.count_nonzero() == 0


def test_a_transformed_16_bit_model_is_stored_in_float32(tiny_model, tmp_path):
    """A third of a weight is no bfloat16 number: it reaches the next pass unrounded, and transformers as float32."""
    root = tiny_model("qwen2")
    as_16_bit = Checkpoint.open(root).rewrite(tmp_path / "bf16", unchanged, {}, torch.bfloat16)
    assert {info.dtype for info in as_16_bit.tensors.values()} == {torch.bfloat16}

    def third(block):
        return block.with_weights({name: weight.double() / 3 for name, weight in block.weights.items()})

    copy = as_16_bit.rewrite(tmp_path / "float32", third, {}, torch.float32)
    assert {info.dtype for info in copy.tensors.values()} == {torch.float32}
    assert copy.config["dtype"] == "float32"
    model = AutoModelForCausalLM.from_pretrained(copy.root)
    assert model.dtype == torch.float32
    for name, weight in load_file(as_16_bit.root / SINGLE_SHARD).items():
        assert torch.equal(model.state_dict()[name], (weight.double() / 3).float())


def test_a_config_in_the_spelling_of_transformers_4_says_the_new_dtype_only(tiny_model, tmp_path):
    root = tiny_model("llama")
    config = json.loads((root / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (root / "config.json").write_text(json.dumps(config))
    copy = Checkpoint.open(root).rewrite(tmp_path / "out", unchanged, {}, torch.bfloat16)
    written = json.loads((copy.root / "config.json").read_text())
    assert (written["dtype"], "torch_dtype" in written) == ("bfloat16", False)


def test_folder_appears_only_when_it_is_whole(tiny_model, tmp_path, small_shards):
    def look(block):
        assert not (tmp_path / "out").exists()
        return block

    Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "out", look, {})
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError("boom"), KeyboardInterrupt()])
def test_exception_leaves_nothing_and_the_input_untouched(tiny_model, tmp_path, small_shards, error):
    root = tiny_model("llama")
    before = everything_in(root)

    def fail(block):
        if block.name == "head":
            raise error
        return block

    with pytest.raises(type(error)):
        Checkpoint.open(root).rewrite(tmp_path / "out", fail, {})
    assert list(tmp_path.iterdir()) == []
    assert everything_in(root) == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_one_sentence(tiny_model, tmp_path, monkeypatch, error):
    calls = []

    def full(*_, **__):
        calls.append(1)
        if len(calls) > 1:
            raise error

    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1)
    monkeypatch.setattr(writer_module, "save_file", full)
    with pytest.raises(RunError, match="is full; nothing half-written was left behind"):
        Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "out", unchanged, {})
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_overwritten(tiny_model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="already exists"):
        Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "out", unchanged, {})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    (tmp_path / f"{TEMPORARY_PREFIX}out-1").mkdir()
    (tmp_path / "kept").mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_shards_can_be_read_by_others(tiny_model, tmp_path):
    copy = Checkpoint.open(tiny_model("llama")).rewrite(tmp_path / "out", unchanged, {})
    config, weights = (copy.root / name for name in ("config.json", SINGLE_SHARD))
    assert weights.stat().st_mode == config.stat().st_mode


def test_a_streamed_shard_has_the_bytes_that_safetensors_writes(tmp_path):
    tensors = {
        "scale": torch.rand(3),
        "a": torch.randn(5, 4).bfloat16(),
        "b.codes": torch.arange(-8, 7, dtype=torch.int8).view(5, 3),
    }
    save_file(tensors, tmp_path / "expected", {"format": "pt"})
    writer = ShardWriter(tmp_path)
    infos = [TensorInfo(name, one.dtype, tuple(one.shape), "") for name, one in tensors.items()]
    writer.stream(infos, (part for one in tensors.values() for part in one.split(2)))
    writer.finish()
    assert (tmp_path / SINGLE_SHARD).read_bytes() == (tmp_path / "expected").read_bytes()
