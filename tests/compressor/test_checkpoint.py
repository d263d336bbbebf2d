"""Opening model folders: what is read, and what is refused with which sentence."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError
from compressor.quantized import QuantizedWeight, Scheme
from compressor.shards import INDEX, SINGLE_SHARD
from compressor.writer import CheckpointWriter

UP = "model.layers.1.mlp.up_proj.weight"


def shard(root, count=3):
    """Spread the tensors of a one-file folder over `count` shards, as large checkpoints come."""
    tensors = load_file(root / SINGLE_SHARD)
    (root / SINGLE_SHARD).unlink()
    weight_map = {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::count]}
        save_file(part, root / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (root / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def change(root, edit):
    tensors = load_file(root / SINGLE_SHARD)
    edit(tensors)
    save_file(tensors, root / SINGLE_SHARD, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_blocks_hold_every_tensor_once(tiny_model, family, tied, sharded):
    root = tiny_model(family, tied=tied)
    expected = load_file(root / SINGLE_SHARD)
    if sharded:
        shard(root)
    checkpoint = Checkpoint.open(root)
    found = {name: tensor for block in checkpoint.blocks() for name, tensor in block.weights.items()}
    assert checkpoint.block_names == ["embedding", "layers.0", "layers.1", "head"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in expected.values())
    assert checkpoint.dtype == torch.float32


def test_block_knows_its_index_and_can_be_changed(tiny_model):
    block = Checkpoint.open(tiny_model("llama")).block("layers.1")
    other = block.with_weights({UP: torch.zeros(128, 64)})
    assert (block.index, other.index) == (1, 1)
    assert torch.count_nonzero(other.weights[UP]) == 0
    assert torch.count_nonzero(block.weights[UP]) > 0


def test_digest_tells_models_apart(tiny_model):
    root = tiny_model("llama")
    before = Checkpoint.open(root).digest
    assert Checkpoint.open(tiny_model("llama")).digest == before
    change(root, lambda tensors: tensors[UP].mul_(2))
    assert Checkpoint.open(root).digest != before


def test_quantized_folder_is_read_as_integers(tiny_model, tmp_path):
    root = tiny_model("llama")
    checkpoint = Checkpoint.open(root)
    layer = UP.removesuffix(".weight")
    weight = QuantizedWeight(
        torch.randint(-8, 8, (128, 64), dtype=torch.int8),
        torch.full((128, 2), 0.25),
        torch.randint(-8, 8, (128, 2), dtype=torch.int8),
        Scheme(4, 32, symmetric=False),
    )
    edit = lambda block: block.with_weights({UP: weight} if UP in block.weights else {})  # noqa: E731
    quantized = checkpoint.rewrite(tmp_path / "out", edit, {})
    assert quantized.schemes == {layer: weight.scheme}
    assert quantized.block("layers.1").weights[UP].same_bits(weight)
    assert torch.equal(quantized.read([UP])[UP].dequantize(), weight.dequantize())


# -- what is refused ----------------------------------------------------------------------------------------------


def refused(root, match, hint=None):
    with pytest.raises(InputError, match=match) as caught:
        Checkpoint.open(root)
    if hint:
        assert hint in caught.value.hint


def test_not_a_model_folder(tmp_path):
    refused(tmp_path, "not a model folder")
    refused(tmp_path / "absent", "not a model folder")


def test_folder_without_weights(tiny_model):
    root = tiny_model("llama")
    (root / SINGLE_SHARD).unlink()
    refused(root, r"no model\.safetensors")


def test_pickle_weights_alone(tiny_model):
    root = tiny_model("llama")
    (root / SINGLE_SHARD).unlink()
    (root / "pytorch_model.bin").write_bytes(b"")
    refused(root, "pickle weights", hint="--allow-pickle")


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_file(tiny_model, length):
    root = tiny_model("llama")
    content = (root / SINGLE_SHARD).read_bytes()
    (root / SINGLE_SHARD).write_bytes(content[:length])
    refused(root, "truncated or not a safetensors file", hint="Download")


def test_truncated_shard(tiny_model):
    root = tiny_model("llama")
    last = sorted(set(shard(root).values()))[-1]
    (root / last).write_bytes((root / last).read_bytes()[:-8])
    refused(root, last)


def test_missing_shard(tiny_model):
    root = tiny_model("llama")
    first = sorted(set(shard(root).values()))[0]
    (root / first).unlink()
    refused(root, f"{first} is missing", hint="Download")


def test_index_that_names_a_tensor_no_shard_has(tiny_model):
    root = tiny_model("llama")
    weight_map = shard(root)
    weight_map["model.layers.7.mlp.up_proj.weight"] = weight_map[UP]
    (root / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(root, r"places tensor model\.layers\.7.*does not hold it")


def test_index_that_names_the_wrong_shard(tiny_model):
    root = tiny_model("llama")
    weight_map = shard(root)
    weight_map[UP] = next(name for name in weight_map.values() if name != weight_map[UP])
    (root / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(root, "does not hold it")


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": []}', "[]"])
def test_index_that_is_none(tiny_model, content):
    root = tiny_model("llama")
    shard(root)
    (root / INDEX).write_text(content)
    refused(root, "not a safetensors index|index.json is not (valid|a) JSON")


def test_missing_tensor(tiny_model):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors.pop(UP))
    refused(root, f"no tensor {UP}")


def test_unexpected_tensor(tiny_model):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors.update({"model.layers.0.mlp.experts.weight": torch.ones(2)}))
    refused(root, r"model\.layers\.0\.mlp\.experts\.weight has no place")


def test_wrong_shape(tiny_model):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors.update({UP: torch.ones(128, 32)}))
    refused(root, r"\[128, 32\]; config\.json says \[128, 64\]")


def test_unsupported_dtype(tiny_model):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors.update({UP: tensors[UP].to(torch.float8_e5m2)}))
    refused(root, "unsupported dtype F8_E5M2")
    change(root, lambda tensors: tensors.update({UP: torch.ones(128, 64).to(torch.float8_e4m3fn)}))
    refused(root, "unsupported dtype torch.float8_e4m3fn; config.json says no scheme for it")


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("-inf"), "Inf")])
def test_values_that_are_not_finite_name_the_tensor(tiny_model, value, kind):
    root = tiny_model("llama")
    change(root, lambda tensors: tensors[UP].view(-1)[5].fill_(value))
    checkpoint = Checkpoint.open(root)
    checkpoint.block("layers.0")
    with pytest.raises(InputError, match=f"{UP} holds {kind}"):
        checkpoint.block("layers.1")


def test_other_quantization_is_refused(tiny_model):
    root = tiny_model("llama")
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    refused(root, "already quantized", hint="float checkpoint")


def test_quantized_folder_with_a_part_missing(tiny_model, tmp_path):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    writer = CheckpointWriter(tmp_path, checkpoint.architecture, torch.float32)
    weight = QuantizedWeight(torch.zeros(128, 64, dtype=torch.int8), torch.ones(128, 1), None, Scheme(4, None))
    for block in checkpoint.blocks():
        writer.add(block.with_weights({UP: weight} if UP in block.weights else {}).weights)
    writer.finish(checkpoint.config, {})
    Checkpoint.open(tmp_path)
    tensors = load_file(tmp_path / SINGLE_SHARD)
    del tensors[UP.replace("weight", "weight_scale")]
    save_file(tensors, tmp_path / SINGLE_SHARD)
    refused(tmp_path, "no tensor .*up_proj.weight_scale")
