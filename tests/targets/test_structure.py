"""Rules of structure of artifacts that are no ordinary checkpoints: GGUF files, folders of GPTQModel and AutoAWQ."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.quantized import Scheme
from compressor.registry import make_target

LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture
def broken(tiny_model, quantize, lower):
    """The rules that an artifact breaks after `change` of its folder; none before."""

    def check(name, scheme, change):
        target = make_target(name, {})
        artifact, _ = lower(target, quantize(tiny_model("llama"), scheme))
        assert target.broken_rules(artifact) == []
        change(artifact.root)
        return target.broken_rules(artifact)

    return check


def edited(change):
    def edit(root):
        path = root / "model.gguf"
        path.write_bytes(change(path.read_bytes()))

    return edit


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (lambda content: content[:-40], ["is truncated: tensor blk.1.ffn_down.weight|output_norm.weight lies beyond"]),
        (lambda content: content + bytes(64), ["The file does not end where its last tensor"]),
        (lambda content: content.replace(b"llmc.group_sizes", b"llmc.group_sizez"), ["has no llmc.group_sizes"]),
        (lambda content: content.replace(b"blk.1.ffn_up", b"blk.1.ffn_uq"), ["has no tensor blk.1.ffn_up.weight"]),
        (
            lambda content: content.replace(b".block_count\x04\0\0\0\x02", b".block_count\x04\0\0\0\x01"),
            ["no place in"],
        ),
        (lambda content: content.replace(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"), ["tokens has 0 entries"]),
        (lambda content: b"GGUX" + content[4:], ["is not a GGUF file"]),
    ],
)
def test_gguf(broken, change, rules):
    found = broken("gguf-q4_0", Scheme(4, 32), edited(change))
    assert len(found) == len(rules)
    assert all(any(part in sentence for part in rule.split("|")) for rule, sentence in zip(rules, found, strict=True))


def tensors(**changed):
    def edit(root):
        path = root / "model.safetensors"
        kept = {name: tensor for name, tensor in load_file(path).items() if changed.get(name, 0) is not None}
        save_file(kept | {name: tensor for name, tensor in changed.items() if tensor is not None}, path)

    return edit


def settings(file, **changed):
    def edit(root):
        value = json.loads((root / file).read_text())
        (value["quantization_config"] if file == "config.json" else value).update(changed)
        (root / file).write_text(json.dumps(value))

    return edit


@pytest.mark.parametrize("name", ["awq", "gptq"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (tensors(**{f"{LAYER}.qzeros": None}), f"has no tensor {LAYER}.qzeros"),
        (tensors(**{f"{LAYER}.scales": torch.ones(4, 63)}), f"{LAYER}.scales has shape [4, 63]"),
        (tensors(**{f"{LAYER}.qweight": torch.ones(16, 64)}), f"{LAYER}.qweight "),
        (tensors(**{f"{LAYER}.more": torch.ones(1)}), f"{LAYER}.more has no place"),
        (settings("config.json", group_size=64), "has shape"),
    ],
)
def test_packed_folders(broken, name, change, sentence):
    found = broken(name, Scheme(4, 32), change)
    assert sentence in found[0]


def test_codes_of_another_dtype(broken):
    halves = torch.ones(16, 64, dtype=torch.float16)
    assert broken("gptq", Scheme(4, 32), tensors(**{f"{LAYER}.qweight": halves})) == [
        f"Tensor {LAYER}.qweight is stored as float16, not int32."
    ]


@pytest.mark.parametrize("file", ["config.json", "quantize_config.json"])
def test_two_settings_of_a_gptq_folder(broken, file):
    found = broken("gptq", Scheme(4, 32), settings(file, damp_percent=0.1))
    assert found == ["quantize_config.json and config.json describe the quantization differently."]


def test_a_settings_file_that_is_gone(broken):
    found = broken("gptq", Scheme(4, 32), lambda root: (root / "quantize_config.json").unlink())
    assert found[0].startswith("A config file cannot be read")
