"""The other verbs: listings, `inspect`, `report`, `doctor`, and help."""

import json
import subprocess
import sys

import pytest

from compressor.cli import VERBS


@pytest.mark.parametrize("words", [["passes"], ["passes", "gptq"], ["targets"], ["targets", "trt-int4"], ["doctor"]])
def test_listings_speak_json(llmc, words):
    code, shown, _ = llmc(*words, "--json")
    assert code == 0
    assert json.loads(shown)
    code, shown, _ = llmc(*words)
    assert code == 0
    assert shown


def test_doctor_tells_what_cannot_be_made(llmc, monkeypatch):
    monkeypatch.setattr("targets.gguf.target.find_spec", lambda name: None)
    code, shown, _ = llmc("doctor", "--json")
    targets = json.loads(shown)["targets"]
    assert code == 0
    assert "pip install 'llmc-compiler[gguf]'" in targets["gguf-q4_0"]["not_made"]
    assert targets["hf"] == {"not_made": None, "not_run": None}
    assert "gguf-q4_0            cannot be made" in llmc("doctor")[1]


def test_inspect_tells_a_model_a_step_an_artifact_and_a_run_apart(llmc, compress, tiny_model, tmp_path, workload):
    root, out = tiny_model("llama"), tmp_path / "out"
    compress(root, out, *workload)
    kinds = [
        json.loads(llmc("inspect", path, "--json")[1])["kind"]
        for path in (root, out / "steps" / "01-gptq", out / "artifact", out)
    ]
    assert kinds == ["model folder", "quantized model folder", "artifact", "run"]
    _, shown, _ = llmc("inspect", out / "artifact")
    assert "14 × int4 g32 symmetric" in shown


def test_report_shows_a_finished_run(llmc, compress, tiny_model, tmp_path, workload):
    out = tmp_path / "out"
    compress(tiny_model("llama"), out, *workload)
    assert "bit-identical" in llmc("report", out)[1]
    assert llmc("report", out, "--markdown")[1] == (out / "report.md").read_text()
    assert json.loads(llmc("report", out, "--json")[1]) == json.loads((out / "ledger.json").read_text())


def test_help_imports_nothing_heavy():
    script = """
import sys
from compressor.cli import main
try:
    main(["--help"])
except SystemExit:
    print([name for name in ("torch", "transformers", "numpy", "pydantic") if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert shown.strip().endswith("[]")
    for verb in VERBS:
        assert verb in shown


def test_every_verb_answers_help(llmc):
    for verb in VERBS:
        code, shown, _ = llmc(verb, "--help")
        assert code == 0
        assert "--json" in shown
