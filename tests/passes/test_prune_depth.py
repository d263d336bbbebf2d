import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, RunError
from compressor.families import FAMILIES
from compressor.pass_ import PassContext
from compressor.quantized import Scheme
from compressor.registry import make_pass
from passes.prune_depth import influences, without_layers

TOKENS = torch.randint(0, 256, (3, 48), generator=torch.Generator().manual_seed(0))


KINDS = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]


def four_layers(tiny_model, family):
    return tiny_model(family, num_hidden_layers=4, **({"layer_types": KINDS} if family == "gemma3_text" else {}))


def context(out, notes=None):
    return PassContext(out, {"key": "k"}, TOKENS, 0, lambda *_: None, [] if notes is None else notes)


def prune(root, out, notes=None, **options):
    one, checkpoint = make_pass("prune-depth", {"precision": "float32", **options}), Checkpoint.open(root)
    one.plan(checkpoint.architecture, checkpoint.schemes)
    return one.apply(checkpoint, context(out, notes))


def layers_of(model):
    return model.get_submodule("transformer.h" if model.config.model_type == "gpt2" else "model.layers")


@torch.no_grad()
def residual_stream(root):
    """What each layer reads, and what the last one leaves, as transformers computes it."""
    model, seen = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32, attn_implementation="eager"), []
    for layer in layers_of(model):
        layer.register_forward_pre_hook(lambda _, inputs, kwargs: seen.append(inputs[0]), with_kwargs=True)
        layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    model(TOKENS)
    return [(seen[2 * n], seen[2 * n + 1]) for n in range(len(layers_of(model)))]


@pytest.mark.parametrize("family", FAMILIES)
def test_influences_are_those_of_the_residual_stream(tiny_model, tmp_path, family):
    root = four_layers(tiny_model, family)
    expected = [1 - torch.cosine_similarity(before, after, dim=-1).mean() for before, after in residual_stream(root)]
    found = influences(Checkpoint.open(root), context(tmp_path), torch.float32)
    torch.testing.assert_close(torch.tensor(found), torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_what_the_model_does_without_the_layers(tiny_model, tmp_path, family):
    root = four_layers(tiny_model, family)
    pruned = without_layers(Checkpoint.open(root), {0, 2}).rewrite(tmp_path / "out", lambda block: block, {})
    model = AutoModelForCausalLM.from_pretrained(root, dtype=torch.float32)
    layers = layers_of(model)
    for index in (2, 0):
        del layers[index]
    model.config.num_hidden_layers = 2
    kinds = getattr(model.config, "layer_types", None)
    if kinds:
        model.config.layer_types = [kinds[1], kinds[3]]
    for index, layer in enumerate(layers):
        layer.get_submodule("attn" if family == "gpt2" else "self_attn").layer_idx = index
    with torch.no_grad():
        expected = model(TOKENS, use_cache=False).logits
        found = AutoModelForCausalLM.from_pretrained(pruned.root, dtype=torch.float32)(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert pruned.architecture.layers == 2


def test_layers_that_do_little_are_left_out(tiny_model, tmp_path):
    root = tiny_model("llama", num_hidden_layers=5)
    model = AutoModelForCausalLM.from_pretrained(root)
    for index in (1, 3):
        for name, parameter in model.model.layers[index].named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.data *= 0.01
    model.save_pretrained(root)
    notes = []
    pruned = prune(root, tmp_path / "out", notes, fraction=0.4)
    assert json.loads((pruned.root / "llmc-step.json").read_text())["kept_layers"] == [0, 2, 4]
    assert "left out layers 1, 3 of 5 (counted from 0)" in notes[0]


def test_windows_stay_with_their_layers(tiny_model):
    root = tiny_model("qwen3", num_hidden_layers=4, layer_types=KINDS, sliding_window=8, use_sliding_window=True)
    pruned = without_layers(Checkpoint.open(root), {0})
    assert pruned.architecture.windows == (None, 8, None)
    assert pruned.config["layer_types"] == KINDS[1:]


def test_the_plan_is_for_the_layers_that_are_left(tiny_model):
    architecture = Checkpoint.open(tiny_model("llama", num_hidden_layers=5)).architecture
    left = make_pass("prune-depth", {"fraction": 0.4}).reshaped(architecture)
    assert (left.layers, len(left.linears())) == (3, 22)


@pytest.mark.parametrize(
    ("fraction", "says"),
    [(0.1, "is none of them"), (0.9, "is all of them"), (0, "not between"), (1.0, "not between"), (-1, "not between")],
)
def test_fractions_that_leave_out_nothing_or_everything(tiny_model, tmp_path, fraction, says):
    with pytest.raises(InputError, match=says):
        prune(tiny_model("llama"), tmp_path / "out", fraction=fraction)


def test_a_quantized_model(tiny_model):
    with pytest.raises(InputError, match="is already") as raised:
        make_pass("prune-depth", {}).plan(Checkpoint.open(tiny_model("llama")).architecture, {"lm_head": Scheme(4, 32)})
    assert raised.value.hint == "Prune first, and quantize what is left."


def test_a_model_that_overflows(tiny_model, tmp_path):
    root = tiny_model("llama")
    model = AutoModelForCausalLM.from_pretrained(root)
    model.model.layers[0].mlp.down_proj.weight.data[:8].fill_(3e38)
    model.save_pretrained(root)
    with pytest.raises(RunError, match="Layer 0 gives NaN or Inf"):
        prune(root, tmp_path / "out", fraction=0.5)
