"""What the pass llmcompressor makes of answers; those of llm-compressor itself are in tests/engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from compressor.checkpoint import Checkpoint
from compressor.errors import InputError, RunError
from compressor.pass_ import Need, PassContext
from compressor.quantized import Scheme
from compressor.registry import make_pass
from passes import llmcompressor_engine as module
from passes.llmcompressor import LLMCompressor

RECIPE = yaml.safe_dump({"q_stage": {"q_modifiers": {"GPTQModifier": {"scheme": "W4A16"}}}})
LAYER = "model.layers.0.mlp.up_proj"
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
QUANTIZING = {
    "config": {},
    "embedding": False,
    "groups": {LAYER: {"targets": [LAYER], "format": "pack-quantized", "weights": WEIGHTS}},
}
ANSWERS = """
import json, sys
request = json.loads(sys.stdin.readline())
print(json.dumps({answers!r}[request["do"]]))
"""


@pytest.fixture
def worker(tmp_path, monkeypatch) -> Callable[[str], None]:
    """`worker(script)`: what runs in the place of the real one, in an environment that says it has llm-compressor."""
    root = tmp_path / "env"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "python").symlink_to(sys.executable)
    (root / "pyvenv.cfg").write_text(f"home = {sys.base_exec_prefix}/bin\n")
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    info = root / "lib" / python / "site-packages" / "llmcompressor-0.14.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llmcompressor\nVersion: 0.14.0.1\n")
    monkeypatch.setenv("LLMC_ENGINE_LLMCOMPRESSOR", str(root))
    monkeypatch.setattr(module, "WORKER", tmp_path / "worker.py")
    return (tmp_path / "worker.py").write_text


@pytest.fixture
def answering(worker) -> Callable[..., None]:
    """`answering(modifiers=..., schemes=..., run=...)`: a worker that has these answers."""
    return lambda **answers: worker(ANSWERS.format(answers=answers))


@pytest.fixture
def recipe(tmp_path) -> Callable[..., LLMCompressor]:
    """The pass for a recipe file of this text."""

    def write(text: str = RECIPE) -> LLMCompressor:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return LLMCompressor(recipe=str(path))

    return write


def shape_of(root: Path):
    return Checkpoint.open(root).architecture


def apply(one, root, out, tokens=None):
    notes: list[str] = []
    return one.apply(Checkpoint.open(root), PassContext(out, {"pass": one.name}, tokens, 0, lambda *_: None, notes))


@pytest.mark.parametrize(("calibrates", "needs"), [(True, {Need.CALIBRATION}), (False, set())])
def test_text_is_asked_for_where_the_recipe_wants_it(answering, recipe, calibrates, needs):
    answering(modifiers={"calibrates": calibrates})
    assert recipe().needs == needs


def test_the_plan_is_what_the_library_foretells(answering, recipe, tiny_model):
    answering(schemes={"quantizing": [QUANTIZING]})
    assert recipe().plan(shape_of(tiny_model("llama")), {}) == {LAYER: Scheme(4, 32)}


def test_the_library_is_told_of_the_model(worker, recipe, tiny_model, tmp_path):
    file = tmp_path / "request.json"
    worker(f"import pathlib, sys; pathlib.Path({str(file)!r}).write_text(sys.stdin.readline()); print({{}})")
    with pytest.raises(KeyError):
        recipe().plan(shape_of(tiny_model("llama")), {})
    request = json.loads(file.read_text())
    assert request["linears"][LAYER] == [128, 64]
    assert request["embedding"] == ["model.embed_tokens", 288, 64]
    assert request["recipe"] == yaml.safe_load(RECIPE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {}}, "quantizes no layer"),
        ({"embedding": True}, "quantizes the embedding"),
        (
            {"groups": {LAYER: QUANTIZING["groups"][LAYER] | {"weights": WEIGHTS | {"group_size": 48}}}},
            "Group size 48 does not divide the input width 64",
        ),
    ],
)
def test_what_cannot_be_held_is_refused(answering, recipe, tiny_model, change, message):
    answering(schemes={"quantizing": [QUANTIZING | change]})
    with pytest.raises(InputError, match=message):
        recipe().plan(shape_of(tiny_model("llama")), {})


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ({"unknown": "GTPQModifier", "known": ["GPTQModifier"]}, "no modifier 'GTPQModifier' .* mean 'GPTQModifier'"),
        ({"option": "scheme", "why": "no such thing"}, "refuses scheme of the recipe .*: no such thing"),
        ({"why": "no such thing"}, "refuses the recipe .*: no such thing"),
        ({"nothing": ["SmoothQuantModifier"]}, r"quantizes nothing \(SmoothQuantModifier\)"),
    ],
)
def test_what_the_library_refuses_is_one_sentence(answering, recipe, why, message):
    answering(modifiers={"refused": why})
    with pytest.raises(InputError, match=message):
        _ = recipe().needs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q_stage: [", "cannot be read"),
        ("- GPTQModifier", "no section of keys that end in _stage"),
        ("q_stage: {}", "no section of keys that end in _modifiers"),
        ("quant: {q_modifiers: {GPTQModifier: {}}}", "has the key 'quant' where keys end in _stage"),
        ("q_stage: {q: {GPTQModifier: {}}}", "has the key 'q' where keys end in _modifiers"),
        ("q_stage: {q_modifiers: {GPTQ: {}}}", "has the key 'GPTQ' where keys end in Modifier"),
        ("q_stage: {q_modifiers: {SpinQuantModifier: {}}}", "SpinQuantModifier .* leaves rotations for run time"),
    ],
)
def test_a_recipe_that_cannot_be_run(tiny_model, recipe, text, message):
    with pytest.raises(InputError, match=message) as caught:
        recipe(text).plan(shape_of(tiny_model("llama")), {})
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_none(tiny_model):
    shape = shape_of(tiny_model("llama"))
    with pytest.raises(InputError, match=r"nowhere\.yaml cannot be read"):
        make_pass("llmcompressor", {"recipe": "nowhere.yaml"}).plan(shape, {})
    with pytest.raises(InputError, match="needs a recipe"):
        make_pass("llmcompressor", {}).plan(shape, {})


def test_quantized_layers_are_not_rounded_again(tiny_model, recipe):
    with pytest.raises(InputError, match="is already int4 g32 symmetric; llm-compressor would round it again"):
        recipe().plan(shape_of(tiny_model("llama")), {LAYER: Scheme(4, 32)})


def test_an_environment_that_is_not_there_is_one_sentence(recipe, monkeypatch, tmp_path):
    monkeypatch.setenv("LLMC_ENGINE_LLMCOMPRESSOR", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere, given for llmcompressor, is no Python environment"):
        _ = recipe().needs


def test_the_key_follows_the_recipe_and_the_version(worker, recipe):
    first = recipe().key
    assert first.endswith(" 0.14.0.1")
    assert recipe(RECIPE + "# more\n").key != first


def test_a_process_that_dies_is_one_sentence(worker, recipe):
    worker("import sys; sys.stderr.write('first\\nno room left\\n'); sys.exit(3)")
    with pytest.raises(RunError, match=r"process ended with code 3; it said: no room left\.$"):
        _ = recipe().needs


def test_a_run_that_breaks_leaves_nothing(answering, recipe, tiny_model, tmp_path):
    answering(schemes={"quantizing": [QUANTIZING]}, run={"broke": "no luck"})
    out = tmp_path / "steps" / "01"
    with pytest.raises(RunError, match=r"broke on the recipe .*: no luck$"):
        apply(recipe(), tiny_model("llama"), out, torch.zeros(1, 8, dtype=torch.int64))
    assert list(out.parent.iterdir()) == []
