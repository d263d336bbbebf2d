"""The loader model: silent on a sound folder, and each rule fires on a folder damaged for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import compressor.writer
from compressor.quantized import Scheme
from targets.tensorrt_llm import TrtInt4, check_loadable
from targets.tensorrt_llm.loader_config import is_excluded

Q, OUT, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj", "model.layers.0.mlp.down_proj"


@pytest.fixture
def folder(tiny_model, quantize, lower, made, tmp_path) -> Path:
    """A sound folder, one for each test to damage."""
    if "sound" not in made:
        artifact, _ = lower(TrtInt4(), quantize(tiny_model("llama", tied=False), Scheme(4, 64)))
        made["sound"] = artifact.root
    return shutil.copytree(made["sound"], tmp_path / "copy")


def tensors(edit: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        found = load_file(root / "model.safetensors")
        edit(found)
        save_file(found, root / "model.safetensors")

    return damage


def change(file: str, **values: object) -> Callable[[Path], None]:
    """Replace keys of a JSON file, those of `quantization` in hf_quant_config.json; ... removes one."""

    def damage(root: Path) -> None:
        whole = json.loads((root / file).read_text())
        inner = whole["quantization"] if file == "hf_quant_config.json" else whole
        inner.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del inner[key]
        (root / file).write_text(json.dumps(whole))

    return damage


def quantization(**values: object) -> Callable[[Path], None]:
    return change("hf_quant_config.json", **values)


def both(*damages: Callable[[Path], None]) -> Callable[[Path], None]:
    def damage_all(root: Path) -> None:
        for damage in damages:
            damage(root)

    return damage_all


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def cut_short(root: Path) -> None:
    content = (root / "model.safetensors").read_bytes()
    (root / "model.safetensors").write_bytes(content[:-100])


def second_shard(root: Path) -> None:
    save_file({f"{Q}.weight": torch.zeros(32, 64, dtype=torch.uint8)}, root / "more.safetensors")


def astray_index(root: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "other.safetensors"}}
    (root / "model.safetensors.index.json").write_text(json.dumps(index))


def infinite_scale(found: dict) -> None:
    found[f"{Q}.weight_scale"][3, 0] = float("inf")


ONES = torch.ones(64, dtype=torch.bfloat16)
DAMAGES = {
    "no config": (remove("config.json"), "has no config.json"),
    "no weights": (remove("model.safetensors"), "holds no safetensors file"),
    "cut short": (cut_short, "model.safetensors is cut short"),
    "not safetensors": (
        lambda root: (root / "model.safetensors").write_bytes(b"\xff" * 99),
        "is not a safetensors file",
    ),
    "twice": (second_shard, f"{Q}.weight is in model.safetensors and in more.safetensors"),
    "index": (astray_index, "The index places model.norm.weight in other.safetensors"),
    "dtype": (change("config.json", dtype="float32", torch_dtype="float32"), "says dtype float32"),
    "two dtypes": (change("config.json", torch_dtype="float16"), "says torch_dtype float16 and dtype bfloat16"),
    "other dtype": (
        change("config.json", dtype="float16", torch_dtype="float16"),
        "model.norm.weight is stored as BF16; the loader wants F16",
    ),
    "half a file": (
        lambda root: (root / "hf_quant_config.json").write_text("{"),
        "hf_quant_config.json is not valid JSON",
    ),
    "algorithm": (quantization(quant_algo="W4A16_GPTQ"), "quant_algo is W4A16_GPTQ"),
    "no group size": (quantization(group_size=None), "group_size is None"),
    "group size": (quantization(group_size=32), "group_size is 32; the kernels take 64 and 128"),
    "zero points": (quantization(has_zero_point=True), "zero points are never read"),
    "kv cache": (quantization(kv_cache_quant_algo="INT4"), "kv_cache_quant_algo INT4 is unknown"),
    "head listed nowhere": (quantization(exclude_modules=[]), "does not list lm_head"),
    "pattern": (quantization(exclude_modules=["lm_head", "re:.*q_proj"]), "holds 're:.*q_proj'"),
    "not ModelOpt's": (
        both(remove("hf_quant_config.json"), change("config.json", quantization_config={"quant_method": "gptq"})),
        "no quantization that the loader knows",
    ),
    "flat copy without group size": (
        both(
            remove("hf_quant_config.json"),
            change(
                "config.json",
                quantization_config={"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "ignore": ["lm_head"]},
            ),
        ),
        "group_size is None",
    ),
    "no activation scale": (
        tensors(lambda found: found.pop(f"{OUT}.pre_quant_scale")),
        f"{OUT}.pre_quant_scale is missing",
    ),
    "activation scale's dtype": (
        tensors(lambda found: found.update({f"{OUT}.pre_quant_scale": ONES.float()})),
        f"{OUT}.pre_quant_scale is stored as F32",
    ),
    "activation scale on a fused layer": (
        tensors(lambda found: found.update({f"{Q}.pre_quant_scale": ONES})),
        f"{Q}.pre_quant_scale is never read, since the layer is fused",
    ),
    "no scale": (tensors(lambda found: found.pop(f"{Q}.weight_scale")), f"{Q}.weight_scale is missing"),
    "scale's shape": (
        tensors(lambda found: found.update({f"{DOWN}.weight_scale": torch.ones(64, 1)})),
        f"{DOWN}.weight_scale has shape [64, 1]; the loader wants [64, 2]",
    ),
    "scale overflows": (tensors(infinite_scale), f"{Q}.weight_scale holds a value that bfloat16 does not"),
    "packed along inputs": (
        tensors(lambda found: found.update({f"{Q}.weight": torch.zeros(64, 32, dtype=torch.uint8)})),
        f"{Q}.weight has shape [64, 32]; the loader wants [32, 64]",
    ),
    "float weight": (
        tensors(lambda found: found.update({f"{Q}.weight": torch.zeros(64, 64, dtype=torch.bfloat16)})),
        f"{Q}.weight is stored as BF16; the loader wants U8 or I8",
    ),
    "excluded but packed": (
        quantization(exclude_modules=["lm_head", DOWN]),
        f"{DOWN}.weight is stored as U8; the loader wants BF16",
    ),
    "one excluded shard takes the others along": (
        quantization(exclude_modules=["lm_head", "model.layers.0.self_attn.k_proj"]),
        f"{Q}.weight is stored as U8; the loader wants BF16",
    ),
    "float32 norm": (
        tensors(lambda found: found.update({"model.norm.weight": torch.ones(64)})),
        "model.norm.weight is stored as F32",
    ),
    "no head": (tensors(lambda found: found.pop("lm_head.weight")), "lm_head.weight is missing"),
    "stranger": (
        tensors(lambda found: found.update({f"{Q}.weight_zero_point": ONES})),
        "weight_zero_point is never read",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_rule_fires(folder, name):
    damage, sentence = DAMAGES[name]
    assert check_loadable(folder) == []
    damage(folder)
    assert any(sentence in broken for broken in check_loadable(folder)), check_loadable(folder)


def test_without_the_nested_file_the_flat_copy_is_enough(folder):
    remove("hf_quant_config.json")(folder)
    assert check_loadable(folder) == []


def test_an_index_that_is_right_is_silent(tiny_model, quantize, lower, monkeypatch):
    monkeypatch.setattr(compressor.writer, "SHARD_BYTES", 10_000)
    artifact, _ = lower(TrtInt4(), quantize(tiny_model("llama"), Scheme(4, 64)))
    assert (artifact.root / "model.safetensors.index.json").is_file()
    assert check_loadable(artifact.root) == []


def test_a_tied_head_may_be_stored_twice(tiny_model, quantize, lower):
    artifact, _ = lower(TrtInt4(), quantize(tiny_model("llama"), Scheme(4, 64)))
    copy = tensors(lambda found: found.update({"lm_head.weight": found["model.embed_tokens.weight"].clone()}))
    copy(artifact.root)
    assert check_loadable(artifact.root) == []


@pytest.mark.parametrize(
    ("tp_size", "sentence"),
    [
        (1, None),
        (2, "inputs a GPU are no multiple of 64"),
        (3, "4 query and 2 key-value heads cannot be split over 3 GPUs"),
    ],
)
def test_shares_of_several_gpus(folder, tp_size, sentence):
    broken = check_loadable(folder, tp_size)
    assert broken == [] if sentence is None else any(sentence in one for one in broken)


def test_a_wide_model_can_be_split(tiny_model, quantize, lower):
    root = tiny_model("llama", hidden_size=256, intermediate_size=512, head_dim=64, num_hidden_layers=1)
    artifact, _ = lower(TrtInt4(), quantize(root, Scheme(4, 64)))
    assert check_loadable(artifact.root, tp_size=2) == []
    assert check_loadable(artifact.root, tp_size=4) == []  # two key-value heads: each is kept by two GPUs
    assert any("cannot be split" in broken for broken in check_loadable(artifact.root, tp_size=8))


def test_output_channels_of_a_share(tiny_model, quantize, lower):
    root = tiny_model("llama", hidden_size=256, intermediate_size=144 * 8, head_dim=64, num_hidden_layers=1)
    artifact, _ = lower(TrtInt4(), quantize(root, Scheme(4, 64), {"down_proj": None}))
    assert check_loadable(artifact.root, tp_size=1) == []
    root = tiny_model("llama", hidden_size=256, intermediate_size=48, head_dim=64, num_hidden_layers=1)
    artifact, _ = lower(TrtInt4(), quantize(root, Scheme(4, 64), {"down_proj": None}))
    assert any("24 output channels a GPU are no multiple of 16" in one for one in check_loadable(artifact.root, 2))


@pytest.mark.parametrize(
    ("patterns", "excluded"),
    [
        (["lm_head"], False),
        (["model.layers.0.mlp.down_proj"], True),
        (["model.layers.0.mlp"], True),
        (["model.layers.0.*"], True),
        (["model.layers.1*"], False),
        (["*down_proj"], True),
        (["down_proj"], False),
        (["re:.*down_proj"], True),
        (["re:down_proj"], False),
    ],
)
def test_excluded_modules(patterns, excluded):
    assert is_excluded(DOWN, patterns) == excluded
