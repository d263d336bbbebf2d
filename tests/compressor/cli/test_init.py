"""`llmc init`, `llmc completion`, `llmc --version` and `-v`."""

import json
import re

import click
import pytest
import yaml

from compressor.recipe import load_recipes

FLAGS = ("--model", "./my model", "-t", "onnx-int4", "--calibration", "a: b.txt", "--eval", "'held'.txt")


def test_a_recipe_by_flags_is_read_as_it_was_asked_for(llmc, tmp_path):
    file = tmp_path / "new" / "r.yaml"
    code, shown, _ = llmc("init", file, *FLAGS, "--adapter", "no")
    assert code == 0
    assert f"llmc compress --recipe {file} --dry-run" in shown
    recipe = load_recipes(file, {})[0]
    assert (recipe.model, recipe.target, recipe.adapter) == ("./my model", "onnx-int4", {"no": 1.0})
    assert (recipe.calibration.texts, recipe.measure.texts) == ("a: b.txt", "'held'.txt")
    assert llmc("init", file, *FLAGS)[0] == 2, "it is there already"
    assert llmc("init", file, *FLAGS, "--force", "--json")[0] == 0


def test_every_comment_of_a_recipe_is_a_recipe_too(llmc, tmp_path):
    """Without the hash sign, each key that was left out is one that the reader takes."""
    file = tmp_path / "r.yaml"
    assert llmc("init", file, *FLAGS[:4])[0] == 0
    keys = [line for line in file.read_text().splitlines() if re.match(r"# ( *-|\s*[a-z_]+:)", line)]
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    file.write_text("\n".join([*lines, *(line[2:] for line in keys)]))
    recipe = load_recipes(file, {})[0]
    assert recipe.build_passes()[-1].spelled() == "gptq"
    assert recipe.measure.tasks == ["task.yaml"]
    assert recipe.gate.max_perplexity_increase == 0.02


def test_without_a_terminal_what_is_missing_is_named(llmc, tmp_path):
    code, _, said = llmc("init", tmp_path / "r.yaml", "--model", "x")
    assert (code, "give --target" in said) == (2, True)
    code, _, said = llmc("init", tmp_path / "r.yaml", "--model", "x", "-t", "trt-int5")
    assert (code, "Unknown target 'trt-int5'" in said) == (2, True)
    assert not (tmp_path / "r.yaml").exists()


def test_on_a_terminal_it_asks(llmc, tmp_path, monkeypatch):
    answers = iter(["hf", "", "held.txt"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr(click, "prompt", lambda *_, **__: next(answers))
    assert llmc("init", tmp_path / "r.yaml", "--model", "m")[0] == 0
    found = yaml.safe_load((tmp_path / "r.yaml").read_text())
    assert found == {"model": "m", "target": "hf", "measure": {"texts": "held.txt"}}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(llmc, shell):
    code, shown, _ = llmc("completion", shell)
    assert (code, "_LLMC_COMPLETE" in shown) == (0, True)
    assert json.loads(llmc("completion", shell, "--json")[1])["script"] == shown[:-1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [("llmc comp", {"compare", "compress", "completion"}), ("llmc compress -t gguf", {"gguf-q4_0", "gguf-q8_0"}),
     ("llmc compress --pass gp", {"gptq"}), ("llmc nonsense x", set())],
)  # fmt: skip
def test_a_shell_completes_verbs_targets_and_passes(llmc, monkeypatch, words, expected):
    monkeypatch.setenv("_LLMC_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    found = {line.partition(",")[2] for line in llmc()[1].splitlines()}
    assert found - {""} == expected


def test_the_version_names_the_runtimes_found(llmc, monkeypatch):
    monkeypatch.setattr("compressor.environment._version", lambda name: "9.9" if name == "onnxruntime" else None)
    code, shown, _ = llmc("--version")
    assert code == 0
    assert shown.splitlines()[0].startswith("llmc, version ")
    assert shown.splitlines()[1] == "runtimes: onnxruntime 9.9"


def test_verbose_logs_what_is_done_and_only_then(llmc, tiny_model, tmp_path):
    words = ("compress", tiny_model("llama"), "-t", "hf", "--pass", "rtn:group_size=32", "--measure", "none", "-o")
    code, _, said = llmc("-v", *words, tmp_path / "loud")
    assert code == 0
    assert re.search(r"\d\d:\d\d:\d\d compressor.steps: rtn:group_size=32 took", said)
    assert "compressor.steps" not in llmc(*words, tmp_path / "quiet")[2]
