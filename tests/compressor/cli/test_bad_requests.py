"""Bad requests: exit code 2, one sentence, nothing left behind."""

import json
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compress", "MODEL"], "Which target?"),
        (["compress"], "Which model?"),
        (["compress", "MODEL", "-t", "onxx-int4"], "did you mean 'onnx-int4'?"),
        (["compress", "MODEL", "-t", "hf", "--pass", "gqtp"], "did you mean 'gptq'?"),
        (["compress", "MODEL", "-t", "hf", "--pass", "gptq:group_size=32"], "needs calibration text"),
        (["compress", "MODEL", "-t", "hf", "--pass", "gptq:group_size=128"], "does not divide the input width 64"),
        (["compress", "no-such-thing", "-t", "hf"], "neither a folder"),
        (["compress", "MODEL", "-t", "hf", "--samples", "4"], "--calibration"),
        (["compress", "MODEL", "-t", "hf", "--bits", "4.5", "--pass", "rtn"], "--bits and --pass both say"),
        (["compress", "--recipe", "r.yaml", "--bits", "4"], "--bits and --recipe both say"),
        (["compress", "MODEL", "-t", "hf", "--bits", "3"], "smallest candidates take"),
        (["compress", "MODEL", "-t", "trt-int4", "--bits", "4.5"], "trt-int4 cannot take this"),
        (["compress", "MODEL", "-t", "onnx-fp32", "--bits", "8"], "no pass with bits"),
        (["compress", "MODEL", "-t", "trt-int4", "--accuracy-level", "0"], "has no option 'accuracy_level'"),
        (["compress", "MODEL", "-t", "onnx-fp32", "--sm", "86"], "has no option 'sm'; known: tokenizer"),
        (["compress", "MODEL", "-t", "onnx-int4", "--sm", "86,89"], "has no option 'sm'"),
        (["compress", "MODEL", "-t", "trtrtx-int4", "--sm", "ampere"], "='ampere' is not allowed"),
        (["comprss"], "did you mean 'compress'?"),
        (["quantize", "MODEL"], "did you mean 'compress'?"),
        (["xyz"], "known: audit, bench"),
        (
            ["compress", "MODEL", "-t", "trt"],
            "did you mean 'trt-fp8', 'trt-int4', 'trt-int8', 'trt-nvfp4', 'trtrtx",
        ),
        (["compress", "MODEL", "-t", "llama.cpp"], "did you mean 'gguf-q4_0' or 'gguf-q8_0'?"),
        (["compress", "MODEL", "-t", "hf", "--pass", "quarot"], "did you mean 'rotate'?"),
        (["compress", "MODEL", "-t", "hf", "--pass", "bad"], "known: awq, "),
        (["inspect", "no-such-thing"], "does not exist"),
        (
            ["report", "no-such-thing"],
            "There is no ledger at no-such-thing.\nHint:  Give the folder that `llmc compress`",
        ),
        (["completion"], "Choose from: bash, zsh, fish"),
        (["passes", "gqtp"], "did you mean 'gptq'?"),
    ],
)
def test_bad_requests(llmc, tiny_model, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    root = tiny_model("llama") if "MODEL" in words else None
    code, _, err = llmc(*[root if word == "MODEL" else word for word in words])
    assert code == 2
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_exists_is_refused_and_untouched(compress, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("keep me")
    code, _, err = compress(tiny_model("llama"), out, *workload)
    assert code == 2
    assert "already exists" in err
    assert [path.name for path in out.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("file/out", "file is not a folder"),
        ("closed/deeper/out", "closed cannot be written to"),
        ("link/out", "link is not a folder"),
    ],
)
@pytest.mark.parametrize("mode", ["--resume", "--dry-run"])
def test_a_place_where_no_folder_can_be_made_is_refused(llmc, tiny_model, tmp_path, monkeypatch, place, said, mode):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).name != "closed")  # root may write everywhere
    code, _, err = llmc("compress", tiny_model("llama"), "-t", "hf", "--pass", "rtn", "-o", tmp_path / place, mode)
    assert code == 2
    assert f"cannot be made: {tmp_path / said}" in " ".join(err.split())
    assert not list((tmp_path / "closed").iterdir())


