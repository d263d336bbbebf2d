"""Adapters that lack what their configuration promises, or bring what is for another task."""

import warnings

import pytest
import torch
from merging import configure, merge, merged_by_peft, weights_of
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from compressor.adapter import open_adapter
from compressor.architecture import read_config, resolve
from compressor.errors import InputError
from passes.lora_expected import missing_notes

TENSORS = "adapter_model.safetensors"


def without(adapter, part):
    """The adapter with fewer tensors in its file."""
    tensors = {key: tensor for key, tensor in load_file(adapter / TENSORS).items() if part not in key}
    save_file(tensors, adapter / TENSORS)


@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], r".*\.(q|up)_proj"], ids=["names", "pattern"])
def test_modules_that_the_file_lacks_stay_as_they_are_with_a_warning_as_in_peft(
    tiny_model, adapter_of, tmp_path, targets
):
    root = tiny_model("llama", tied=False)
    adapter = adapter_of(root, LoraConfig(r=4, target_modules=targets))
    without(adapter, "layers.1.mlp")
    result, notes = merge(root, tmp_path / "out", adapter=[str(adapter)])
    expected, ours = merged_by_peft(root, [adapter], torch.float32), weights_of(result)
    assert [name for name in ours if not torch.equal(ours[name], expected[name])] == []
    said = "mean 4 modules of this model, and its file lacks 1 of them, model.layers.1.mlp.up_proj for one"
    assert [note for note in notes if "WARNING" in note and said in note]


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gpt2", {"target_modules": "all-linear"}),
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"target_modules": ["q_proj", "query_key_value"]}),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}),
        ("llama", {"target_modules": ["q_proj"], "layers_to_transform": 0}),
        ("llama", {"target_modules": ["q_proj", "k_proj"], "exclude_modules": r".*layers\.0.*"}),
        ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "exclude_modules": ["k_proj"]}),
    ],
    ids=str,
)
def test_a_whole_adapter_lacks_nothing(tiny_model, adapter_of, family, config):
    root = tiny_model(family)
    adapter = open_adapter(str(adapter_of(root, LoraConfig(r=4, **config))))
    found = {f"{module}.weight" for module in adapter.modules}
    assert list(missing_notes(adapter, found, resolve(read_config(root)))) == []


def test_a_module_that_was_trained_whole_and_not_saved(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama", tied=False)
    adapter = adapter_of(root, LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]))
    without(adapter, "lm_head")
    with warnings.catch_warnings(), pytest.raises(KeyError):
        warnings.simplefilter("ignore")
        merged_by_peft(root, [adapter], torch.float32)
    with pytest.raises(InputError, match=r"incomplete: its modules_to_save names lm_head.* does not hold lm_head"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])


def test_a_classifier(tiny_model, adapter_of, tmp_path):
    root = tiny_model("llama")
    adapter = adapter_of(root, LoraConfig(r=4, target_modules=["q_proj"]))
    tensors = load_file(adapter / TENSORS) | {"base_model.model.score.weight": torch.zeros(2, 64)}
    save_file(tensors, adapter / TENSORS)
    configure(adapter, task_type="SEQ_CLS", modules_to_save=["classifier", "score"])
    with pytest.raises(InputError, match=r"was trained for the task SEQ_CLS: it brings score\.weight, a head"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])
    configure(adapter, task_type=None)
    with pytest.raises(InputError, match=r"changes score\.weight, which the model lacks"):
        merge(root, tmp_path / "out", adapter=[str(adapter)])
