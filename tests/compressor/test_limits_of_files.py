"""Files that are small and stand for much: YAML aliases, templates, deep JSON."""

import json
import sys
from copy import deepcopy

import pytest
import yaml

from calibration.sources import open_corpus, render_chat
from compressor import layout, templates, yaml_text
from compressor.architecture import read_config
from compressor.errors import InputError
from compressor.json_file import LARGEST, read_object
from compressor.json_lines import json_lines
from compressor.layout import nf4
from compressor.recipe import load_recipes
from compressor.tasks.task import load_task
from targets.tensorrt_llm.loader_config import is_excluded

if sys.platform == "linux":
    import resource

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


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{ 'x' * 100000000000 }}", "more than 1 GiB of memory"),
        ("{{ 'x'.ljust(100000000000) }}", "more than 1 GiB of memory"),
        ("{{ 9 ** 9 ** 9 }}", r"the operator \*\* is not for chat templates"),
        ("{{ 'x' * 20000000 }}", "more than 10,000,000 characters"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits a process's memory")
def test_chat_templates_that_make_too_much(byte_tokenizer, template, says):
    tokenizer = deepcopy(byte_tokenizer)
    tokenizer.chat_template = template
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(InputError, match=says):
        templates.render_chat(tokenizer, [{"role": "user", "content": "hi"}], "a:1")
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_chat_templates_may_pass_named_arguments_on(byte_tokenizer):
    tokenizer = deepcopy(byte_tokenizer)
    tokenizer.chat_template = "{{ dict(a=1, **{'b': 2})['b'] }}{{ 2 * 3 }}"
    assert templates.render_chat(tokenizer, [{"role": "user", "content": "hi"}], "a:1") == "26"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{\n"a": }', r"a\.json is not valid JSON \(line 2\)"),
        (b'{"a": "\xff"}', r"a\.json is not UTF-8 text"),
        (b'{"a": ' + b"[" * 100_000, r"a\.json has values in values without end"),
        (b'{"a": ' + b"9" * 5000 + b"}", r"a\.json is not valid JSON \(a number is too long\)"),
        (b"[]", r"a\.json is not a JSON object"),
        (b" " * (LARGEST + 1), r"a\.json is larger than 64 MiB"),
    ],
)
def test_json_files_are_an_object_or_a_sentence(tmp_path, content, says):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_object(tmp_path / "a.json", "Save it again.")
    assert caught.value.hint == "Save it again."


def test_json_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_object(tmp_path)
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_object(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("content", [b"9" * 5000, b"[" * 100_000])
def test_lines_of_text_that_are_no_json(tmp_path, content):
    (tmp_path / "a.jsonl").write_bytes(content + b"\n")
    with pytest.raises(InputError, match=r"a\.jsonl:1 is not JSON that can be read"):
        list(open_corpus(str(tmp_path / "a.jsonl"), None).documents(10))


HANG = "re:(a|aa)+$"
GROUP = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}}


@pytest.mark.parametrize(
    "read",
    [
        lambda name: layout.read_schemes(compressed(ignore=[HANG], targets=["Linear"]), [name]),
        lambda name: layout.read_schemes(compressed(ignore=[], targets=[HANG]), [name]),
        lambda name: is_excluded(name, [HANG]),
        lambda name: nf4.read_schemes(
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": [HANG[3:]]}, [name]
        ),
    ],
    ids=["ignore", "targets", "exclude_modules", "llm_int8_skip_modules"],
)
def test_patterns_that_backtrack_without_end(read):
    with pytest.raises(InputError, match="takes too long to match"):
        read("a" * 60 + "b")


def compressed(ignore, targets):
    group = GROUP | {"targets": targets}
    settings = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ignore}
    return {"quantization_config": settings | {"config_groups": {"group_0": group}}}
