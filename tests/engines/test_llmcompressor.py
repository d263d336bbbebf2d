"""llm-compressor's recipes as a pass: the step holds what llm-compressor itself saves, and is foretold before work."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from compressor.checkpoint import Checkpoint
from compressor.decoder import Decoder
from compressor.errors import InputError, RunError
from compressor.pass_ import Need, PassContext
from compressor.quantized import Activations, Scheme
from compressor.writer import STEP_FILE
from passes import llmcompressor as module
from passes.llmcompressor import LLMCompressor

GROUP = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
ASYMMETRIC = {"group_0": {"targets": ["Linear"], "weights": GROUP | {"symmetric": False}}}
SYMMETRIC = {"group_0": {"targets": ["Linear"], "weights": GROUP}}
CHANNEL = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "symmetric": True, "strategy": "channel"}}}
INNER = {"ignore": ["lm_head"]}
W8A8 = Scheme(8, None, activations=Activations(8, "int", dynamic=True))

# name: modifiers of the recipe, and what each of the inner linears becomes
RECIPES = {
    "gptq": ({"GPTQModifier": {"config_groups": SYMMETRIC, **INNER}}, Scheme(4, 32)),
    "awq": (
        {"AWQModifier": {}, "QuantizationModifier": {"config_groups": ASYMMETRIC, **INNER}},
        Scheme(4, 32, symmetric=False),
    ),
    "w8a8": ({"SmoothQuantModifier": {}, "GPTQModifier": {"scheme": "W8A8", "targets": "Linear", **INNER}}, W8A8),
    "rtn": ({"QuantizationModifier": {"config_groups": CHANNEL, **INNER}}, Scheme(8, None)),
}
# As llm-compressor's manual says; on standard input: model, recipe, file of tokens, output.
MANUAL = """
import json, sys
import numpy as np
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.pipelines.cache import IntermediatesCache

