"""`llmc compress --dry-run`: the plan, and nothing done."""

import json
import subprocess
import sys

import pytest


def test_dry_run_does_nothing(compress, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    code, shown, _ = compress(tiny_model("llama"), out, *workload, "--dry-run")
    assert code == 0
    assert "int4 g32 symmetric" in shown
    assert "Calibration: 8 windows of 64 tokens.\nJudged by: 24 windows of 64 tokens.\n" in shown
    assert not out.exists()


def test_accuracy_level_is_an_option_of_the_target(llmc, tiny_model):
    words = ("compress", tiny_model("llama"), "-t", "onnx-int4", "--pass", "rtn:group_size=32", "--dry-run", "--json")
    for given, level in ((("--accuracy-level", "0"), 0), ((), 4)):
        code, shown, _ = llmc(*words, *given)
        assert code == 0
        assert json.loads(shown)["recipe"]["target"]["onnx-int4"]["accuracy_level"] == level


def test_a_dry_run_says_what_is_not_known_yet(llmc, tiny_model, workload):
    words = ("compress", tiny_model("llama"), "-t", "hf", "--bits", "4.75", "--dry-run", *workload)
    _, shown, _ = llmc(*words)
    assert "  int8 channel symmetric\n" in shown
    assert "is what mixed finds out" in shown
    _, shown, _ = llmc(*words, "--json")
    assert json.loads(shown)["chosen_by"] == ["mixed"]


def test_everything_that_stands_in_the_way_is_said_at_once(llmc, tiny_model, tmp_path):
    (tmp_path / "out").mkdir()
    words = ("compress", tiny_model("llama"), "-t", "hf", "--pass", "gptq", "-o", tmp_path / "out", "--dry-run")
    code, _, said = llmc(*words, "--calibration", tmp_path / "none.txt", "--task", tmp_path / "none.yaml")
    assert code == 2
    assert "There is no file" in said
    assert "The task" in said
    assert "already exists" in said
    code, shown, _ = llmc(*words, "--calibration", tmp_path / "none.txt", "--json")
    assert code == 2
    assert [one["problem"] for one in json.loads(shown)["problems"]][1].endswith("out already exists.")


@pytest.mark.parametrize("mode", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "needs calibration text"),
        (("--calibration", "TEXT", "--samples", 400, "--length", 64), "windows of 64 tokens in"),
        (("--calibration", "TEXT", "--eval", "TEXT", "--length", 64), "--allow-same-text"),
        (("--calibration", "TEXT", "--eval", "SHORT", "--length", 64, "--samples", 4), "Only 0 windows of 512"),
        (("--calibration", "TEXT", "--length", 1024), "longer than the model's context"),
        (("--calibration", "TEXT", "--length", 64, "--samples", 4, "--prompt", 512), "The latency workload of 544"),
    ],
)
def test_a_dry_run_refuses_what_the_run_does(compress, tiny_model, tmp_path, text, words, sentence, mode):
    (tmp_path / "short.txt").write_text("Too short.")
    files = {"TEXT": text, "SHORT": tmp_path / "short.txt"}
    code, _, said = compress(tiny_model("llama"), tmp_path / "out", *(files.get(word, word) for word in words), *mode)
    assert (code, sentence in said) == (2, True), said
    assert not (tmp_path / "out").exists()


def test_room_on_the_disk_and_in_memory(compress, tiny_model, tmp_path, monkeypatch):
    """138,304 parameters in float32 of which the linears take 4 bits and scales of 2 bytes a group of 32."""
    words = (tiny_model("llama"), tmp_path / "out", "--dry-run")
    shown = json.loads(compress(*words, "--json", spec="rtn:group_size=32")[1])
    linears = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    floats = 288 * 64 + 5 * 64
    assert (
        shown["artifact_bytes"] == shown["forecast"]["steps_bytes"] == linears * 4 // 8 + linears // 32 * 2 + floats * 4
    )
    assert shown["forecast"]["memory_bytes"] == 4 * (linears // 2 + 2 * 64)
    monkeypatch.setattr("compressor.forecast.shutil.disk_usage", lambda path: type("Disk", (), {"free": 1000})())
    said = compress(*words, spec="rtn:group_size=32")[2]
    assert "are free on the disk" in said
    assert "and 1000 B are free" in said


def test_a_model_that_has_to_be_converted_is_not(llmc, tiny_model, gguf_of, monkeypatch):
    monkeypatch.setattr("compressor.gguf.importer.write_converted", lambda *_, **__: pytest.fail("converted"))
    words = ("compress", gguf_of(tiny_model("llama"), "F32"), "-t", "hf", "--pass", "rtn:group_size=32", "--dry-run")
    code, shown, _ = llmc(*words)
    assert code == 0
    assert "The model is converted first" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["report", "none"],
        ["gate", "none", "--max-kl", "1"],
        ["compress", "MODEL", "-t", "hf", "--pass", "gqtp"],
        ["compress", "MODEL", "-t", "onxx"],
        ["compress", "none", "-t", "hf", "--dry-run"],
        ["compress", "MODEL", "-t", "hf", "--calibration", "none.txt", "--dry-run"],
    ],
)
def test_a_slip_is_answered_without_importing_pytorch(tmp_path, words):
    script = """
import sys
from compressor.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print(stop.code, [name for name in ("torch", "transformers", "scipy") if name in sys.modules])
"""
    (tmp_path / "model").mkdir()
    asked = [str(tmp_path / "model") if word == "MODEL" else word for word in words]
    command = [sys.executable, "-c", script, *asked]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[0] == "2 []", done.stderr