def test_a_folder_that_the_system_does_not_make_is_refused(compress, tiny_model, tmp_path, workload, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied")

    root = tiny_model("llama")
    monkeypatch.setattr(Path, "mkdir", closed)
    code, _, err = compress(root, tmp_path / "out", *workload)
    assert code == 2
    assert f"{tmp_path / 'out'} cannot be made: Permission denied." in err


@pytest.mark.parametrize(("name", "said"), [("out/precious", "holds other files, and no run"), ("out", "is no folder")])
def test_resume_writes_into_no_place_without_a_run(llmc, tiny_model, tmp_path, name, said):
    kept = tmp_path / name
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("keep me")
    words = ("compress", tiny_model("llama"), "-t", "hf", "--pass", "rtn", "-o", tmp_path / "out")
    code, _, err = llmc(*words, "--resume")
    assert (code, said in err) == (2, True)
    assert "--resume" not in llmc(*words)[2]
    assert kept.read_text() == "keep me"


def test_too_little_calibration_text_says_how_much_there_is(compress, tiny_model, tmp_path, text):
    code, _, err = compress(tiny_model("llama"), tmp_path / "out", "--calibration", text, "--length", 512)
    assert code == 2
    assert "windows of 512 tokens" in err
    assert not (tmp_path / "out").exists()


def test_a_default_adapts_to_the_text_and_to_the_model_and_is_said(compress, tiny_model, tmp_path, text):
    out = tmp_path / "out"
    root = tiny_model("llama", max_position_embeddings=128)
    words = ("--calibration", text, "--eval", text, "--allow-same-text", "--output-tokens", 4, "--measure", "none")
    code, shown, _ = compress(root, out, *words)
    assert code == 0
    ledger = json.loads((out / "ledger.json").read_text())
    windows = len(text.read_bytes()) // 128
    assert (ledger["texts"]["calibration"]["windows"], ledger["texts"]["calibration"]["length"]) == (windows, 128)
    assert (ledger["recipe"]["calibration"]["samples"], ledger["recipe"]["calibration"]["length"]) == (windows, 128)
    assert f"holds {windows} windows of 128 tokens, fewer than the default of 128" in ledger["warnings"][0]
    assert "the model's context is no longer" in ledger["warnings"][1]
    assert f"holds {windows} windows" in " ".join(shown.split())


def test_the_home_folder_is_known_in_every_path(llmc, tiny_model, tmp_path, monkeypatch, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_model("llama").rename(tmp_path / "model")
    words = ("--calibration", "~/text.txt", "--samples", 4, "--length", 64, "--measure", "none", "-o", "~/out")
    assert llmc("compress", "~/model", "-t", "hf", "--pass", "gptq:group_size=32", *words)[0] == 0
    assert llmc("report", "~/out")[0] == llmc("verify", "~/out")[0] == llmc("inspect", "~/model")[0] == 0


def test_a_file_of_weights_is_no_model(llmc, tiny_model):
    root = tiny_model("llama")
    code, _, said = llmc("compress", root / "model.safetensors", "-t", "hf")
    assert code == 2
    assert f"Give its folder: {root}" in said


def test_windows_longer_than_the_context_are_refused(compress, tiny_model, tmp_path, text):
    code, _, err = compress(tiny_model("llama"), tmp_path / "out", "--calibration", text, "--length", 1024)
    assert code == 2
    assert "longer than the model's context of 512" in err


def test_a_recipe_with_an_unknown_key_names_the_line(llmc, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: here\ntarget: hf\ncalibration:\n  texts: a.txt\n  sampels: 3\n")
    code, _, err = llmc("compress", "--recipe", recipe)
    assert code == 2
    assert "line 5" in err
    assert "did you mean 'samples'?" in err


@pytest.mark.parametrize(
    ("words", "called"), [(("--recipe",), "The recipe"), (("MODEL", "-t", "hf", "--task"), "The task")]
)
def test_what_is_no_yaml_is_said_with_its_line(llmc, tiny_model, tmp_path, words, called):
    (tmp_path / "r.yaml").write_text("model: here\ntarget: [hf\npasses: x\n")
    asked = [tiny_model("llama") if word == "MODEL" else word for word in words]
    code, _, err = llmc("compress", *asked, tmp_path / "r.yaml")
    assert code == 2
    assert f"{called} {tmp_path / 'r.yaml'} cannot be read: line 3, column 7: " in err


def test_held_out_text_that_is_not_utf8_is_refused(compress, tiny_model, tmp_path, text, workload):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(text.read_bytes() + b"\xe9\n\n" + text.read_bytes())
    workload[workload.index("--eval") + 1] = latin
    code, _, err = compress(tiny_model("llama"), tmp_path / "out", *workload)
    assert code == 2
    assert "is not UTF-8 text" in err
    assert not (tmp_path / "out").exists()


def test_a_tab_in_a_recipe_has_a_remedy(llmc, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: here\n\ttarget: hf\n")
    code, _, err = llmc("compress", "--recipe", recipe)
    assert (code, "line 2, column 1" in err) == (2, True)
    assert "Indent with spaces; YAML takes no tabs." in err


def test_a_word_in_the_place_of_a_section_is_told_what_the_section_has(llmc, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: here\ntarget: hf\nmeasure: none\n")
    code, _, err = llmc("compress", "--recipe", recipe)
    assert (code, "line 3" in err) == (2, True)
    assert "measure = 'none' is no section; known: allow_same_text, batch_size, effort," in err
