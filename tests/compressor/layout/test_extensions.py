"""What compressed-tensors has no word for: kept in a folder that other loaders refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor import layout
from compressor import writer as writer_module
from compressor.checkpoint import Block, Checkpoint, Weight
from compressor.errors import InputError
from compressor.plan import check_plan
from compressor.quantized import Activations, QuantizedWeight, Scheme
from compressor.registry import make_target
from compressor.shards import INDEX, OWN, SINGLE_SHARD
from compressor.source import open_model
from passes.grid import fit_grid, quantize

SCHEMES = [
    Scheme(4, 32),
    Scheme(4, None, symmetric=False),
    Scheme(8, None, activations=Activations()),
    Scheme(8, None, type="float", activations=Activations(8, "float", dynamic=False), per_tensor=True),
    Scheme(4, 16, type="float", activations=Activations(4, "float", dynamic=False)),
]


def with_factors(weight: QuantizedWeight, seed: int = 0) -> QuantizedWeight:
    factors = torch.rand(weight.codes.shape[1], generator=torch.Generator().manual_seed(seed)) + 0.5
    return replace(weight, scheme=replace(weight.scheme, input_factors=True), input_factors=factors)


@pytest.fixture
def extended(tiny_model) -> Callable[[Path], Checkpoint]:
    """Makes a model of quantized MLPs whose down_proj multiplies its inputs."""

    def edit(block: Block) -> Block:
        changed: dict[str, Weight] = {}
        for name, weight in block.weights.items():
            if ".mlp." in name and isinstance(weight, torch.Tensor):
                rounded = quantize(weight, Scheme(4, 32), fit_grid(weight, Scheme(4, 32), None, search=False))
                changed[name] = with_factors(rounded) if "down_proj" in name else rounded
        return block.with_weights(changed)

    def make(out: Path) -> Checkpoint:
        return Checkpoint.open(tiny_model("llama")).rewrite(out, edit, {})

    return make


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_weight_comes_back(random_weight, scheme):
    weight = with_factors(random_weight(scheme, 64, 64, 0))
    tensors = layout.encode(weight, torch.bfloat16)
    shapes = layout.stored_shapes(weight.scheme, (64, 64))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
    found = layout.decode(tensors, weight.scheme)
    assert found.scheme == weight.scheme
    assert found.same_bits(weight)
    assert not found.same_bits(replace(weight, input_factors=weight.input_factors * 2))


@pytest.mark.parametrize("shard_bytes", [1, 1 << 30])
def test_a_folder_comes_back(extended, tmp_path, monkeypatch, shard_bytes):
    monkeypatch.setattr(writer_module, "SHARD_BYTES", shard_bytes)
    made = extended(tmp_path / "made")
    again = open_model(str(made.root), tmp_path / "import", progress=lambda *_: None).checkpoint
    layer = "model.layers.1.mlp.down_proj"
    assert made.schemes[layer] == Scheme(4, 32, input_factors=True)
    assert made.schemes["model.layers.1.mlp.up_proj"] == Scheme(4, 32)
    (weight,) = again.read([f"{layer}.weight"]).values()
    assert isinstance(weight, QuantizedWeight)
    assert weight.same_bits(with_factors(weight.core))
    assert again.rewrite(tmp_path / "copy", lambda block: block, {}).schemes == made.schemes
    names = {path.name for path in made.root.iterdir()}
    assert not names & {INDEX, SINGLE_SHARD}
    assert OWN.index in names or OWN.single in names


def test_transformers_refuses_the_folder(extended, tmp_path):
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(extended(tmp_path / "made").root)


@pytest.mark.parametrize("name", sorted(entry.name for entry in entry_points(group="llmc.targets")))
def test_a_target_without_a_place_for_it_refuses_before_work(extended, tmp_path, name):
    target = make_target(name, {})
    if "input_factors" in target.holds:
        pytest.skip("has a place for it")
    with pytest.raises(InputError, match=r"down_proj and 1 more layer have factors of its inputs") as refused:
        check_plan(extended(tmp_path / "made"), [], target)
    assert "--requantize" in str(refused.value.hint)


def test_requantize_takes_the_factors_into_the_values(extended, tmp_path):
    made = extended(tmp_path / "made")
    opened = open_model(str(made.root), tmp_path / "import", requantize=True, progress=lambda *_: None).checkpoint
    name = "model.layers.0.mlp.down_proj.weight"
    weight, value = made.read([name])[name], opened.read([name])[name]
    assert isinstance(weight, QuantizedWeight)
    assert weight.input_factors is not None
    assert torch.equal(value, weight.core.dequantize() * weight.input_factors)
    assert not opened.schemes


def test_an_extension_from_the_future_is_refused(extended, tmp_path):
    root = extended(tmp_path / "made").root
    config = json.loads((root / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "llmc"
    groups = config["quantization_config"]["config_groups"].values()
    next(group for group in groups if "extensions" in group)["extensions"] = {"output_factors": True}
    (root / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="output_factors, which this version of llmc does not know"):
        Checkpoint.open(root)


def test_no_folder_holds_it_beside_nf4():
    with pytest.raises(InputError, match="no folder holds"):
        layout.check_together({"lm_head": Scheme(4, 64, type="nf4", input_factors=True)})
