"""Files that are small and stand for much: YAML aliases, templates, deep JSON."""

import json

import pytest
import yaml

from calibration.sources import render_chat
from compressor import yaml_text
from compressor.architecture import read_config
from compressor.errors import InputError
from compressor.json_lines import json_lines
from compressor.recipe import load_recipes
from compressor.tasks.task import load_task

STEPS = zip("abcdefgh", "bcdefghi", strict=True)
LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in STEPS)


@pytest.mark.parametrize("text", [LAUGHS, "a: &a [*a]", "[" * 5000, "{a: " * 300])
def test_aliases_and_levels(tmp_path, text):
    with pytest.raises(yaml.YAMLError):
        yaml_text.load(text)
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        load_recipes(tmp_path / "recipe.yaml", {})
    with pytest.raises(InputError, match="cannot be read"):
        load_task(tmp_path / "recipe.yaml")


def test_ordinary_aliases_are_taken():
    assert yaml_text.load("a: &a {b: 1}\nc: [*a, *a]") == {"a": {"b": 1}, "c": [{"b": 1}, {"b": 1}]}
    assert yaml_text.load("") is None


@pytest.fixture
def task(tmp_path):
    def load(prompt):
        (tmp_path / "data.jsonl").write_text(json.dumps({"q": "what?", "a": "b"}))
        values = {"kind": "generation", "data": "data.jsonl", "prompt": prompt, "answer": "a"}
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(values))
        return load_task(tmp_path / "task.yaml")

    return load


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "runs for more than 2 s"),
        ("{{ 'x' * 10000000000 }}", "repeats something"),
        ("{{ [1] * 10000000000 }}", "repeats something"),
        ("{{ '%1000000000d' % 1 }}", "operator %"),
        ("{{ 9 ** 9 ** 9 }}", "operator"),
    ],
)
def test_prompts_that_do_not_end(task, prompt, says):
    with pytest.raises(InputError, match=says):
        task(prompt)


def test_prompts_that_do(task):
    assert (
        task("{% for i in range(3) %}{{ q }}{{ '-' * 3 }}{{ 7 % 4 }}{% endfor %}").samples[0].prompt == "what?---3" * 3
    )


def test_a_chat_template_that_does_not_end(byte_tokenizer):
    from copy import deepcopy

    tokenizer = deepcopy(byte_tokenizer)
    tokenizer.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(InputError, match="runs for more than 2 s"):
        render_chat([{"role": "user", "content": "hi"}], tokenizer, "a:1")


def test_deep_json(tmp_path):
    deep = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
    (tmp_path / "config.json").write_text(deep)
    with pytest.raises(InputError, match="values in values without end"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="is not JSON"):
        list(json_lines(tmp_path / "config.json", skip_empty=False))
