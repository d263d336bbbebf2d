"""The largest values on the calibration text, against hooks and the cache of the whole model in transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from calibration.ranges import RangeStream
from compressor import decoder as decoder_module
from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder

TOKENS = torch.randint(0, 256, (6, 20), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def reference(root):
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)
    inputs = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: inputs.update({name: args[0].abs().max()})  # one call a module
            )
    cache = model(TOKENS, use_cache=True).past_key_values
    layers = {f"model.layers.{index}.self_attn.": layer for index, layer in enumerate(cache.layers)}
    keys = {prefix + "k_scale": layer.keys.abs().max() for prefix, layer in layers.items()}
    return inputs, keys | {prefix + "v_scale": layer.values.abs().max() for prefix, layer in layers.items()}


def observed(root):
    checkpoint = Checkpoint.open(root)
    stream = RangeStream(Decoder(checkpoint), TOKENS)
    inputs, cache = {}, {}
    for block in checkpoint.blocks():
        ranges = stream.observe(block)
        inputs |= ranges.inputs
        cache |= ranges.cache
    return inputs, cache


@pytest.mark.parametrize("elements", [1, 1 << 21])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_they_are_those_of_the_whole_model(tiny_model, monkeypatch, family, elements):
    monkeypatch.setattr(decoder_module, "ELEMENTS_PER_BATCH", elements)
    root = tiny_model(family, tied=False)
    for found, expected in zip(observed(root), reference(root), strict=True):
        assert found.keys() == expected.keys()
        for name, largest in expected.items():
            torch.testing.assert_close(found[name], largest, atol=1e-5, rtol=1e-5)


def test_the_layer_is_left_as_it_was(tiny_model):
    checkpoint = Checkpoint.open(tiny_model("llama"))
    decoder = Decoder(checkpoint)
    stream = RangeStream(decoder, TOKENS)
    for block in checkpoint.blocks():
        stream.observe(block)
    expected = decoder.final_states(TOKENS)
    torch.testing.assert_close(stream._hidden, expected, atol=0, rtol=0)