IntermediatesCache.pin_memory = lambda *_: None
model, recipe, tokens, out = json.load(sys.stdin)
tokens = np.load(tokens)
oneshot(
    model=model,
    recipe=recipe,
    dataset=Dataset.from_dict({"input_ids": tokens.tolist(), "attention_mask": np.ones_like(tokens).tolist()}),
    num_calibration_samples=len(tokens),
    shuffle_calibration_samples=False,
    output_dir=out,
)
"""


@pytest.fixture(autouse=True)
def place(engine):
    """Where llm-compressor is."""
    return engine("llmcompressor").place()


@pytest.fixture
def recipe(tmp_path) -> Callable[..., LLMCompressor]:
    """The pass for a recipe file that holds these modifiers, or this text."""

    def write(modifiers: dict | None = None, text: str | None = None) -> LLMCompressor:
        path = tmp_path / "recipe.yaml"
        path.write_text(text if text is not None else yaml.safe_dump({"q_stage": {"q_modifiers": modifiers}}))
        return LLMCompressor(recipe=str(path))

    return write


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))


def run(one, root, out, tokens):
    notes: list[str] = []
    checkpoint = Checkpoint.open(root)
    context = PassContext(out, {"pass": one.name}, tokens, 0, lambda *_: None, notes)
    return one.apply(checkpoint, context), notes


def saved_by_llmcompressor(place, root, modifiers, tokens, out):
    """The tensors of the folder that llm-compressor writes when it is used as its manual says."""
    file = out.with_suffix(".npy")
    np.save(file, tokens.numpy())
    given = json.dumps([str(root), yaml.safe_dump({"q_stage": {"q_modifiers": modifiers}}), str(file), str(out)])
    subprocess.run([place.python, "-I", "-c", MANUAL], input=given, text=True, check=True, capture_output=True)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("name", RECIPES)
def test_the_step_holds_what_llmcompressor_saves(place, tiny_model, recipe, tokens, tmp_path, name):
    modifiers, scheme = RECIPES[name]
    root = tiny_model("llama")
    one = recipe(modifiers)
    shape = Checkpoint.open(root).architecture
    inner = [layer for layer in shape.linears() if layer != "lm_head"]
    assert one.plan(shape, {}) == dict.fromkeys(inner, scheme)
    step, notes = run(one, root, tmp_path / "steps" / "01", tokens)
    theirs = saved_by_llmcompressor(place, root, modifiers, tokens, tmp_path / "theirs")
    ours = load_file(step.root / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for tensor, wanted in theirs.items():
        assert torch.equal(ours[tensor], wanted.to(ours[tensor].dtype)), tensor
    assert step.schemes == one.plan(shape, {})
    assert "llm-compressor holds the whole model in memory while it works" in notes


def test_the_step_is_an_ordinary_one(tiny_model, recipe, tokens, tmp_path):
    root = tiny_model("qwen2", tied=False)
    out = tmp_path / "steps" / "01"
    step, _ = run(recipe(RECIPES["rtn"][0]), root, out, tokens)
    assert {path.name for path in out.parent.iterdir()} == {"01"}
    kept = {path.name: path.read_bytes() for path in root.iterdir() if path.suffix != ".safetensors"}
    left = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".safetensors"}
    assert json.loads(left.pop(STEP_FILE))["pass"] == "llmcompressor"
    theirs, mine = json.loads(kept.pop("config.json")), json.loads(left.pop("config.json"))
    assert mine.pop("quantization_config")["quant_method"] == "compressed-tensors"
    assert mine == theirs
    assert left == kept
    assert bool(torch.isfinite(Decoder(step).final_states(tokens)).all())


def test_it_works_in_the_dtype_it_is_told(tiny_model, recipe, tokens, tmp_path):
    one = LLMCompressor(recipe=recipe(RECIPES["gptq"][0]).recipe, dtype="bfloat16")
    step, notes = run(one, tiny_model("llama"), tmp_path / "step", tokens)
    assert "llm-compressor worked in bfloat16; what stays float is stored in it" in notes
    assert step.dtype == torch.bfloat16
    assert step.config["dtype"] == "bfloat16"
    for layer in step.schemes:
        scales = step.read([f"{layer}.weight"])[f"{layer}.weight"].scales
        assert torch.equal(scales.bfloat16().float(), scales)


def test_a_tied_head_that_is_not_ignored_is_untied(tiny_model, recipe, tokens, tmp_path):
    root = tiny_model("llama", tied=True)
    one = recipe({"QuantizationModifier": {"config_groups": SYMMETRIC}})
    step, _ = run(one, root, tmp_path / "step", tokens)
    assert step.schemes["lm_head"] == Scheme(4, 32)
    assert step.schemes == one.plan(Checkpoint.open(root).architecture, {})
    assert not step.architecture.tied_embeddings


def test_several_modifiers_and_patterns(tiny_model, recipe, tokens, tmp_path):
    wide = {"group_0": {"targets": ["re:.*down_proj"], "weights": GROUP | {"num_bits": 8, "group_size": 64}}}
    text = {"q_stage": {
        "a_modifiers": {"GPTQModifier": {"config_groups": SYMMETRIC, "ignore": ["re:.*down_proj", "lm_head"]}},
        "b_modifiers": {"QuantizationModifier": {"config_groups": wide, "ignore": ["model.layers.1.mlp.down_proj"]}},
    }}  # fmt: skip
    one = recipe(text=yaml.safe_dump(text))
    step, _ = run(one, tiny_model("llama"), tmp_path / "step", tokens)
    assert step.schemes["model.layers.0.mlp.down_proj"] == Scheme(8, 64)
    assert "model.layers.1.mlp.down_proj" not in step.schemes
    assert step.schemes["model.layers.1.mlp.up_proj"] == Scheme(4, 32)
    assert step.schemes == one.plan(step.architecture, {})


def test_calibration_text_is_asked_for_where_the_recipe_needs_it(recipe):
    assert recipe(RECIPES["gptq"][0]).needs == {Need.CALIBRATION}
    assert recipe(RECIPES["rtn"][0]).needs == frozenset()


def test_the_key_follows_the_recipes_content(recipe):
    first = recipe(RECIPES["gptq"][0]).key
    assert recipe(RECIPES["gptq"][0]).key == first
    assert recipe(RECIPES["rtn"][0]).key != first


def test_nothing_reaches_the_terminal(tiny_model, recipe, tokens, tmp_path, capfd):
    root = tiny_model("llama")
    capfd.readouterr()
    run(recipe(RECIPES["gptq"][0]), root, tmp_path / "step", tokens)
    assert capfd.readouterr() == ("", "")


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q_stage: {q_modifiers: {GTPQModifier: {}}}", "no modifier 'GTPQModifier' .* did you mean 'GPTQModifier'"),
        ("q_stage: {q_modifiers: {GPTQModifier: {scheme: W4A17}}}", "refuses scheme of the recipe"),
        ("q_stage: {q_modifiers: {GPTQModifier: {shceme: W4A16}}}", "refuses shceme of the recipe"),
        ("q_stage: {q_modifiers: {SmoothQuantModifier: {}}}", r"quantizes nothing \(SmoothQuantModifier\)"),
        ("q_stage: {q_modifiers: {AWQModifier: {}}}", "refuses"),
    ],
)
def test_a_recipe_that_cannot_be_run(tiny_model, recipe, text, message):
    with pytest.raises(InputError, match=message) as caught:
        recipe(text=text).plan(Checkpoint.open(tiny_model("llama")).architecture, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "MXFP4A16", "targets": ["Linear"]}, "cannot be read"),
        ({"scheme": "W4A16", "targets": ["Linear"]}, "Group size 128 does not divide the input width 64"),
        ({"scheme": "W8A8", "targets": ["re:.*no_such_layer"]}, "quantizes no layer"),
        ({"scheme": "W8A8", "targets": ["Linear", "Embedding"]}, "quantizes the embedding"),
    ],
)
def test_a_scheme_that_cannot_be_held(tiny_model, recipe, options, message):
    with pytest.raises(InputError, match=message):
        recipe({"QuantizationModifier": options}).plan(Checkpoint.open(tiny_model("llama")).architecture, {})


def test_a_run_that_breaks_is_one_sentence_and_leaves_nothing(tiny_model, recipe, tmp_path):
    one = recipe(RECIPES["gptq"][0])
    outside = torch.full((2, 8), 10**6)  # no token of the model's
    out = tmp_path / "steps" / "01"
    with pytest.raises(RunError, match="broke on the recipe") as caught:
        run(one, tiny_model("llama"), out, outside)
    assert "\n" not in str(caught.value)
    assert list(out.parent.iterdir()) == []


def test_another_outcome_than_foretold_is_an_error(tiny_model, recipe, tokens, tmp_path, monkeypatch):
    one = recipe(RECIPES["rtn"][0])
    real = module.predict_schemes
    monkeypatch.setattr(module, "predict_schemes", lambda *args: dict(list(real(*args).items())[1:]))
    with pytest.raises(RunError, match="quantized other layers than its recipe"):
        run(one, tiny_model("llama"), tmp_path / "step", tokens)
    assert not (tmp_path / "step").exists()
